//! The registry port, over the registry's own API: looks images up, and tags them by storing the same
//! manifest again.
//!
//! Layers are the engine's to send. The scheme in `REGISTRY_URL` is about the API alone: whoever pushes
//! decides for itself whether it speaks TLS.

mod api;
mod auth;
mod faults;
mod manifest;
mod search;
mod url;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::future::try_join_all;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::image::{RegistryImage, is_digest};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::{Redactor, Tripwire};
use image_builder_actors::ports::{Exposed, RefusedTag, Registry};

use self::api::{Api, Refusal};
pub use self::auth::RegistryCredentials;
use self::faults::fault;
pub use self::manifest::Platform;
use self::manifest::{Content, Manifest, choose};
use self::search::Search;
pub use self::url::{RegistryUrl, RegistryUrlError};
use crate::net::http::excerpt;

/// Which registry, and how long it may take.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    pub url: RegistryUrl,
    /// `None` = anonymous.
    pub credentials: Option<RegistryCredentials>,
    /// Longest duration of one request to the registry's API.
    pub request_timeout: Duration,
    /// Which image of an index counts.
    pub platform: Platform,
    /// How much of an image is searched for secrets, and for how long.
    pub limits: Limits,
}

impl RegistrySettings {
    /// Anonymous, for images of this machine's platform, with the time limit that the worker has.
    pub fn new(url: RegistryUrl) -> Self {
        Self {
            url,
            credentials: None,
            request_timeout: Duration::from_secs(30),
            platform: Platform::of_this_machine(),
            limits: Limits::default(),
        }
    }
}

/// A client of one registry.
pub struct RegistryClient {
    url: RegistryUrl,
    api: Api,
    platform: Platform,
    limits: Limits,
}

impl RegistryClient {
    /// Opens no connection.
    ///
    /// # Errors
    /// The system's certificates cannot be loaded.
    pub fn new(settings: RegistrySettings) -> anyhow::Result<Self> {
        let RegistrySettings { url, credentials, request_timeout, platform, limits } = settings;
        let redactor = Redactor::new(credentials.iter().map(|known| known.password.clone()));
        let api = Api::new(&url.api_base(), credentials, redactor, request_timeout)?;
        Ok(Self { url, api, platform, limits })
    }

    /// Whether the registry answers, for readiness; it need not let the worker in.
    pub async fn ping(&self) -> Result<(), Fault> {
        self.api.ping().await
    }

    /// Finds out whether the registry can be pushed to and pulled from: stores a few bytes in a repository
    /// below its address, and reads them by their digest.
    ///
    /// # Errors
    /// It cannot.
    pub async fn try_out(&self, repository: &str) -> Result<(), Fault> {
        let bytes = format!("image-builder doctor {}\n", uuid::Uuid::new_v4());
        self.api.store_and_read(&self.url.api_repository(repository), bytes.as_bytes()).await
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

    /// What a refusal of a tag means. `Ok(Some(_))`: the registry does not take it this way; `Ok(None)`: where tags are
    /// immutable, one that is there already may be refused as well.
    async fn meant(
        &self,
        Refusal { fault, immutable }: Refusal,
        repository: &str,
        image: &RegistryImage,
        tag: &str,
    ) -> Result<Option<Fault>, Fault> {
        match self.api.manifest(repository, tag).await? {
            Some(standing) if standing.digest == image.digest => Ok(None),
            Some(_) if immutable => Err(fault),
            _ => Ok(Some(fault)),
        }
    }

    /// The image that a manifest stands for: its own, or the one of an index for the platform.
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
        let entry = choose(entries, &self.platform)
            .ok_or_else(|| failed("has no image of any platform".to_owned()))?;
        if !is_digest(&entry.digest) {
            return Err(failed(format!("names `{}`, which is no digest", excerpt(&entry.digest))));
        }
        let inner = self.api.manifest(repository, &entry.digest).await?.ok_or_else(|| {
            failed(format!("names {}, which the registry does not have", entry.digest))
        })?;
        match &inner.content {
            Content::Image(image) => Ok(manifest.registry_image(image)),
            Content::Index(_) => Err(failed("has an index inside an index".to_owned())),
        }
    }
}

impl Registry for RegistryClient {
    fn find<'a>(
        &'a self,
        reference: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<RegistryImage>, Fault>> {
        Box::pin(async move {
            let repository = self.repository(reference)?;
            match self.api.manifest(&repository, &reference.tag).await? {
                Some(manifest) => self.image_of(&repository, &manifest).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn tag<'a>(
        &'a self,
        image: &'a RegistryImage,
        reference: &'a ImageReference,
        tags: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<RefusedTag>, Fault>> {
        Box::pin(async move {
            let repository = &self.repository(reference)?;
            let put = tags.iter().map(|tag| async move {
                let refusal = self.api.put_manifest(repository, tag, &image.manifest).await?;
                Ok::<_, Fault>(refusal.map(|refusal| (tag, refusal)))
            });
            let refused = try_join_all(put).await?.into_iter().flatten();
            // No earlier: while a registry puts one tag on a manifest, it may fail to read that by another.
            let look = refused.map(|(tag, refusal)| async move {
                let refused = self.meant(refusal, repository, image, tag).await?;
                Ok(refused.map(|fault| RefusedTag { tag: tag.clone(), fault }))
            });
            Ok(try_join_all(look).await?.into_iter().flatten().collect())
        })
    }

    fn labels<'a>(
        &'a self,
        reference: &'a ImageReference,
        image: &'a RegistryImage,
    ) -> BoxFuture<'a, Result<BTreeMap<String, String>, Fault>> {
        Box::pin(
            async move { self.api.labels(&self.repository(reference)?, &image.image_id).await },
        )
    }

    fn search<'a>(
        &'a self,
        image: &'a RegistryImage,
        reference: &'a ImageReference,
        wanted: &'a Tripwire,
        files: bool,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>> {
        Box::pin(async move {
            let repository = &self.repository(reference)?;
            let (api, limits) = (&self.api, &self.limits);
            let search = Search { api, repository, wanted, files, limits, progress };
            search.run(&image.digest).await
        })
    }

    fn remove<'a>(
        &'a self,
        reference: &'a ImageReference,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(
            async move { self.api.delete_manifest(&self.repository(reference)?, digest).await },
        )
    }
}
