//! What takes up room on the engine, and how it is given back.
//!
//! Disk usage and the pruning of the build cache are asked for in the form of API 1.44 and before:
//! bollard's types are those of later versions, in which both look different, and every engine from
//! 20.10 on understands the older form.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::CreateImageOptionsBuilder;
use bollard::{ClientVersion, body_stream};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Limited};
use hyper::{Method, Request, StatusCode};
use image_builder_actors::model::fault::Fault;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{ANSWER_TIMEOUT, DockerEngine, LOCAL_REGISTRY, faults, remove_image};
use crate::engine::address::Address;
use crate::engine::wire::{self, Body, Connection};

/// Counting what every image and cache record holds may take an engine with many of them a while.
const USAGE_TIMEOUT: Duration = Duration::from_secs(120);
/// So may deleting them.
const PRUNE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// What is stored to find out whether there is room, in blocks of bytes: more than a step's odds and ends.
const STORED_BLOCKS: usize = 1024;
const STORED_BLOCK: usize = 64 << 10;
/// Longest time for that.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer, in bytes: some 300 bytes a cache record.
const LONGEST_ANSWER: usize = 64 << 20;
/// Engines up to 20.10 count for one client at a time and send the others away.
const COUNTING: &str = "disk usage operation is already running";
const BETWEEN_COUNTS: Duration = Duration::from_millis(500);
/// The last API version with the forms that are spoken here.
const LAST_VERSION: (usize, usize) = (1, 44);

/// All images of the engine and all records of its build cache, as one answer lists them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EngineUsage {
    #[serde(deserialize_with = "readable", default)]
    pub images: Vec<ImageUsage>,
    #[serde(deserialize_with = "readable", default)]
    pub build_cache: Vec<CacheRecord>,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    pub version: String,
    /// The newest version of its API.
    pub api_version: String,
    pub architecture: String,
    pub storage_driver: String,
}

/// Some of the engine's images.
#[derive(Deserialize)]
#[serde(transparent)]
struct Images(#[serde(deserialize_with = "readable")] Vec<ImageUsage>);

/// A list without the entries that cannot be read: one of them must not keep the others from being pruned.
fn readable<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
{
    let entries: Vec<Value> = list(deserializer)?;
    let read = entries.into_iter().map(serde_json::from_value);
    let reported = read.inspect(|entry: &Result<T, _>| {
        if let Err(error) = entry {
            tracing::debug!(%error, "the engine lists something that cannot be read");
        }
    });
    Ok(reported.flatten().collect())
}

/// The engine writes an empty list as `null`.
fn list<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// An image on the engine.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageUsage {
    pub id: String,
    #[serde(deserialize_with = "list", default)]
    repo_tags: Vec<String>,
    #[serde(deserialize_with = "list", default)]
    repo_digests: Vec<String>,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    /// Containers that were made of it, running or not.
    #[serde(default)]
    containers: i64,
    #[serde(default)]
    size: i64,
}

impl ImageUsage {
    /// `repository:tag`.
    pub fn names(&self) -> Vec<String> {
        known(&self.repo_tags)
    }

    /// `repository@digest`: where it was pulled from by somebody, or pushed to.
    pub fn digests(&self) -> Vec<String> {
        known(&self.repo_digests)
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// The bytes that the engine keeps for it, shared ones included: those of its layers, and in containerd's store
    /// those of the packed layers too.
    pub fn bytes(&self) -> u64 {
        self.size.max(0).unsigned_abs()
    }

    pub fn has_containers(&self) -> bool {
        self.containers > 0
    }
}

/// Older engines name what has no name `<none>:<none>`.
fn known(names: &[String]) -> Vec<String> {
    names.iter().filter(|name| !name.starts_with('<')).cloned().collect()
}

/// A record of the build cache.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CacheRecord {
    /// Bytes of its own.
    #[serde(rename = "Size", default)]
    pub bytes: u64,
    /// A running build has it.
    #[serde(default)]
    pub in_use: bool,
    /// It is a layer of an image as well, which alone would keep the bytes.
    #[serde(default)]
    pub shared: bool,
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub last_used_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub created_at: Option<OffsetDateTime>,
}

impl CacheRecord {
    #[cfg(test)]
    pub(crate) fn new(bytes: u64, used: OffsetDateTime) -> Self {
        Self { bytes, in_use: false, shared: false, last_used_at: Some(used), created_at: None }
    }

    /// When a build last used it.
    pub fn last_use(&self) -> OffsetDateTime {
        self.last_used_at.or(self.created_at).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// A step in the history of an image, with the bytes of the layer that it made.
#[derive(Deserialize)]
struct HistoryEntry {
    #[serde(rename = "Size")]
    size: Option<i64>,
}

/// The bytes of all layers that have any, from the engine's answer, which begins with the highest. An image
/// without any history has `null`.
fn sizes(history: Option<Vec<HistoryEntry>>) -> Vec<u64> {
    let sizes = history.into_iter().flatten().rev().filter_map(|entry| entry.size);
    sizes.filter_map(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0).collect()
}

/// What distinguishes the layers of one image from those of another, and its age.
#[derive(Debug)]
pub struct ImageDetail {
    /// When it was last given a name, which every build and every push does; else when it was made.
    pub last_use: OffsetDateTime,
    /// Digests of the layers' contents, the lowest first. An image shares a layer with another one
    /// where all below are the same as well.
    pub layers: Vec<String>,
}

impl DockerEngine {
    /// Whether the engine runs on this machine, or at least on one whose socket is here.
    pub fn is_local(&self) -> bool {
        matches!(self.address, Address::Unix(_))
    }

    /// The engine's data directory, as a path on the engine's own machine.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn data_root(&self) -> Result<Option<String>, Fault> {
        let what = "asking for its data directory";
        let info = faults::in_time(ANSWER_TIMEOUT, what, self.negotiated().await?.info())
            .await?
            .map_err(|error| faults::of_client(&self.address, what, &error))?;
        Ok(info.docker_root_dir.filter(|path| !path.is_empty()))
    }

    /// What the engine says of itself.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn facts(&self) -> Result<EngineFacts, Fault> {
        let what = "asking what it is";
        let docker = self.negotiated().await?;
        let asked = async { tokio::try_join!(docker.version(), docker.info()) };
        let (version, info) = faults::in_time(ANSWER_TIMEOUT, what, asked)
            .await?
            .map_err(|error| faults::of_client(&self.address, what, &error))?;
        Ok(EngineFacts {
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            architecture: version.arch.unwrap_or_default(),
            storage_driver: info.driver.unwrap_or_default(),
        })
    }

    /// Whether the engine stores a file of the worker's own, which goes again at once: so it is found out
    /// whether there is room on a disk that is not seen from here. An engine that does not say takes it.
    pub async fn takes_a_file(&self) -> bool {
        let name = format!("{LOCAL_REGISTRY}/room:{}", uuid::Uuid::new_v4().simple());
        let stored = tokio::time::timeout(STORE_TIMEOUT, self.store(&name)).await;
        let stored = stored.ok().and_then(|stored| stored.err()).map(|error| error.to_string());
        let _ = self.remove_image(&name).await;
        stored.is_none_or(|error| !error.contains("no space left on device"))
    }

    /// Makes an image of one file.
    async fn store(&self, name: &str) -> Result<(), Error> {
        let mut header = tar::Header::new_gnu();
        header.set_size((STORED_BLOCKS * STORED_BLOCK) as u64);
        header.set_mode(0o600);
        // The name is shorter than a header takes.
        let _ = header.set_path("room");
        header.set_cksum();
        // What no file system makes smaller.
        let seed: Vec<u8> =
            (0..STORED_BLOCK / 16).flat_map(|_| uuid::Uuid::new_v4().into_bytes()).collect();
        let blocks = std::iter::repeat_n(Bytes::from(seed), STORED_BLOCKS);
        let all = std::iter::once(Bytes::copy_from_slice(header.as_bytes()))
            .chain(blocks)
            .chain([Bytes::from_static(&[0; 1024])]);
        let options = CreateImageOptionsBuilder::new().from_src("-").repo(name).build();
        let body = body_stream(stream::iter(all));
        let mut answers = pin!(self.docker.create_image(Some(options), Some(body), None));
        while let Some(answer) = answers.next().await {
            answer?;
        }
        Ok(())
    }

    /// What the engine has.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn usage(&self) -> Result<EngineUsage, Fault> {
        let what = "counting what it stores";
        let count = async {
            loop {
                let version = self.spoken_version().await?;
                // Before API 1.42 the types are ignored, and volumes are counted as well.
                let target = "/system/df?type=image&type=build-cache";
                let request = wire::request(Method::GET, &self.address, version, target)
                    .body(wire::no_body())
                    .map_err(|error| faults::engine_broke(what, &error))?;
                match self.ask(request).await? {
                    Ok(answer) => {
                        return serde_json::from_slice(&answer)
                            .map_err(|error| faults::engine_broke(what, &error));
                    }
                    Err(refusal) if refusal.contains(COUNTING) => {}
                    Err(refusal) => return Err(faults::engine_broke(what, &refusal)),
                }
                tokio::time::sleep(BETWEEN_COUNTS).await;
            }
        };
        faults::in_time(USAGE_TIMEOUT, what, count).await?
    }

    /// The images whose label of this name has this value.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub(super) async fn images_with(
        &self,
        label: &str,
        value: &str,
    ) -> Result<Vec<ImageUsage>, Fault> {
        let filters = json!({"label": [format!("{label}={value}")]}).to_string();
        let target = format!("/images/json{}", wire::query(&[("filters", &filters)]));
        let Images(images) = self.answer(&target, "looking for an image").await?;
        Ok(images)
    }

    /// Details of an image; `None` where the engine does not have it.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn image_detail(&self, name_or_id: &str) -> Result<Option<ImageDetail>, Fault> {
        let image = self.inspect(name_or_id, "looking at an image").await?;
        let Some(image) = image else { return Ok(None) };
        let tagged = image.metadata.and_then(|metadata| metadata.last_tag_time);
        let last_use = [tagged, image.created].into_iter().flatten().max();
        Ok(Some(ImageDetail {
            last_use: last_use.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            layers: image.root_fs.and_then(|fs| fs.layers).unwrap_or_default(),
        }))
    }

    /// The bytes of each of an image's layers that has any, the lowest first.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn layer_bytes(&self, id: &str) -> Result<Vec<u64>, Fault> {
        let what = "looking at an image's layers";
        self.answer(&format!("/images/{id}/history"), what).await.map(sizes)
    }

    /// Removes a name from an image, which goes with its last one. Answers whether it did: the
    /// engine keeps what a container was made of, and another worker may have been faster.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn remove_image(&self, name_or_id: &str) -> Result<bool, Fault> {
        let what = "removing an image";
        let removal = remove_image(self.negotiated().await?, name_or_id);
        faults::in_time(PRUNE_TIMEOUT, what, removal)
            .await?
            .map_err(|error| faults::of_client(&self.address, what, &error))
    }

    /// Prunes the build cache, what was used the longest time ago first, until it holds at most
    /// `keep` bytes. What a running build has stays, and so do layers of images, which do not count.
    /// So does what was used less than `young` ago: builds let go of their context for a moment, and
    /// fail when it is pruned just then.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn prune_cache(&self, keep: u64, young: Duration) -> Result<(), Fault> {
        let what = "pruning the build cache";
        let version = self.spoken_version().await?;
        let keep = keep.min(i64::MAX as u64).to_string();
        let filters = format!(r#"{{"until":["{}s"]}}"#, young.as_secs());
        let query = wire::query(&[("keep-storage", &keep), ("filters", &filters)]);
        let target = format!("/build/prune{query}");
        let request = wire::request(Method::POST, &self.address, version, &target)
            .body(wire::no_body())
            .map_err(|error| faults::engine_broke(what, &error))?;
        let answer = faults::in_time(PRUNE_TIMEOUT, what, self.ask(request)).await??;
        answer.map(drop).map_err(|refusal| faults::engine_broke(what, &refusal))
    }

    /// Asks the engine a short question, and reads the answer.
    pub(super) async fn answer<T: DeserializeOwned>(
        &self,
        target: &str,
        what: &str,
    ) -> Result<T, Fault> {
        let version = self.spoken_version().await?;
        let request = wire::request(Method::GET, &self.address, version, target)
            .body(wire::no_body())
            .map_err(|error| faults::engine_broke(what, &error))?;
        let answer = faults::in_time(ANSWER_TIMEOUT, what, self.ask(request)).await??;
        let answer = answer.map_err(|refusal| faults::engine_broke(what, &refusal))?;
        serde_json::from_slice(&answer).map_err(|error| faults::engine_broke(what, &error))
    }

    /// Sends a request on a connection of its own: the answer, or what the engine says against it.
    async fn ask(&self, request: Request<Body>) -> Result<Result<Vec<u8>, String>, Fault> {
        let what = "answering";
        let mut connection = Connection::open(&self.address).await?;
        let response =
            connection.send(request).await.map_err(|error| faults::engine_broke(what, &error))?;
        if response.status() != StatusCode::OK {
            return Ok(Err(wire::error_message(response).await));
        }
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| faults::engine_broke(what, &error))?;
        Ok(Ok(body.to_bytes().to_vec()))
    }

    /// The version that engine and client have agreed on, or the last one that is spoken here.
    async fn spoken_version(&self) -> Result<ClientVersion, Fault> {
        let agreed = self.negotiated().await?.client_version();
        let (major_version, minor_version) =
            (agreed.major_version, agreed.minor_version).min(LAST_VERSION);
        Ok(ClientVersion { major_version, minor_version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_engine_20_10_is_read() {
        let answer = r#"{"LayersSize":1,"Images":[{"Containers":1,"Created":1795338928,
            "Id":"sha256:aa","Labels":null,"ParentId":"","RepoDigests":["<none>@<none>"],
            "RepoTags":["<none>:<none>"],"SharedSize":1,"Size":2,"VirtualSize":2}],
            "Containers":[],"Volumes":null,"BuildCache":[{"ID":"x","Parent":"","Type":"regular",
            "Description":"d","InUse":false,"Shared":true,"Size":26,
            "CreatedAt":"2026-11-22T08:55:21.511464832Z","LastUsedAt":null,"UsageCount":6}],
            "BuilderSize":0}"#;
        let usage: EngineUsage = serde_json::from_str(answer).expect("readable");
        let EngineUsage { images, build_cache: cache } = usage;
        assert!(images[0].names().is_empty() && images[0].digests().is_empty());
        assert!(images[0].has_containers());
        assert_eq!((cache[0].bytes, cache[0].shared), (26, true));
        assert_eq!(cache[0].last_use().year(), 2026);
    }

    #[test]
    fn an_engine_without_anything_is_read() {
        let answer = r#"{"LayersSize":0,"Images":null,"BuildCache":null}"#;
        let usage: EngineUsage = serde_json::from_str(answer).expect("readable");
        assert!(usage.images.is_empty() && usage.build_cache.is_empty());
    }

    #[test]
    fn what_cannot_be_read_hides_nothing_else() {
        let answer = r#"{"Images":[{"Id":7},null,{"Id":"sha256:aa","Labels":[]},
            {"Id":"sha256:bb","RepoTags":null,"RepoDigests":null,"Labels":null}],
            "BuildCache":[{"Size":-1},{"Size":null},{"Size":26,"LastUsedAt":"soon"},{"Size":27}]}"#;
        let usage: EngineUsage = serde_json::from_str(answer).expect("readable");
        let ids: Vec<_> = usage.images.iter().map(|image| image.id.as_str()).collect();
        assert_eq!(ids, ["sha256:bb"]);
        let bytes: Vec<_> = usage.build_cache.iter().map(|record| record.bytes).collect();
        assert_eq!(bytes, [27]);
    }

    #[test]
    fn layers_are_read_from_every_form_of_a_history() {
        for (history, expected) in [
            ("null", &[][..]),
            ("[]", &[]),
            (r#"[{"Size":3,"Tags":null,"Comment":null},{"Size":0},{"Size":1}]"#, &[1, 3]),
            (r#"[{"Size":-1},{"Size":null},{},{"Size":2}]"#, &[2]),
        ] {
            let history = serde_json::from_str(history).expect("readable");
            assert_eq!(sizes(history), expected);
        }
    }
}
