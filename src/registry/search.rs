//! Looks for secrets in an image that the registry has, before anybody is told of it.

use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::secret::Tripwire;
use image_builder_actors::ports::Exposed;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::api::Api;
use super::faults::{fault, of_transport};
use super::manifest::{Content, Image, Manifest};
use crate::blocking::{begin, joined};
use crate::exposure::layers::Searched;
use crate::exposure::shown::Configuration;
use crate::exposure::{Pieces, layers};
use crate::net::http::excerpt;

/// Pieces of a layer that wait to be searched.
const WAITING: usize = 8;
const WHAT: &str = "cannot search an image for secrets";

/// One search.
pub(super) struct Search<'a> {
    pub(super) api: &'a Api,
    pub(super) repository: &'a str,
    pub(super) wanted: &'a Tripwire,
    /// Whether the files of layers are looked at as well.
    pub(super) files: bool,
    pub(super) limits: &'a Limits,
    pub(super) progress: &'a BuildLog,
}

impl Search<'_> {
    /// The first secret that is found in the images under a digest, those of all platforms.
    pub(super) async fn run(&self, digest: &str) -> Result<Option<Exposed>, Fault> {
        let deadline = Instant::now() + self.limits.search_time;
        let Some(manifest) = self.api.manifest(self.repository, digest).await? else {
            return Ok(None);
        };
        let entries = match &manifest.content {
            Content::Image(image) => return self.in_image(image, deadline).await,
            Content::Index(entries) => entries,
        };
        for entry in entries {
            let inner = self.api.manifest(self.repository, &entry.digest).await?;
            if let Some(Manifest { content: Content::Image(image), .. }) = inner
                && let Some(found) = self.in_image(&image, deadline).await?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn in_image(&self, image: &Image, deadline: Instant) -> Result<Option<Exposed>, Fault> {
        let bytes = self.api.configuration(self.repository, &image.config).await?;
        let configuration = Configuration::read(&bytes).map_err(|error| {
            let why = excerpt(&error.to_string());
            fault(Reason::RegistryFailed, format!("{WHAT}: its configuration: {why}"))
        })?;
        let shown = configuration.shows(self.wanted);
        if shown.is_some() || !self.files {
            return Ok(shown);
        }
        let most = self.limits.searched_image_bytes;
        if image.size_bytes > most {
            let (size, most) = (image.size_bytes >> 20, most >> 20);
            self.progress.note(format!(
                "the image's files are not searched for secrets: it has {size} MiB, more than {most} MiB"
            ));
            return Ok(None);
        }
        let steps = configuration.steps();
        for (number, layer) in image.layers.iter().enumerate() {
            let step = steps.get(number).map(String::as_str);
            let Ok(searched) = timeout_at(deadline, self.in_layer(layer, step)).await else {
                let time = self.limits.search_time.as_secs();
                self.incomplete(&format!("it took longer than {time} s"));
                return Ok(None);
            };
            let Searched { found, read } = searched?;
            if found.is_some() {
                return Ok(found);
            }
            if let Err(error) = read {
                self.incomplete(&format!("they cannot be read: {error}"));
            }
        }
        Ok(None)
    }

    fn incomplete(&self, why: &str) {
        let note = format!("not all of the image's files were searched for secrets: {why}");
        self.progress.note(note);
    }

    async fn in_layer(&self, digest: &str, step: Option<&str>) -> Result<Searched, Fault> {
        let time = self.limits.search_time;
        let mut response = self.api.blob(self.repository, digest, WHAT, Some(time)).await?;
        let (pieces, received) = mpsc::channel(WAITING);
        let (wanted, step) = (self.wanted.clone(), step.map(str::to_owned));
        let searching =
            begin(move || layers::in_layer_of(Pieces::from(received), step.as_deref(), &wanted));
        let sent = loop {
            match response.chunk().await {
                Ok(Some(piece)) => {
                    if pieces.send(piece).await.is_err() {
                        // Whoever searched has found something.
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(of_transport(WHAT, error)),
            }
        };
        drop(pieces);
        let searched = joined(searching).await;
        if searched.found.is_none() {
            sent?;
        }
        Ok(searched)
    }
}
