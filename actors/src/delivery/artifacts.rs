//! The images of requests in the registry: what they are called there, and how they are found again.
//!
//! | tag | stands for | read |
//! |---|---|---|
//! | the full commit | the last image of that commit | by people and their tools |
//! | `key-<build key>` | the image of these inputs | before a build, to reuse it |
//! | `build-<hash>` | the image of this build: of this user, id and request | before a build that was delivered before is worked on, and before its failure is published |
//!
//! The last one is what a worker goes by that knows nothing of a build but its request: whatever a
//! crash took with it, an image that was pushed is never built again, and a build that may have been
//! notified as ready is never notified as failed. It tells the commit by its labels. So an image that was
//! built of another commit with the same inputs does not get it: after a crash it is found by its key.
//!
//! The last two are believed only beside their [seals](Seal), which are tags as well.

use std::collections::BTreeMap;
use std::slice;
use std::sync::Arc;

use time::format_description::well_known::Rfc3339;

use crate::delivery::seal::Seal;
use crate::model::build_log::BuildLog;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::history::Planned;
use crate::model::image::{
    BUILDER_LABEL, BuildKey, BuiltImage, CREATED_LABEL, ImageLocation, KEY_LABEL, REVISION_LABEL,
    RegistryImage, SOURCE_LABEL,
};
use crate::model::reference::ImageReference;
use crate::model::request::{BuildRequest, BuilderKind};
use crate::ports::{Exposed, FetchedSource, ImageBuilder, Plan, RefusedTag, Registry};

/// The images of requests, wherever they are. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    /// What images are pushed from.
    pub engine: Arc<dyn ImageBuilder>,
    pub registry: Arc<dyn Registry>,
    /// The registry's name in references.
    pub registry_name: String,
    /// By which tags are known that a worker put.
    pub seal: Seal,
}

/// An image that is looked at before anybody is told of it.
#[derive(Clone, Copy)]
enum Looked<'a> {
    OnEngine(&'a BuiltImage),
    InRegistry(&'a RegistryImage),
}

/// The image that a request asked for, before the registry has it under the request's names.
#[derive(Debug)]
pub struct Artifact {
    pub commit: String,
    pub planned: Planned,
    pub location: ImageLocation,
    /// Whether an image of the same inputs stands in for a build.
    pub reused: bool,
    /// Whether its labels are known to name this commit. Any other may have been built of another commit with the
    /// same inputs, which they then name. Of one in the registry they were read when it was found.
    pub labelled: bool,
}

/// An image that is in the registry, and how it came there.
#[derive(Debug)]
pub struct Ready {
    pub image: RegistryImage,
    pub reference: ImageReference,
    pub commit: String,
    pub builder: BuilderKind,
    /// Whether an image of the same inputs stood in for a build.
    pub reused: bool,
}

impl Images {
    /// The image of these inputs, and the commit that it was built of. One that does not say so of itself, or to
    /// which no worker gave the tag, is none.
    ///
    /// # Errors
    /// The registry cannot be asked.
    pub async fn of_key(
        &self,
        request: &BuildRequest,
        key: &BuildKey,
    ) -> Result<Option<(RegistryImage, Option<String>)>, Fault> {
        let reference = self.reference(request, &key.tag());
        let Some(image) = self.sealed(&reference).await? else { return Ok(None) };
        let mut labels = self.registry.labels(&reference, &image).await?;
        if labels.get(KEY_LABEL).map(String::as_str) != Some(key.as_str()) {
            let digest = image.digest;
            tracing::warn!(%reference, digest, "the tag was moved to an image of other inputs");
            return Ok(None);
        }
        Ok(Some((image, labels.remove(REVISION_LABEL))))
    }

    /// The image of this very build, which has its commit's tag then. `known` = the commit that the build is of, where
    /// that is known: what was published earlier under the same id may be of another one.
    ///
    /// # Errors
    /// The registry cannot be asked.
    pub async fn of_build(
        &self,
        request: &BuildRequest,
        known: Option<&str>,
    ) -> Result<Option<Ready>, Fault> {
        let reference = self.reference(request, &build_tag(request));
        let Some(image) = self.sealed(&reference).await? else { return Ok(None) };
        let labels = self.registry.labels(&reference, &image).await?;
        let builder = labels.get(BUILDER_LABEL).and_then(|name| BuilderKind::from_name(name));
        let (Some(commit), Some(builder)) = (labels.get(REVISION_LABEL).cloned(), builder) else {
            tracing::warn!(%reference, "an image without the labels of this service is left alone");
            return Ok(None);
        };
        if known.is_some_and(|known| known != commit) {
            return Ok(None);
        }
        let reference = self.reference(request, &commit);
        // All tags are put at once: a worker that died meanwhile may have left this one out.
        if self.registry.find(&reference).await?.is_none() {
            self.tag(&image, &reference, slice::from_ref(&commit)).await?;
        }
        Ok(Some(Ready { image, reference, commit, builder, reused: false }))
    }

    /// The image under a tag that a worker put on it.
    async fn sealed(&self, reference: &ImageReference) -> Result<Option<RegistryImage>, Fault> {
        let Some(image) = self.registry.find(reference).await? else { return Ok(None) };
        let seal = reference.with_tag(&self.seal.of(reference, &image.digest));
        let sealed = self.registry.find(&seal).await?;
        if sealed.is_some_and(|sealed| sealed.digest == image.digest) {
            return Ok(Some(image));
        }
        let digest = image.digest;
        tracing::warn!(%reference, digest, "no worker with this REUSE_SECRET put the tag: the image is not used");
        Ok(None)
    }

    /// These tags, each with its seal on this digest.
    fn with_seals(&self, reference: &ImageReference, tags: &[String], digest: &str) -> Vec<String> {
        let seal = |tag: &String| self.seal.of(&reference.with_tag(tag), digest);
        tags.iter().flat_map(|tag| [seal(tag), tag.clone()]).collect()
    }

    /// Sees to it that the registry has the image under the request's names: one on the engine is
    /// pushed, one that is there already only gets the tags.
    ///
    /// # Errors
    /// The engine or the registry fails, or no longer has the image.
    pub async fn publish(
        &self,
        request: &BuildRequest,
        artifact: Artifact,
        progress: &BuildLog,
    ) -> Result<Ready, Fault> {
        let Artifact { commit, planned, location, reused, labelled } = artifact;
        let Planned { key, builder } = planned;
        let reference = self.reference(request, &commit);
        let mut tags = Vec::new();
        // An image that is reused was found by its key's tag.
        if !reused {
            tags.push(key.tag());
        }
        if labelled {
            tags.push(build_tag(request));
        }
        let image = match location {
            ImageLocation::OnEngine(built) => {
                self.refuse_exposed(request, Looked::OnEngine(&built), &reference, progress)
                    .await?;
                progress.note(format!("pushing {reference}"));
                let image = self.push(&built, &reference, &tags, progress).await?;
                if !labelled && self.is_labelled(&reference, &image, &commit).await? {
                    let tags = [build_tag(request)];
                    let tags = self.with_seals(&reference, &tags, &image.digest);
                    self.tag(&image, &reference, &tags).await?;
                }
                image
            }
            ImageLocation::Pushed { digest } => {
                let image = self.pushed(&reference, &digest).await?;
                let looked = Looked::InRegistry(&image);
                self.refuse_exposed(request, looked, &reference, progress).await?;
                let mut tags = self.with_seals(&reference, &tags, &digest);
                tags.push(reference.tag.clone());
                self.tag(&image, &reference, &tags).await?;
                progress.note(format!("{reference} is {digest}, which the engine has pushed"));
                image
            }
            ImageLocation::InRegistry(image) => {
                let mut tags = self.with_seals(&reference, &tags, &image.digest);
                tags.push(reference.tag.clone());
                self.tag(&image, &reference, &tags).await?;
                image
            }
        };
        Ok(Ready { image, reference, commit, builder, reused })
    }

    /// Whether an image's labels name this commit. Only then is it found again as the image of a build.
    async fn is_labelled(
        &self,
        reference: &ImageReference,
        image: &RegistryImage,
        commit: &str,
    ) -> Result<bool, Fault> {
        let labels = self.registry.labels(reference, image).await?;
        Ok(labels.get(REVISION_LABEL).is_some_and(|revision| revision == commit))
    }

    /// Ends a build whose image shows a secret of its request. The forge's token never gets to a build, so
    /// it can only stand where the request itself put it: in no file, but perhaps in a variable.
    async fn refuse_exposed(
        &self,
        request: &BuildRequest,
        looked: Looked<'_>,
        reference: &ImageReference,
        progress: &BuildLog,
    ) -> Result<(), Fault> {
        let (wanted, files) = (request.tripwire(), !request.plan.secrets.is_empty());
        if wanted.is_empty() {
            return Ok(());
        }
        let found = match looked {
            Looked::OnEngine(built) => self.engine.search(built, &wanted, files, progress).await?,
            Looked::InRegistry(image) => {
                self.registry.search(image, reference, &wanted, files, progress).await?
            }
        };
        let Some(Exposed { secret, place }) = found else { return Ok(()) };
        if let Looked::InRegistry(image) = looked
            && let Err(fault) = self.registry.remove(reference, &image.digest).await
        {
            // It has no tag, and nobody is told its digest.
            tracing::warn!(%fault, digest = image.digest, "an image with a secret stays in the registry");
        }
        let message = format!(
            "The image was not published, since it holds {secret} in {place}. Whoever may pull it could \
             read that, even where a later step removes it. Mount a secret in the steps that need it, \
             and neither copy it nor give its value to a variable or build argument; replace it if \
             others may have seen it.",
        );
        Err(Fault::new(StageName::Pusher, Reason::SecretInImage, message))
    }

    /// What the registry has under the digest by which a builder pushed.
    async fn pushed(
        &self,
        reference: &ImageReference,
        digest: &str,
    ) -> Result<RegistryImage, Fault> {
        self.registry.find(&reference.with_tag(digest)).await?.ok_or_else(|| {
            let why = format!("the registry does not have {digest}, which it took");
            failed(format!("cannot trust the push of `{reference}`: {why}"))
        })
    }

    /// Pushes once, and has the registry put the further tags and their seals on what it got: that sends a few
    /// hundred bytes in place of a second push.
    async fn push(
        &self,
        built: &BuiltImage,
        reference: &ImageReference,
        further_tags: &[String],
        progress: &BuildLog,
    ) -> Result<RegistryImage, Fault> {
        let digest = self.push_once(built, reference, progress).await?;
        let failed = |why| failed(format!("cannot trust the push of `{reference}`: {why}"));
        let pushed = self.pushed(reference, &digest).await?;
        if !is_of(&pushed, built) {
            return Err(failed(format!(
                "{digest} is not the image {}; somebody else pushed under the same name",
                built.id,
            )));
        }
        let further_tags = self.with_seals(reference, further_tags, &digest);
        for RefusedTag { tag, .. } in self.registry.tag(&pushed, reference, &further_tags).await? {
            let same = self.push_once(built, &reference.with_tag(&tag), progress).await?;
            if same != digest {
                return Err(failed(format!("under the tag `{tag}` it became {same}")));
            }
        }
        Ok(pushed)
    }

    /// Pushes under one tag. A registry that lets no tag be moved may refuse one that stands for this very
    /// image, such as after a crash between the push and its outcome: then there is nothing to push.
    async fn push_once(
        &self,
        built: &BuiltImage,
        reference: &ImageReference,
        progress: &BuildLog,
    ) -> Result<String, Fault> {
        let fault = match self.engine.push(built, reference, progress).await {
            Err(fault) if fault.reason == Reason::RegistryRefused => fault,
            result => return result,
        };
        match self.registry.find(reference).await {
            Ok(Some(standing)) if is_of(&standing, built) => Ok(standing.digest),
            // The engine hands on the registry's words alone, which need not say why.
            Ok(Some(standing)) => {
                let message = format!(
                    "{}; the tag stands for {}, and is not moved where tags are immutable",
                    fault.message, standing.digest,
                );
                Err(Fault { message, ..fault })
            }
            // What was refused says more than that it cannot be looked up.
            Ok(None) | Err(_) => Err(fault),
        }
    }

    /// Tags an image that no engine here needs to have.
    async fn tag(
        &self,
        image: &RegistryImage,
        reference: &ImageReference,
        tags: &[String],
    ) -> Result<(), Fault> {
        let refused = self.registry.tag(image, reference, tags).await?;
        let Some(RefusedTag { fault, .. }) = refused.into_iter().next() else { return Ok(()) };
        let digest = &image.digest;
        match self.registry.find(&reference.with_tag(digest)).await? {
            Some(_) => Err(fault),
            None => Err(failed(format!(
                "cannot tag `{reference}`: the registry no longer has {digest}"
            ))),
        }
    }

    /// What the registry calls the application's image with this tag, such as the commit.
    pub(crate) fn reference(&self, request: &BuildRequest, tag: &str) -> ImageReference {
        ImageReference::for_build(
            &self.registry_name,
            &request.user_id,
            &request.application_id,
            tag,
        )
    }
}

/// Whether the registry's image is the engine's. Engines that keep their images as manifests know them by
/// the manifest's digest.
fn is_of(stored: &RegistryImage, built: &BuiltImage) -> bool {
    [&stored.image_id, &stored.digest].contains(&&built.id)
}

fn failed(message: String) -> Fault {
    Fault::new(StageName::Pusher, Reason::RegistryFailed, message)
}

/// The tag of a build's own image. What the request asks for is part of its name: an image that another
/// request under the same id has left is not found by this one.
pub fn build_tag(request: &BuildRequest) -> String {
    format!("build-{}", request.identity().hash("image", [request.meaning()]))
}

/// An image's labels: the OCI image specification's annotations, and two of our own. Nothing of
/// the single build (its id, its time) is in them, so that equal inputs give equal images.
pub fn labels(source: &FetchedSource, plan: &Plan, key: &BuildKey) -> BTreeMap<String, String> {
    let created = source.committed_at.format(&Rfc3339).unwrap_or_default();
    [
        (SOURCE_LABEL, source.url.as_str()),
        (REVISION_LABEL, source.commit.as_str()),
        (CREATED_LABEL, created.as_str()),
        ("org.opencontainers.image.version", source.version.as_str()),
        (KEY_LABEL, key.as_str()),
        (BUILDER_LABEL, plan.builder.as_str()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}
