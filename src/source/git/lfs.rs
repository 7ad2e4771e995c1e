//! Git LFS: real content in the place of pointers.
//!
//! The batch API and the pointer's format are those of the Git LFS specification
//! (`docs/api/batch.md` and `docs/spec.md` of git-lfs).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt, stream};
use image_builder_actors::model::digest::hex;
use image_builder_actors::model::fault::{Fault, Reason};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHORIZATION, TRANSFER_ENCODING, UPGRADE,
};
use reqwest::{Method, Request, StatusCode, Url};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::{disk_fault, mode, new_file};
use super::ini;
use super::remote::Connection;
use crate::net::http::excerpt;
use crate::source::fault;
use crate::source::http::{Body, redirect};
use crate::source::session::size;

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.git-lfs+json");
/// How many objects one request asks for: what servers take.
const BATCH: usize = 100;
/// Longest answer to one such request, in bytes.
const LONGEST_ANSWER: usize = 4 << 20;
/// How many objects are downloaded at once.
const AT_ONCE: usize = 4;
/// How many redirects a download follows.
const REDIRECTS: usize = 5;
/// How many files are named that have no content.
const NAMED: usize = 5;
/// The words by which servers say that a quota is used up.
const OF_QUOTAS: [&str; 4] = ["quota", "bandwidth", "budget", "data pack"];
/// Headers of a request that no server of LFS has a say in: they name the server, or say how the request is sent.
const OURS: [HeaderName; 6] =
    [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHORIZATION];

/// What stands in the repository for a large file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer {
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub(super) oid: String,
    /// Length of the content, in bytes.
    pub(super) size: u64,
}

impl Pointer {
    /// Longer files are none, in bytes (the specification).
    pub(super) const LONGEST: u64 = 1024;

    /// The pointer that a file's content is, if it is one.
    pub(super) fn parse(content: &[u8]) -> Option<Self> {
        if content.len() as u64 >= Self::LONGEST {
            return None;
        }
        let text = std::str::from_utf8(content).ok()?;
        let mut lines = text.lines();
        if lines.next()? != "version https://git-lfs.github.com/spec/v1" {
            return None;
        }
        let (mut oid, mut size) = (None, None);
        for line in lines {
            match line.split_once(' ')? {
                ("oid", value) => oid = value.strip_prefix("sha256:"),
                ("size", value) => size = value.parse().ok(),
                _ => {}
            }
        }
        let oid = oid.filter(|oid| {
            oid.len() == 64 && oid.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })?;
        Some(Self { oid: oid.to_owned(), size: size? })
    }
}

/// A pointer in the place of a file.
#[derive(Debug)]
pub(super) struct Placeholder {
    pub(super) file: PathBuf,
    /// The path for people.
    pub(super) path: String,
    pub(super) executable: bool,
    pub(super) pointer: Pointer,
}

#[derive(Serialize)]
struct BatchRequest<'a> {
    operation: &'static str,
    transfers: [&'static str; 1],
    objects: Vec<Wish<'a>>,
    hash_algo: &'static str,
}

#[derive(Serialize)]
struct Wish<'a> {
    oid: &'a str,
    size: u64,
}

#[derive(Deserialize)]
struct BatchAnswer {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct Actions {
    #[serde(default)]
    download: Option<Download>,
}

#[derive(Deserialize)]
struct Download {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
    #[serde(default)]
    message: String,
}

/// Replaces every pointer by its content. `config` is the text of the repository's `.lfsconfig`;
/// downloads are kept in `scratch`, on the same file system as the files, until they are whole.
pub(super) fn fill_in(
    connection: &Connection,
    config: Option<&str>,
    placeholders: &[Placeholder],
    scratch: &Path,
) -> Result<(), Fault> {
    let session = &connection.http.session;
    for placeholder in placeholders {
        session.room.count_bytes(placeholder.pointer.size)?;
    }
    session.note(format!("fetching {} Git LFS files", placeholders.len()));
    let endpoint = endpoint(connection, config)?;
    let mut by_oid: HashMap<&str, Vec<&Placeholder>> = HashMap::new();
    for placeholder in placeholders {
        by_oid.entry(&placeholder.pointer.oid).or_default().push(placeholder);
    }
    let store = Store { connection, endpoint, scratch };
    let groups: Vec<_> = by_oid.into_values().collect();
    let filled_in: Result<(), Fault> = session.runtime.block_on(async {
        for groups in groups.chunks(BATCH) {
            store.fill_in(groups).await?;
        }
        Ok(())
    });
    // A store counts what is fetched of a repository, whoever fetches it.
    filled_in.map_err(|fault| match fault.reason {
        Reason::RateLimited => fault.concerning(session.concerns.repository.clone()),
        _ => fault,
    })
}

/// Where the repository's LFS server is: beside the repository, unless `.lfsconfig` says otherwise,
/// which it may only within the same origin.
fn endpoint(connection: &Connection, config: Option<&str>) -> Result<Url, Fault> {
    let configured = ini::parse(config.unwrap_or_default()).into_iter().rev().find(|setting| {
        setting.section == "lfs" && setting.subsection.is_none() && setting.key == "url"
    });
    let mut url = match configured {
        None => {
            let mut url = connection.url.clone();
            let path = url.path().trim_end_matches('/').trim_end_matches(".git").to_owned();
            url.set_path(&format!("{path}.git/info/lfs"));
            url
        }
        Some(setting) => Url::parse(&setting.value)
            .ok()
            .filter(|url| url.origin() == connection.url.origin())
            .ok_or_else(|| {
                fault(
                    Reason::ForbiddenSource,
                    format!(
                        "The .lfsconfig of the {} names a Git LFS server that is not at the \
                         repository's own.",
                        connection.address.label
                    ),
                )
            })?,
    };
    url.set_path(&format!("{}/objects/batch", url.path().trim_end_matches('/')));
    Ok(url)
}

struct Store<'a> {
    connection: &'a Connection,
    endpoint: Url,
    scratch: &'a Path,
}

impl Store<'_> {
    /// Fills in the files of one batch; each group has the same content.
    async fn fill_in(&self, groups: &[Vec<&Placeholder>]) -> Result<(), Fault> {
        let mut downloads = self.batch(groups).await?;
        let (mut work, mut missing) = (Vec::new(), Vec::new());
        for group in groups {
            let Some(first) = group.first() else { continue };
            match downloads.remove(&first.pointer.oid) {
                Some(download) => work.push((first, group, download)),
                None => missing.extend(group),
            }
        }
        if !missing.is_empty() {
            return Err(self.not_there(&missing));
        }
        stream::iter(work)
            .map(|(first, group, download)| async move {
                let whole = self.download(first, download).await?;
                put(group, &whole)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    /// Asks where the objects are; those that the server has not are left out.
    async fn batch(
        &self,
        groups: &[Vec<&Placeholder>],
    ) -> Result<HashMap<String, Download>, Fault> {
        let wanted: Vec<&Placeholder> =
            groups.iter().filter_map(|group| group.first().copied()).collect();
        let body = BatchRequest {
            operation: "download",
            transfers: ["basic"],
            objects: wanted
                .iter()
                .map(|placeholder| Wish {
                    oid: &placeholder.pointer.oid,
                    size: placeholder.pointer.size,
                })
                .collect(),
            hash_algo: "sha256",
        };
        let body = serde_json::to_vec(&body).map_err(|error| self.odd(&error.to_string()))?;
        let mut request = Request::new(Method::POST, self.endpoint.clone());
        let headers = request.headers_mut();
        headers.insert(ACCEPT, MEDIA_TYPE);
        headers.insert(CONTENT_TYPE, MEDIA_TYPE);
        if let Some(authorization) = &self.connection.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        *request.body_mut() = Some(body.into());

        let Connection { http, address, authorization, .. } = self.connection;
        let response = http.send_once(address, request).await?;
        let status = response.status();
        if status == StatusCode::NOT_FOUND {
            return Err(self.not_there(&wanted));
        }
        let body = http.accepted(address, response, authorization.is_some()).await;
        let body = body.map_err(|fault| {
            // The words may be in the repository's name.
            let said = fault.message.replace(&address.label, "");
            match is_of_quota(status.as_u16(), &said) {
                true => Fault { message: self.over_quota(&fault.message), ..fault },
                false => fault,
            }
        })?;
        let body = body.all(LONGEST_ANSWER).await?;
        let body = body.ok_or_else(|| self.odd("it is too long"))?;
        let answer: BatchAnswer =
            serde_json::from_slice(&body).map_err(|error| self.odd(&error.to_string()))?;

        let mut downloads = HashMap::new();
        for object in answer.objects {
            let Some(placeholder) =
                wanted.iter().find(|placeholder| placeholder.pointer.oid == object.oid)
            else {
                continue;
            };
            match object.error {
                Some(ObjectError { code: 404 | 410, .. }) => continue,
                Some(error) => return Err(self.refused(placeholder, &error)),
                None => {}
            }
            if let Some(download) = object.actions.and_then(|actions| actions.download) {
                downloads.insert(object.oid, download);
            }
        }
        Ok(downloads)
    }

    /// Downloads one object into the scratch directory; it is whole and what the pointer says.
    async fn download(
        &self,
        placeholder: &Placeholder,
        download: Download,
    ) -> Result<PathBuf, Fault> {
        let mut body = self.open(placeholder, download).await?;
        let path = self.scratch.join(format!("lfs-{}", placeholder.pointer.oid));
        let on_disk =
            |error: std::io::Error| disk_fault(&error, &format!("`{}`", placeholder.path));
        let mut file = new_file(&path, placeholder.executable).map_err(on_disk)?;
        let mut hash = Sha256::new();
        let mut length = 0u64;
        while let Some(piece) = body.next().await? {
            length += piece.len() as u64;
            if length > placeholder.pointer.size {
                break;
            }
            hash.update(&piece);
            file.write_all(&piece).map_err(on_disk)?;
            self.connection.http.session.note_now_and_then(|| {
                format!(
                    "{}: {} of {}",
                    placeholder.path,
                    size(length),
                    size(placeholder.pointer.size)
                )
            });
        }
        if length != placeholder.pointer.size || hex(&hash.finalize()) != placeholder.pointer.oid {
            return Err(fault(
                Reason::ForgeFailed,
                format!("The Git LFS server sent other content for `{}`.", placeholder.path),
            ));
        }
        Ok(path)
    }

    /// Opens a download. Its headers, and our credential, stay with the server that they are for.
    async fn open(&self, placeholder: &Placeholder, download: Download) -> Result<Body, Fault> {
        let Connection { http, address, authorization, .. } = self.connection;
        let mut url = Url::parse(&download.href)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| self.odd("a download's address is none"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &download.header {
            let (Ok(name), Ok(mut value)) =
                (HeaderName::try_from(name), HeaderValue::try_from(value))
            else {
                return Err(self.odd("a download's header is none"));
            };
            value.set_sensitive(true);
            if !OURS.contains(&name) {
                headers.insert(name, value);
            }
        }
        if let Some(authorization) = authorization
            && url.origin() == self.connection.url.origin()
            && !headers.contains_key(AUTHORIZATION)
        {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        for _ in 0..=REDIRECTS {
            let mut request = Request::new(Method::GET, url.clone());
            *request.headers_mut() = headers.clone();
            // Stores are often elsewhere. The server itself may be at any address, and nothing that it names.
            let response = match url.host_str() == self.connection.url.host_str() {
                true => http.send_once(address, request).await,
                false => http.send_elsewhere(address, request).await,
            };
            let response = response.map_err(|fault| self.not_public(placeholder, &url, fault))?;
            if let Some(next) = redirect(&response) {
                if next.origin() != url.origin() {
                    headers.clear();
                }
                url = next;
                continue;
            }
            if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::GONE) {
                return Err(self.not_there(&[placeholder]));
            }
            return http.accepted(address, response, authorization.is_some()).await;
        }
        Err(self.odd("a download redirects again and again"))
    }

    /// The fault of a download that is sent to where no build may go; others stay what they are.
    fn not_public(&self, placeholder: &Placeholder, url: &Url, fault: Fault) -> Fault {
        if fault.reason != Reason::ForbiddenSource {
            return fault;
        }
        let message = format!(
            "The content of `{}` must not be fetched from `{}`, where the Git LFS server of the {} sends for \
             it: that is not a public address, and BUILDER_ALLOW_CIDR does not list it.",
            placeholder.path,
            excerpt(url.host_str().unwrap_or_default()),
            self.connection.address.label,
        );
        Fault { message, ..fault }
    }

    /// The fault of files whose content the server has not.
    fn not_there(&self, files: &[&Placeholder]) -> Fault {
        let mut paths: Vec<_> = files.iter().map(|file| format!("`{}`", file.path)).collect();
        paths.sort_unstable();
        let others = paths.len().saturating_sub(NAMED);
        paths.truncate(NAMED);
        let paths = paths.join(", ");
        let others = if others > 0 { format!(" and {others} more") } else { String::new() };
        let label = &self.connection.address.label;
        let message = format!(
            "The content of {paths}{others} is not on the Git LFS server of the {label}: push it with \
             `git lfs push --all`."
        );
        fault(Reason::ForbiddenSource, message)
    }

    fn over_quota(&self, said: &str) -> String {
        let label = &self.connection.address.label;
        format!("The Git LFS quota that the {label} counts against is used up: {said}")
    }

    fn refused(&self, placeholder: &Placeholder, error: &ObjectError) -> Fault {
        let reason = match error.code {
            401 | 403 => Reason::Unauthorized,
            429 => Reason::RateLimited,
            _ => Reason::ForgeFailed,
        };
        let (path, code, said) = (&placeholder.path, error.code, excerpt(&error.message));
        let message =
            format!("The Git LFS server does not give out `{path}`: status {code}, {said}");
        let is_of_quota = is_of_quota(code, &said);
        fault(reason, if is_of_quota { self.over_quota(&message) } else { message })
            .concerning(self.connection.http.session.concerns.repository.clone())
    }

    fn odd(&self, problem: &str) -> Fault {
        fault(
            Reason::ForgeFailed,
            format!(
                "The Git LFS server of the {} gave an answer that cannot be used: {problem}.",
                self.connection.address.label
            ),
        )
    }
}

/// Whether a refusal is for a quota: of what is stored, or of what is transferred.
fn is_of_quota(status: u16, said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    matches!(status, 402 | 507 | 509) || OF_QUOTAS.iter().any(|word| said.contains(word))
}

/// Puts a downloaded content in the place of its pointers.
fn put(group: &[&Placeholder], whole: &Path) -> Result<(), Fault> {
    let Some((first, others)) = group.split_first() else { return Ok(()) };
    let on_disk = |placeholder: &Placeholder, error: std::io::Error| {
        disk_fault(&error, &format!("`{}`", placeholder.path))
    };
    fs::rename(whole, &first.file).map_err(|error| on_disk(first, error))?;
    for placeholder in others {
        // A file anew, as for the first: nothing is written into one that is there. `fs::copy` copies the mode
        // too, which may be another here.
        fs::remove_file(&placeholder.file)
            .and_then(|()| fs::copy(&first.file, &placeholder.file))
            .and_then(|_| fs::set_permissions(&placeholder.file, mode(placeholder.executable)))
            .map_err(|error| on_disk(placeholder, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pointer_is_taken_for_one() {
        let oid = "a".repeat(64);
        let pointer =
            format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12\n");
        assert_eq!(Pointer::parse(pointer.as_bytes()), Some(Pointer { oid, size: 12 }));
        for other in [
            String::new(),
            pointer.replace("spec/v1", "spec/v9"),
            pointer.replace("sha256:a", "sha256:A"),
            pointer.replace("size 12", "size -1"),
            pointer.replace("size 12\n", ""),
            format!("{pointer}{}", "\n".repeat(1024)),
            format!("\n{pointer}"),
        ] {
            assert_eq!(Pointer::parse(other.as_bytes()), None, "{other:?}");
        }
    }
}
