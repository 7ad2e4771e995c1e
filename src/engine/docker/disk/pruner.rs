//! Finds out what the engine holds, and removes what is chosen to go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::image::{KEY_LABEL, REVISION_LABEL};
use time::OffsetDateTime;

use super::inventory::{HeldBytes, Image, Inventory, Layer, Whose, add_copies, layers};
use super::pins::Pins;
use super::size::Size;
use crate::engine::docker::local::is_local;
use crate::engine::docker::{CacheRecord, DockerEngine, ImageDetail, ImageUsage};

/// A name in the registry that an image has had for so long was left there by a push that was killed:
/// no job lasts that long.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// Prunes one engine, which other workers may be pruning too.
pub(super) struct Pruner {
    engine: Arc<DockerEngine>,
    pins: Pins,
    /// The registry's name in references.
    registry: String,
    young: Young,
    /// The layers of images seen before, by image: an image never changes.
    known: HashMap<String, Vec<Layer>>,
    /// Images that the engine did not remove the last time: others go in their place this time.
    stuck: HashSet<String>,
}

/// What is too young to go.
#[derive(Debug, Clone, Copy)]
pub struct Young {
    /// An image that was used less than this ago may be in a job's hands on another worker.
    pub image: Duration,
    /// A record of the build cache that was used less than this ago a running build may be about to
    /// use again. Whole seconds.
    pub cache: Duration,
}

/// What one pruning did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pruned {
    before: HeldBytes,
    pub(super) after: HeldBytes,
}

impl Pruned {
    pub(super) fn freed(self) -> u64 {
        self.before.total().saturating_sub(self.after.total())
    }
}

impl Pruner {
    pub(super) fn new(
        engine: Arc<DockerEngine>,
        pins: Pins,
        registry: String,
        young: Young,
    ) -> Self {
        Self { engine, pins, registry, young, known: HashMap::new(), stuck: HashSet::new() }
    }

    /// Removes what was used the longest time ago until at most the target is held. The target is a
    /// function of what is held now.
    ///
    /// # Errors
    /// The engine's.
    pub(super) async fn prune(
        &mut self,
        target: impl FnOnce(HeldBytes) -> u64,
    ) -> Result<Pruned, Fault> {
        let inventory = self.inventory().await?;
        let before = inventory.held();
        let choice = inventory.choose(target(before));
        self.stuck.clear();
        let mut removed = 0;
        for at in choice.images {
            let image = &inventory.images[at];
            if unless_failed(&image.id, self.remove(image).await)? == Some(true) {
                removed += 1;
                tracing::debug!(image = image.id, last_use = %image.last_use, "image removed");
            } else {
                self.stuck.insert(image.id.clone());
            }
        }
        if let Some(keep) = choice.keep_cache {
            self.engine.prune_cache(keep, self.young.cache).await?;
        }
        if removed == 0 && choice.keep_cache.is_none() {
            return Ok(Pruned { before, after: before });
        }
        let after = self.inventory().await?.held();
        let pruned = Pruned { before, after };
        tracing::info!(
            images = removed,
            freed = %Size(pruned.freed()),
            held = %Size(after.total()),
            "pruned old images and build cache"
        );
        Ok(pruned)
    }

    async fn inventory(&mut self) -> Result<Inventory, Fault> {
        let usage = self.engine.usage().await?;
        self.known.retain(|id, _| usage.images.iter().any(|image| image.id == *id));
        let now = OffsetDateTime::now_utc();
        let mut images = Vec::with_capacity(usage.images.len());
        let mut packed = Vec::with_capacity(usage.images.len());
        for image in usage.images {
            let detail = unless_failed(&image.id, self.engine.image_detail(&image.id).await)?;
            // Gone since the engine counted.
            let Some(detail) = detail.flatten() else { continue };
            let layers = unless_failed(&image.id, self.layers(&image.id, &detail).await)?;
            let layers = layers.unwrap_or_default();
            let unpacked: u64 = layers.iter().map(Layer::bytes).sum();
            packed.push(image.bytes().saturating_sub(unpacked));
            images.push(Image {
                whose: self.whose(&image, detail.last_use, now),
                names: image.names(),
                last_use: detail.last_use,
                layers,
                id: image.id,
            });
        }
        add_copies(&mut images, &packed);
        let in_use = |record: CacheRecord| CacheRecord {
            in_use: record.in_use || now - record.last_use() < self.young.cache,
            ..record
        };
        Ok(Inventory { images, cache: usage.build_cache.into_iter().map(in_use).collect() })
    }

    async fn layers(&mut self, id: &str, detail: &ImageDetail) -> Result<Vec<Layer>, Fault> {
        if let Some(known) = self.known.get(id) {
            return Ok(known.clone());
        }
        let found = layers(&detail.layers, &self.engine.layer_bytes(id).await?);
        self.known.insert(id.to_owned(), found.clone());
        Ok(found)
    }

    fn whose(&self, image: &ImageUsage, last_use: OffsetDateTime, now: OffsetDateTime) -> Whose {
        let age = now - last_use;
        let whose = whose(image, &self.registry, age > STALE);
        let needed = || {
            image.has_containers()
                || self.stuck.contains(&image.id)
                || age < self.young.image
                || image.label(KEY_LABEL).is_some_and(|key| self.pins.has(key))
        };
        match whose {
            Whose::Ours | Whose::Left if needed() => Whose::InUse,
            whose => whose,
        }
    }

    /// Removes an image unless somebody has used it since it was chosen.
    async fn remove(&self, image: &Image) -> Result<bool, Fault> {
        match self.engine.image_detail(&image.id).await? {
            Some(now) if now.last_use <= image.last_use => {}
            _ => return Ok(false),
        }
        if image.names.is_empty() {
            return self.engine.remove_image(&image.id).await;
        }
        let mut removed = true;
        for name in &image.names {
            removed &= self.engine.remove_image(name).await?;
        }
        Ok(removed)
    }
}

/// What the engine did with one image; `None` = it failed. That must not keep the others from being pruned.
fn unless_failed<T>(image: &str, done: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match done {
        Err(fault) if fault.reason == Reason::EngineFailed => {
            tracing::warn!(image, %fault, "the engine fails with an image while others are pruned");
            Ok(None)
        }
        done => done.map(Some),
    }
}

/// Who may do away with an image, as far as its names and labels show. `old` = nobody has named it
/// for longer than any job lasts.
fn whose(image: &ImageUsage, registry: &str, old: bool) -> Whose {
    let (names, labelled) = (image.names(), image.label(KEY_LABEL).is_some());
    // What was pulled has a digest of where it came from. Engines with containerd's store give one to every name,
    // which on an image that was made here tells nothing.
    let made_here = names.iter().any(|name| is_local(name));
    let of_a_name = |digest: &str| {
        digest.rsplit_once('@').is_some_and(|(repository, digest)| {
            let is_name =
                |name: &String| name.rsplit_once(':').is_some_and(|(it, _)| it == repository);
            digest == image.id && names.iter().any(is_name)
        })
    };
    if image.digests().iter().any(|it| !(is_local(it) || made_here && of_a_name(it))) {
        return Whose::Others;
    }
    if names.is_empty() {
        return if labelled { Whose::Left } else { Whose::Others };
    }
    let is_ours = |name: &str| is_local(name) || (old && is_pushed(image, name, registry));
    if names.iter().all(|name| is_ours(name)) {
        Whose::Ours
    } else if names.iter().any(|name| is_local(name)) {
        // In a push, or somebody has plans for it.
        Whose::InUse
    } else {
        Whose::Others
    }
}

/// Whether `name` is what the worker pushes this image under: in its registry, tagged with the commit
/// or the build key in the image's labels.
fn is_pushed(image: &ImageUsage, name: &str, registry: &str) -> bool {
    let in_registry = name.strip_prefix(registry).is_some_and(|rest| rest.starts_with('/'));
    let Some((_, tag)) = name.rsplit_once(':') else { return false };
    let (commit, key) = (image.label(REVISION_LABEL), image.label(KEY_LABEL));
    let of_key = key.is_some_and(|key| tag.strip_prefix("key-") == Some(key));
    in_registry && key.is_some() && (of_key || commit == Some(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tags: &[&str], digests: &[&str], key: Option<&str>) -> ImageUsage {
        let mut labels = serde_json::json!({REVISION_LABEL: "c0ffee"});
        if let Some(key) = key {
            labels[KEY_LABEL] = key.into();
        }
        let image = serde_json::json!({
            "Id": "sha256:0", "RepoTags": tags, "RepoDigests": digests, "Labels": labels,
        });
        serde_json::from_value(image).expect("an image")
    }

    #[test]
    fn only_what_this_service_made_and_nobody_else_named_is_its_own() {
        let local = "image-builder.local/u/a:c0ffee-0123456789ab";
        let pushed = "registry:5000/u/a:c0ffee";
        for (tags, digests, key, old, expected) in [
            (&[local][..], &[][..], Some("k"), false, Whose::Ours),
            // As earlier versions named them.
            (&["image-builder.local/built:k"], &[], Some("k"), false, Whose::Ours),
            (&[local, "image-builder.local/replaced:0"], &[], Some("k"), false, Whose::Ours),
            (&[], &[], Some("k"), false, Whose::Left),
            (&["<none>:<none>"], &["<none>@<none>"], Some("k"), false, Whose::Left),
            (&[], &[], None, true, Whose::Others),
            (&["image-builder.localhost/u/a:c0ffee"], &[], None, true, Whose::Others),
            (&["debian:12"], &[], None, true, Whose::Others),
            (&["mine:1"], &[], Some("k"), true, Whose::Others),
            (&[local], &["image-builder.local/u/a@sha256:1"], Some("k"), false, Whose::Ours),
            // Pulled, by tag or by digest.
            (&[pushed], &["registry:5000/u/a@sha256:1"], Some("k"), true, Whose::Others),
            (&[], &["registry:5000/u/a@sha256:1"], Some("k"), true, Whose::Others),
            (&[local], &["registry:5000/u/a@sha256:1"], Some("k"), true, Whose::Others),
            // In a push, and long after one that was killed.
            (&[local, pushed], &[], Some("k"), false, Whose::InUse),
            (&[local, pushed], &[], Some("k"), true, Whose::Ours),
            (&[pushed], &[], Some("k"), true, Whose::Ours),
            // The same with containerd's store, where pulling the last one would look no different.
            (&[local, pushed], &["registry:5000/u/a@sha256:0"], Some("k"), false, Whose::InUse),
            (&[local, pushed], &["registry:5000/u/a@sha256:0"], Some("k"), true, Whose::Ours),
            (&[pushed], &["registry:5000/u/a@sha256:0"], Some("k"), true, Whose::Others),
            (&[local, "b:1"], &["registry:5000/u/a@sha256:0"], Some("k"), true, Whose::Others),
            (&["registry:5000/u/a:key-k"], &[], Some("k"), true, Whose::Ours),
            (&["registry:5000/u/a:latest"], &[], Some("k"), true, Whose::Others),
            (&["registry:50001/u/a:c0ffee"], &[], Some("k"), true, Whose::Others),
            (&[pushed], &[], None, true, Whose::Others),
        ] {
            let found = whose(&image(tags, digests, key), "registry:5000", old);
            assert_eq!(found, expected, "{tags:?} {digests:?} {key:?} {old}");
        }
    }
}
