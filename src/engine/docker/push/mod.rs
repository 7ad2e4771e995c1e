//! Pushing: the engine has the layers, so it sends them.
//!
//! The engine decides by its own configuration (`insecure-registries`) whether it speaks TLS to a
//! registry.

pub(in crate::engine) mod faults;
mod journal;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::query_parameters::{PushImageOptionsBuilder, TagImageOptionsBuilder};
use futures_util::{StreamExt, pin_mut};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::image::is_digest;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::scheduling::keyed_locks::{KeyedLocks, Turn};

use self::faults::{fault, of_push};
use self::journal::{Entry, Journal, LastName, PushedName};
use super::{RegistryAuth, inspect_image};

/// A push reports at most this often how far it is.
const BETWEEN_NOTES: Duration = Duration::from_secs(5);

/// Pushes images through the engine.
pub(super) struct EnginePush {
    docker: Docker,
    credentials: Option<DockerCredentials>,
    redactor: Redactor,
    /// A name may stand for one image only: two pushes under one name take turns.
    names: KeyedLocks<String>,
    /// Where the names are written down, for the case that this process dies.
    journal: Option<Journal>,
}

impl EnginePush {
    /// With the credential and the journal's directory, if any.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub(super) fn new(
        docker: Docker,
        auth: Option<&RegistryAuth>,
        journal: Option<&Path>,
    ) -> io::Result<Self> {
        let credentials = auth.map(|auth| DockerCredentials {
            username: Some(auth.username.clone()),
            password: Some(auth.password.expose().to_owned()),
            serveraddress: Some(auth.host.clone()),
            ..DockerCredentials::default()
        });
        let redactor = Redactor::new(auth.map(|auth| auth.password.clone()));
        let journal = journal.map(Journal::open).transpose()?;
        Ok(Self { docker, credentials, redactor, names: KeyedLocks::default(), journal })
    }

    /// Clears the names that dead workers left on images.
    pub(super) async fn clear_left_names(&self) {
        for left in self.journal.iter().flat_map(Journal::left) {
            let _turn = self.names.lock(left.name().to_owned()).await;
            left.clear(&self.docker).await;
        }
    }

    /// Pushes the engine's image `image_id` as `reference`, and returns the digest that the engine
    /// reports. Dropping the future ends the push.
    pub(super) async fn push(
        &self,
        image_id: &str,
        reference: &ImageReference,
        progress: &BuildLog,
    ) -> Result<String, Fault> {
        let tag = self.tag(image_id, reference).await?;
        let digest = self.send(reference, progress).await;
        tag.remove().await;
        digest
    }

    /// Gives the image the name that it is pushed under.
    async fn tag(&self, image_id: &str, reference: &ImageReference) -> Result<EngineTag, Fault> {
        let name = reference.to_string();
        let what = format!("cannot name the image `{name}`");
        let turn = self.names.lock(name.clone()).await;
        let failed = |error| of_push(&what, error, &self.redactor);
        let found = inspect_image(&self.docker, &name).await.map_err(failed)?;
        let was_left = self.journal.as_ref().is_some_and(|journal| journal.take_over(&name));
        let was_there = found.is_some() && !was_left;
        let pushed = PushedName { name, image_id: image_id.to_owned() };
        let entry = match &self.journal {
            Some(journal) if !was_there => Some(journal.write(&pushed).map_err(|error| {
                let message = format!("{what}: cannot write to DATA_DIR: {error}");
                fault(Reason::EngineFailed, message)
            })?),
            _ => None,
        };
        let options =
            TagImageOptionsBuilder::new().repo(&reference.name()).tag(&reference.tag).build();
        // From here on the engine may know the name, whether or not its answer gets here.
        let tag = EngineTag(Some(Tagged {
            docker: self.docker.clone(),
            pushed,
            was_there,
            entry,
            _turn: turn,
        }));
        self.docker.tag_image(image_id, Some(options)).await.map_err(failed)?;
        Ok(tag)
    }

    async fn send(&self, reference: &ImageReference, progress: &BuildLog) -> Result<String, Fault> {
        let what = format!("cannot push `{reference}`");
        let options = PushImageOptionsBuilder::new().tag(&reference.tag).build();
        let events =
            self.docker.push_image(&reference.name(), Some(options), self.credentials.clone());
        pin_mut!(events);
        let mut layers = Layers::new();
        let mut digest = None;
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| of_push(&what, error, &self.redactor))?;
            let Some(status) = event.status else { continue };
            digest = digest.or_else(|| pushed_digest(&status));
            if let Some(note) = layers.see(&status) {
                progress.note(note);
            }
        }
        digest.ok_or_else(|| {
            fault(Reason::EngineFailed, format!("{what}: the engine did not say that it was done"))
        })
    }
}

/// The digest in the line that ends every push: `<tag>: digest: sha256:… size: 523`. The engine sends
/// it a second time as a field of its own, which this client's type for the events does not have.
fn pushed_digest(status: &str) -> Option<String> {
    let (_, rest) = status.split_once(": digest: ")?;
    let digest = rest.split(' ').next()?;
    is_digest(digest).then(|| digest.to_owned())
}

/// How far a push is.
struct Layers {
    all: usize,
    sent: usize,
    present: usize,
    last_note: Instant,
}

impl Layers {
    fn new() -> Self {
        Self { all: 0, sent: 0, present: 0, last_note: Instant::now() }
    }

    /// Takes a line of the engine in, and says something now and then.
    fn see(&mut self, status: &str) -> Option<String> {
        match status {
            "Preparing" => self.all += 1,
            "Pushed" => self.sent += 1,
            "Layer already exists" => self.present += 1,
            _ if status.starts_with("Mounted from") => self.present += 1,
            _ => {}
        }
        if self.last_note.elapsed() < BETWEEN_NOTES {
            return None;
        }
        self.last_note = Instant::now();
        let Self { all, sent, present, .. } = self;
        let done = *sent + *present;
        let note = format!("{done} of {all} layers are in the registry, {sent} of them sent now");
        if status.starts_with("Retrying in") {
            return Some(format!("{note}; the registry failed, the engine tries again"));
        }
        Some(note)
    }
}

/// The name that a push gave to an image. It goes away with this value: a worker that runs for
/// months would pile them up.
struct EngineTag(Option<Tagged>);

struct Tagged {
    docker: Docker,
    pushed: PushedName,
    /// Whether the name stood for an image before: then it is not ours to remove.
    was_there: bool,
    entry: Option<Entry>,
    _turn: Turn,
}

impl EngineTag {
    /// Removes the name, and goes on with that should nobody wait for it any longer.
    async fn remove(mut self) {
        if let Some(tagged) = self.0.take() {
            tokio::spawn(tagged.remove()).await.ok();
        }
    }
}

impl Drop for EngineTag {
    /// For a push that was given up, such as one that ran out of time.
    fn drop(&mut self) {
        let Some(tagged) = self.0.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tagged.remove());
        }
    }
}

impl Tagged {
    async fn remove(self) {
        if self.was_there {
            return;
        }
        match self.pushed.remove(&self.docker, LastName::Stays).await {
            Ok(true) => {
                if let Some(entry) = self.entry {
                    entry.gone();
                }
            }
            // The entry stays, for the next time that names are cleared.
            Ok(false) => {}
            Err(error) => {
                let name = self.pushed.name;
                tracing::warn!(name, %error, "cannot remove the name of a pushed image");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_read_from_the_line_that_ends_a_push() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(pushed_digest(&format!("v1: digest: {digest} size: 523")), Some(digest));
        for status in ["Pushed", "v1: digest: md5:00 size: 1", "v1: digest: ", "latest: digest:"] {
            assert_eq!(pushed_digest(status), None, "{status}");
        }
    }

    #[test]
    fn a_push_reports_sparsely_how_far_it_is() {
        let mut layers = Layers::new();
        for status in ["Preparing", "Preparing", "Waiting", "Pushed"] {
            assert_eq!(layers.see(status), None);
        }
        layers.last_note -= BETWEEN_NOTES;
        let note = layers.see("Mounted from a/b");
        assert_eq!(note.as_deref(), Some("2 of 2 layers are in the registry, 1 of them sent now"));
        assert_eq!(layers.see("Pushed"), None);
    }
}
