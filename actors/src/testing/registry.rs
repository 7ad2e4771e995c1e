//! In-memory registry.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::script::{Record, Script};
use crate::model::build_log::BuildLog;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::image::{
    BUILDER_LABEL, BuiltImage, KEY_LABEL, REVISION_LABEL, RegistryImage, StoredManifest, digest_of,
    is_digest,
};
use crate::model::reference::ImageReference;
use crate::model::secret::Tripwire;
use crate::ports::{Exposed, RefusedTag, Registry};

/// What every image weighs here, in bytes.
const SIZE: u64 = 1_000;

/// What stands for a manifest where nobody reads it.
pub fn no_manifest() -> Arc<StoredManifest> {
    Arc::new(StoredManifest { media_type: "none".to_owned(), bytes: Vec::new() })
}

/// A registry in memory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeRegistry {
    contents: Arc<Mutex<Contents>>,
    pub pushes: Script<Fault>,
    /// The references of the pushes that succeeded.
    pub pushed: Record<ImageReference>,
    /// Whether pushes take long.
    held: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Contents {
    /// By `repository:tag` and `repository:digest`, each with its registry before it.
    images: HashMap<String, RegistryImage>,
    /// The labels of each image, by its digest.
    labels: HashMap<String, BTreeMap<String, String>>,
    /// What stands in a file of an image, by its digest.
    files: HashMap<String, String>,
    refuses_tags: bool,
    /// Whether a tag stands for one image for ever.
    immutable: bool,
    down: Option<Fault>,
    finds: usize,
}

impl FakeRegistry {
    /// Every call fails until it is called with `None`.
    pub fn set_down(&self, fault: Option<Fault>) {
        self.lock().down = fault;
    }

    /// Pushes that have begun wait until [`Self::release`].
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    pub fn release(&self) {
        self.held.send_replace(false);
    }

    /// From now on no tag is put on what is there already.
    pub fn refuse_tags(&self) {
        self.lock().refuses_tags = true;
    }

    /// From now on no tag is moved, and none that is there is taken again.
    pub fn make_tags_immutable(&self) {
        self.lock().immutable = true;
    }

    /// The tags that stand for the same image as the reference, itself among them, sorted.
    pub fn tags(&self, reference: &ImageReference) -> Vec<String> {
        let contents = self.lock();
        let image = contents.images.get(&reference.to_string());
        let repository = format!("{}:", reference.name());
        let same = contents.images.iter().filter(|(_, stored)| Some(*stored) == image);
        let tags = same.filter_map(|(name, _)| name.strip_prefix(&repository));
        let mut tags: Vec<_> = tags.filter(|tag| !is_digest(tag)).map(str::to_owned).collect();
        tags.sort();
        tags
    }

    /// Takes an image that an engine pushes, and returns its digest.
    ///
    /// # Errors
    /// Whatever the test asked for.
    pub async fn take(
        &self,
        image: &BuiltImage,
        reference: &ImageReference,
    ) -> Result<String, Fault> {
        self.pushes.play().await?;
        // The sender lives in `self`.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        let contents = self.lock();
        if contents.immutable && contents.images.contains_key(&reference.to_string()) {
            return Err(taken(reference));
        }
        drop(contents);
        let digest = digest_of(image.id.as_bytes());
        let labels = [
            (REVISION_LABEL, &*reference.tag),
            (BUILDER_LABEL, image.builder.as_str()),
            (KEY_LABEL, image.key.as_str()),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let stored = RegistryImage {
            digest: digest.clone(),
            image_id: image.id.clone(),
            size_bytes: SIZE,
            manifest: no_manifest(),
        };
        self.store(&stored, reference, labels)?;
        self.pushed.push(reference.clone());
        Ok(digest)
    }

    /// Has this image from now on, under the reference and its digest.
    ///
    /// # Errors
    /// The registry is down.
    pub fn store(
        &self,
        image: &RegistryImage,
        reference: &ImageReference,
        labels: BTreeMap<String, String>,
    ) -> Result<(), Fault> {
        let mut contents = self.up()?;
        for tag in [&reference.tag, &image.digest] {
            contents.images.insert(reference.with_tag(tag).to_string(), image.clone());
        }
        contents.labels.insert(image.digest.clone(), labels);
        Ok(())
    }

    /// The image of this digest has a file with this text.
    pub fn show(&self, digest: &str, text: &str) {
        self.lock().files.insert(digest.to_owned(), text.to_owned());
    }

    /// How often something was looked up, failed calls included.
    pub fn finds(&self) -> usize {
        self.lock().finds
    }

    /// What is in it, unless it is down.
    fn up(&self) -> Result<MutexGuard<'_, Contents>, Fault> {
        let contents = self.lock();
        match &contents.down {
            Some(fault) => Err(fault.clone()),
            None => Ok(contents),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn taken(reference: &ImageReference) -> Fault {
    let message = format!("`{reference}` is taken, and tags are immutable");
    Fault::new(StageName::Pusher, Reason::RegistryRefused, message)
}

impl Registry for FakeRegistry {
    fn find<'a>(
        &'a self,
        reference: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<RegistryImage>, Fault>> {
        Box::pin(async move {
            self.lock().finds += 1;
            Ok(self.up()?.images.get(&reference.to_string()).cloned())
        })
    }

    fn tag<'a>(
        &'a self,
        image: &'a RegistryImage,
        reference: &'a ImageReference,
        tags: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<RefusedTag>, Fault>> {
        Box::pin(async move {
            let mut contents = self.up()?;
            let by_digest = reference.with_tag(&image.digest).to_string();
            let known = contents.images.get(&by_digest).cloned();
            let Some(stored) = known.filter(|_| !contents.refuses_tags) else {
                let message = format!("`{by_digest}` takes no tag");
                let fault = Fault::new(StageName::Pusher, Reason::RegistryRefused, message);
                let refused = |tag: &String| RefusedTag { tag: tag.clone(), fault: fault.clone() };
                return Ok(tags.iter().map(refused).collect());
            };
            for tag in tags {
                let name = reference.with_tag(tag);
                let standing = contents.images.get(&name.to_string());
                if contents.immutable && standing.is_some_and(|it| it.digest != stored.digest) {
                    return Err(taken(&name));
                }
                contents.images.insert(name.to_string(), stored.clone());
            }
            Ok(Vec::new())
        })
    }

    fn labels<'a>(
        &'a self,
        reference: &'a ImageReference,
        image: &'a RegistryImage,
    ) -> BoxFuture<'a, Result<BTreeMap<String, String>, Fault>> {
        Box::pin(async move {
            self.up()?.labels.get(&image.digest).cloned().ok_or_else(|| {
                let message = format!("`{reference}` has no configuration {}", image.image_id);
                Fault::new(StageName::Pusher, Reason::RegistryFailed, message)
            })
        })
    }

    fn search<'a>(
        &'a self,
        image: &'a RegistryImage,
        _: &'a ImageReference,
        wanted: &'a Tripwire,
        files: bool,
        _: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>> {
        Box::pin(async move {
            let contents = self.up()?;
            let labels = contents.labels.get(&image.digest).into_iter().flatten();
            let labels = labels.map(|(name, text)| (format!("the label `{name}`"), text));
            let file = contents.files.get(&image.digest).filter(|_| files);
            let file = file.map(|text| ("the file `/scripted`".to_owned(), text));
            let found = labels.chain(file).find_map(|(place, text)| {
                let secret = wanted.find(text)?.to_owned();
                Some(Exposed { secret, place })
            });
            Ok(found)
        })
    }

    fn remove<'a>(
        &'a self,
        reference: &'a ImageReference,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let repository = format!("{}:", reference.name());
            let mut contents = self.up()?;
            contents
                .images
                .retain(|name, image| image.digest != digest || !name.starts_with(&repository));
            Ok(())
        })
    }
}
