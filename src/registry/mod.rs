//! The registry port: images are pushed by the engine, and looked up over the registry's own API.
//!
//! The engine has the layers and sends them; everything else is asked of the registry directly. The
//! digest that the engine tells is checked against what the registry has, and further tags are made
//! by storing the same manifest again, which sends a few hundred bytes in place of a second push.
//!
//! The engine decides by its own configuration (`insecure-registries`) whether it speaks TLS to the
//! registry; the scheme in `REGISTRY_URL` is about the API alone.

mod api;
mod auth;
mod faults;
mod journal;
mod manifest;
mod push;
mod url;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use bollard::Docker;
use bollard::auth::DockerCredentials;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::image::{BuiltImage, RegistryImage};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::ports::Registry;
use tokio::sync::OnceCell;

use self::api::Api;
pub use self::auth::RegistryCredentials;
use self::faults::{fault, of_engine};
use self::journal::Journal;
use self::manifest::{Content, Manifest, Platform, choose};
use self::push::EnginePush;
pub use self::url::{RegistryUrl, RegistryUrlError};

/// Where images go, and how long that may take.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    pub url: RegistryUrl,
    /// `None` = anonymous.
    pub credentials: Option<RegistryCredentials>,
    /// Longest duration of one request to the registry's API.
    pub request_timeout: Duration,
    /// Longest duration of a whole push.
    pub push_timeout: Duration,
    /// A directory to write down which names pushes gave to images on the engine, so that those of a
    /// worker that was killed are cleared; `None` = they are not.
    pub journal: Option<PathBuf>,
}

impl RegistrySettings {
    /// Anonymous, with the time limits that the worker has by default.
    pub fn new(url: RegistryUrl) -> Self {
        Self {
            url,
            credentials: None,
            request_timeout: Duration::from_secs(30),
            push_timeout: Duration::from_secs(5 * 60),
            journal: None,
        }
    }
}

/// A registry, with an engine that pushes to it.
pub struct RegistryClient {
    url: RegistryUrl,
    push_timeout: Duration,
    docker: Docker,
    api: Api,
    engine: EnginePush,
    /// What the engine's own images run on.
    platform: OnceCell<Platform>,
}

impl RegistryClient {
    /// Opens no connection. `docker` must have agreed on an API version with its engine.
    ///
    /// # Errors
    /// The system's certificates cannot be loaded, or the journal's directory cannot be written.
    pub fn new(settings: RegistrySettings, docker: Docker) -> anyhow::Result<Self> {
        let RegistrySettings { url, credentials, request_timeout, push_timeout, journal } =
            settings;
        let redactor = Redactor::new(credentials.iter().map(|known| known.password.clone()));
        let for_engine = credentials.as_ref().map(|known| DockerCredentials {
            username: Some(known.username.clone()),
            password: Some(known.password.expose().to_owned()),
            serveraddress: Some(url.server_address().to_owned()),
            ..DockerCredentials::default()
        });
        let api = Api::new(&url.api_base(), credentials, redactor.clone(), request_timeout)?;
        let journal = journal.map(|dir| Journal::open(&dir)).transpose();
        let journal = journal.context("the journal of pushes cannot be written")?;
        let engine = EnginePush::new(docker.clone(), for_engine, redactor, journal);
        Ok(Self { url, push_timeout, docker, api, engine, platform: OnceCell::new() })
    }

    /// Whether the registry answers, for readiness; it need not let the worker in.
    pub async fn ping(&self) -> Result<(), Fault> {
        self.api.ping().await
    }

    /// The registry's name in references.
    pub fn name(&self) -> String {
        self.url.to_string()
    }

    /// Takes the names away from the engine's images that pushes of a dead worker left there.
    pub async fn clear_left_names(&self) {
        self.engine.clear_left_names().await;
    }

    /// The API's name for the reference's repository. The worker's credential is this registry's
    /// alone, so is every reference.
    fn repository(&self, reference: &ImageReference) -> Result<String, Fault> {
        if reference.registry != self.url.to_string() {
            let message = format!("`{reference}` is not in the worker's registry, `{}`", self.url);
            return Err(fault(Reason::RegistryRefused, message));
        }
        Ok(self.url.api_repository(&reference.repository))
    }

    async fn push_and_check(
        &self,
        image: &BuiltImage,
        reference: &ImageReference,
        further_tags: &[String],
        progress: &BuildLog,
    ) -> Result<RegistryImage, Fault> {
        let repository = self.repository(reference)?;
        let digest = self.engine.push(&image.id, reference, progress).await?;
        let failed = |why: String| {
            fault(Reason::RegistryFailed, format!("cannot trust the push of `{reference}`: {why}"))
        };
        let Some(manifest) = self.api.manifest(&repository, &digest).await? else {
            return Err(failed(format!("the registry does not have {digest}, which it took")));
        };
        let pushed = self.image_of(&repository, &manifest).await?;
        // Engines that keep their images as manifests know them by the manifest's digest.
        if ![&pushed.image_id, &pushed.digest].contains(&&image.id) {
            return Err(failed(format!(
                "{digest} is not the image {}; somebody else pushed under the same name",
                image.id,
            )));
        }
        for tag in further_tags {
            if self.api.put_manifest(&repository, tag, &manifest).await? {
                continue;
            }
            let same = self.engine.push(&image.id, &reference.with_tag(tag), progress).await?;
            if same != digest {
                return Err(failed(format!("under the tag `{tag}` it became {same}")));
            }
        }
        Ok(pushed)
    }

    /// The image that a manifest stands for: its own, or the one of an index for the engine's
    /// platform.
    async fn image_of(
        &self,
        repository: &str,
        manifest: &Manifest,
    ) -> Result<RegistryImage, Fault> {
        let entries = match &manifest.content {
            Content::Image(image) => return Ok(manifest.registry_image(image)),
            Content::Index(entries) => entries,
        };
        let digest = &manifest.digest;
        let failed = |why: String| fault(Reason::RegistryFailed, format!("{digest} {why}"));
        let platform = self.platform.get_or_try_init(|| self.engine_platform()).await?;
        let entry = choose(entries, platform)
            .ok_or_else(|| failed(format!("has no image for {platform}")))?;
        let inner = self.api.manifest(repository, &entry.digest).await?.ok_or_else(|| {
            failed(format!("names {}, which the registry does not have", entry.digest))
        })?;
        match &inner.content {
            Content::Image(image) => Ok(manifest.registry_image(image)),
            Content::Index(_) => Err(failed("has an index inside an index".to_owned())),
        }
    }

    async fn engine_platform(&self) -> Result<Platform, Fault> {
        let version = self.docker.version().await.map_err(|error| {
            of_engine("cannot ask the engine for its platform", error, &Redactor::default())
        })?;
        Ok(Platform {
            os: version.os.unwrap_or_else(|| "linux".to_owned()),
            architecture: version.arch.unwrap_or_else(|| "amd64".to_owned()),
        })
    }
}

#[async_trait]
impl Registry for RegistryClient {
    async fn find(&self, reference: &ImageReference) -> Result<Option<RegistryImage>, Fault> {
        let repository = self.repository(reference)?;
        match self.api.manifest(&repository, &reference.tag).await? {
            Some(manifest) => self.image_of(&repository, &manifest).await.map(Some),
            None => Ok(None),
        }
    }

    async fn push(
        &self,
        image: &BuiltImage,
        reference: &ImageReference,
        further_tags: &[String],
        progress: &BuildLog,
    ) -> Result<RegistryImage, Fault> {
        progress.note(format!("pushing {reference}"));
        let push = self.push_and_check(image, reference, further_tags, progress);
        let pushed = tokio::time::timeout(self.push_timeout, push).await.unwrap_or_else(|_| {
            let seconds = self.push_timeout.as_secs();
            let message = format!("the push of `{reference}` took longer than {seconds} s");
            Err(fault(Reason::Timeout, message))
        })?;
        progress.note(format!("pushed {}@{}", reference.name(), pushed.digest));
        Ok(pushed)
    }

    async fn tag(
        &self,
        image: &RegistryImage,
        reference: &ImageReference,
        further_tags: &[String],
    ) -> Result<(), Fault> {
        let repository = self.repository(reference)?;
        let gone = |what: &str| {
            let message = format!("cannot tag `{reference}`: the registry {what} {}", image.digest);
            fault(Reason::RegistryFailed, message)
        };
        let manifest = self.api.manifest(&repository, &image.digest).await?;
        let manifest = manifest.ok_or_else(|| gone("no longer has"))?;
        for tag in [&reference.tag].into_iter().chain(further_tags) {
            if !self.api.put_manifest(&repository, tag, &manifest).await? {
                return Err(gone("does not take a second tag for"));
            }
        }
        Ok(())
    }

    async fn labels(
        &self,
        reference: &ImageReference,
        image: &RegistryImage,
    ) -> Result<BTreeMap<String, String>, Fault> {
        self.api.labels(&self.repository(reference)?, &image.image_id).await
    }
}
