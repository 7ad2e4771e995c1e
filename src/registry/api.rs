//! The registry's HTTP API, as far as the worker needs it: the OCI distribution specification.

use std::collections::BTreeMap;
use std::time::Duration;

use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::image::{StoredManifest, digest_of, is_digest};
use image_builder_actors::model::secret::Redactor;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::auth::{Authenticator, RegistryCredentials, Scope};
use super::faults::{fault, of_status, of_transport};
use super::manifest::{MEDIA_TYPES, Manifest, read_labels};
use crate::net::http::{USER_AGENT, client, excerpt, read_at_most, retry_after, was_hung_up};
use crate::net::refusal::says_immutable;

/// Longest manifest that is read, in bytes: the specification asks registries to take as much.
const LONGEST_MANIFEST: usize = 4 * 1024 * 1024;
/// Longest configuration of an image that is read, in bytes.
const LONGEST_CONFIG: usize = 8 * 1024 * 1024;
/// How much of an error's body is read, in bytes.
const LONGEST_ERROR: usize = 16 * 1024;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MOST_REDIRECTS: usize = 5;
const CONTENT_DIGEST: &str = "docker-content-digest";

/// Why a registry does not take a tag.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) fault: Fault,
    /// Whether it says that the tag is taken for good.
    pub(super) immutable: bool,
}

/// A client of one registry's API.
#[derive(Debug)]
pub(super) struct Api {
    http: reqwest::Client,
    /// The address before `/v2/`.
    base: Url,
    auth: Authenticator,
    redactor: Redactor,
}

impl Api {
    /// `base` is the address of the host; each request may take `timeout` from its beginning to
    /// its answer's last byte.
    pub(super) fn new(
        base: &str,
        credentials: Option<RegistryCredentials>,
        redactor: Redactor,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let http = client()?
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .redirect(redirects())
            .build()?;
        let base = Url::parse(base)?;
        let auth = Authenticator::new(http.clone(), base.clone(), credentials);
        Ok(Self { http, base, auth, redactor })
    }

    /// Whether the registry answers as one, whoever asks.
    pub(super) async fn ping(&self) -> Result<(), Fault> {
        let what = "the registry is not ready";
        let request = self.http.get(format!("{}v2/", self.base));
        let response = request.send().await.map_err(|error| of_transport(what, error))?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            status if status.is_success() => Ok(()),
            _ => Err(self.refusal(what, response).await),
        }
    }

    /// The manifest under a tag or digest, checked against its digest.
    pub(super) async fn manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<Manifest>, Fault> {
        let what = format!("cannot look up `{reference}` of `{repository}` in the registry");
        let request =
            || self.http.get(self.manifest_url(repository, reference)).header(ACCEPT, MEDIA_TYPES);
        let response = self.send(&what, request, &Scope::pull(repository)).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let text = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let content_type = text(CONTENT_TYPE.as_str());
        let declared = text(CONTENT_DIGEST).filter(|digest| is_digest(digest));
        let bytes = self.body(&what, response, LONGEST_MANIFEST).await?;
        if is_page(content_type.as_deref(), &bytes) {
            return Err(of_status(&what, StatusCode::OK, None, "a web page"));
        }
        let failed = |why| failed(&what, why);
        let manifest = Manifest::read(bytes, content_type.as_deref()).map_err(failed)?;
        let asked = is_digest(reference).then(|| reference.to_owned());
        for digest in [asked, declared].into_iter().flatten() {
            if digest != manifest.digest {
                let got = &manifest.digest;
                return Err(failed(format!("it sent {got} in place of {digest}")));
            }
        }
        Ok(Some(manifest))
    }

    /// The labels in an image's configuration, which is checked against its digest.
    pub(super) async fn labels(
        &self,
        repository: &str,
        config: &str,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let bytes = self.configuration(repository, config).await?;
        read_labels(&bytes).map_err(|error| {
            let what = of_configuration(repository, config);
            failed(&what, excerpt(&error.to_string()))
        })
    }

    /// An image's configuration, which is checked against its digest.
    pub(super) async fn configuration(
        &self,
        repository: &str,
        config: &str,
    ) -> Result<Vec<u8>, Fault> {
        let what = of_configuration(repository, config);
        let response = self.blob(repository, config, &what, None).await?;
        let bytes = self.body(&what, response, LONGEST_CONFIG).await?;
        if digest_of(&bytes) != config {
            return Err(failed(&what, format!("the registry sent {}", digest_of(&bytes))));
        }
        Ok(bytes)
    }

    /// The answer with what is stored under a digest, to be read to its end within this time; `None` = that of
    /// any request.
    pub(super) async fn blob(
        &self,
        repository: &str,
        digest: &str,
        what: &str,
        time: Option<Duration>,
    ) -> Result<Response, Fault> {
        if !is_digest(digest) {
            return Err(failed(what, "that is no digest".to_owned()));
        }
        let url = format!("{}v2/{repository}/blobs/{digest}", self.base);
        let request = || match time {
            Some(time) => self.http.get(&url).timeout(time),
            None => self.http.get(&url),
        };
        let response = self.send(what, request, &Scope::pull(repository)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Err(failed(what, "the registry does not have it".to_owned())),
            status if status.is_success() => Ok(response),
            _ => Err(self.refusal(what, response).await),
        }
    }

    /// Stores a manifest under one more tag. `Ok(Some(_))`: the registry does not take it this way, and
    /// this is why.
    pub(super) async fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        manifest: &StoredManifest,
    ) -> Result<Option<Refusal>, Fault> {
        let what = format!("cannot tag `{repository}` as `{tag}` in the registry");
        let request = || {
            self.http
                .put(self.manifest_url(repository, tag))
                .header(CONTENT_TYPE, &manifest.media_type)
                .body(manifest.bytes.clone())
        };
        let mut response = self.send(&what, request, &Scope::push(repository)).await?;
        if response.status().is_success() {
            return Ok(None);
        }
        let (status, detail) = (response.status(), self.detail(&mut response).await);
        let fault = of_status(&what, status, retry_after(response.headers()), &detail);
        if fault.reason != Reason::RegistryRefused {
            return Err(fault);
        }
        Ok(Some(Refusal { immutable: says_immutable(Some(status.as_u16()), &detail), fault }))
    }

    /// Stores these bytes, reads them back by their digest, and deletes them again where the registry lets
    /// that.
    pub(super) async fn store_and_read(&self, repository: &str, bytes: &[u8]) -> Result<(), Fault> {
        let what = format!("cannot push to `{repository}` in the registry");
        let scope = Scope::push(repository);
        let uploads = format!("{}v2/{repository}/blobs/uploads/", self.base);
        let begun = self.send(&what, || self.http.post(&uploads), &scope).await?;
        if begun.status() != StatusCode::ACCEPTED {
            return Err(self.refusal(&what, begun).await);
        }
        let location = begun.headers().get(LOCATION).and_then(|place| place.to_str().ok());
        let place = location.and_then(|place| self.base.join(place).ok());
        let mut place =
            place.ok_or_else(|| failed(&what, "it does not say where to".to_owned()))?;
        let digest = digest_of(bytes);
        place.query_pairs_mut().append_pair("digest", &digest);
        let put = || {
            let content = "application/octet-stream";
            self.http.put(place.clone()).header(CONTENT_TYPE, content).body(bytes.to_vec())
        };
        // The credential is the registry's own, and no other server's.
        let stored = if place.origin() == self.base.origin() {
            self.send(&what, put, &scope).await?
        } else {
            put().send().await.map_err(|error| of_transport(&what, error))?
        };
        if !stored.status().is_success() {
            return Err(self.refusal(&what, stored).await);
        }
        let what = format!("cannot pull from `{repository}` in the registry");
        let blob = format!("{}v2/{repository}/blobs/{digest}", self.base);
        let response = self.send(&what, || self.http.get(&blob), &Scope::pull(repository)).await?;
        if self.body(&what, response, bytes.len() + 1).await? != bytes {
            return Err(failed(&what, "it sent something else than it was given".to_owned()));
        }
        // Most registries delete nothing unless they are told to; a few bytes stay then.
        let _ = self.send(&what, || self.http.delete(&blob), &scope).await;
        Ok(())
    }

    /// Removes a manifest, with all tags that stand for it. Most registries refuse that unless they are told
    /// otherwise, which is no error.
    pub(super) async fn delete_manifest(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<(), Fault> {
        let what = format!("cannot remove {digest} from `{repository}` in the registry");
        let url = self.manifest_url(repository, digest);
        let scope = Scope::push(repository);
        self.send(&what, || self.http.delete(&url), &scope).await.map(drop)
    }

    /// Sends a request as the registry wants it: once more, with what it asks for, after a 401. Whatever
    /// is sent here can be sent twice, so one that was hung up on is.
    async fn send(
        &self,
        what: &str,
        request: impl Fn() -> RequestBuilder,
        scope: &Scope,
    ) -> Result<Response, Fault> {
        let known = self.auth.known(scope);
        let first = || match &known {
            Some(authorization) => request().header(AUTHORIZATION, authorization),
            None => request(),
        };
        let response = match first().send().await {
            Err(error) if was_hung_up(&error) => first().send().await,
            result => result,
        };
        let response = response.map_err(|error| of_transport(what, error))?;
        let of_the_registry = response.url().origin() == self.base.origin();
        if response.status() != StatusCode::UNAUTHORIZED || !of_the_registry {
            return Ok(response);
        }
        match self.auth.answer(response.headers(), scope, known.as_ref()).await? {
            Some(authorization) if known.as_ref() != Some(&authorization) => {
                let second = request().header(AUTHORIZATION, authorization);
                second.send().await.map_err(|error| of_transport(what, error))
            }
            _ => Ok(response),
        }
    }

    /// The whole body of an answer that is a success.
    async fn body(
        &self,
        what: &str,
        mut response: Response,
        longest: usize,
    ) -> Result<Vec<u8>, Fault> {
        if !response.status().is_success() {
            return Err(self.refusal(what, response).await);
        }
        match read_at_most(&mut response, longest).await {
            Ok((bytes, true)) => Ok(bytes),
            Ok((_, false)) => Err(failed(what, format!("it is longer than {longest} bytes"))),
            Err(error) => Err(of_transport(what, error)),
        }
    }

    async fn refusal(&self, what: &str, mut response: Response) -> Fault {
        let detail = self.detail(&mut response).await;
        of_status(what, response.status(), retry_after(response.headers()), &detail)
    }

    /// What the body of an error says, without any credential.
    async fn detail(&self, response: &mut Response) -> String {
        match read_at_most(response, LONGEST_ERROR).await {
            Ok((body, _)) => self.redactor.redact(&error_text(&body)),
            // The status says enough.
            Err(_) => String::new(),
        }
    }

    fn manifest_url(&self, repository: &str, reference: &str) -> String {
        format!("{}v2/{repository}/manifests/{reference}", self.base)
    }
}

/// Whether an answer is HTML: something else than a registry's API gave it.
fn is_page(content_type: Option<&str>, body: &[u8]) -> bool {
    content_type.is_some_and(|it| it.to_ascii_lowercase().starts_with("text/html"))
        || body.trim_ascii_start().starts_with(b"<")
}

fn of_configuration(repository: &str, config: &str) -> String {
    format!("cannot read the configuration `{}` of `{repository}`", excerpt(config))
}

/// The registry's answer cannot be used.
fn failed(what: &str, why: String) -> Fault {
    fault(Reason::RegistryFailed, format!("{what}: {why}"))
}

/// The client forgets the credential when it is sent to another host; on top of that, it is never
/// led from an encrypted connection to a plain one.
fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let encrypted = attempt.previous().last().is_some_and(|from| from.scheme() == "https");
        if attempt.previous().len() > MOST_REDIRECTS {
            attempt.error("it was redirected too often")
        } else if encrypted && attempt.url().scheme() != "https" {
            attempt.error("it was redirected to a connection without TLS")
        } else {
            attempt.follow()
        }
    })
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The first error of an answer, as the specification writes it; of any other body, nothing.
fn error_text(body: &[u8]) -> String {
    let errors = serde_json::from_slice(body).map(|Errors { errors }| errors).unwrap_or_default();
    match errors.into_iter().next() {
        Some(ErrorEntry { code, message }) if message.is_empty() => code,
        Some(ErrorEntry { code, message }) => format!("{code}: {message}"),
        None => String::new(),
    }
}
