//! The registry port: finds the images that a registry has, and tags them.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use super::builder::Exposed;
use crate::model::build_log::BuildLog;
use crate::model::fault::Fault;
use crate::model::image::RegistryImage;
use crate::model::reference::ImageReference;
use crate::model::secret::Tripwire;

/// A tag that a registry does not take, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct RefusedTag {
    pub tag: String,
    pub fault: Fault,
}

/// Finds images in a registry, and tags them.
pub trait Registry: Send + Sync + 'static {
    /// The image that the registry has under a tag or digest.
    fn find<'a>(
        &'a self,
        reference: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<RegistryImage>, Fault>>;

    /// Puts these tags on an image that was found in the reference's repository. A tag that stands for it
    /// already is put. Returns those that the registry does not take this way, be it that the image is
    /// gone: pushing it under them may do.
    ///
    /// # Errors
    /// `registry_refused` where a tag stands for another image, and the registry lets no tag be moved.
    fn tag<'a>(
        &'a self,
        image: &'a RegistryImage,
        reference: &'a ImageReference,
        tags: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<RefusedTag>, Fault>>;

    /// The labels of an image that the reference's repository has.
    fn labels<'a>(
        &'a self,
        reference: &'a ImageReference,
        image: &'a RegistryImage,
    ) -> BoxFuture<'a, Result<BTreeMap<String, String>, Fault>>;

    /// Looks for secrets in what an image shows of itself, as
    /// [`ImageBuilder::search`](super::ImageBuilder::search) does on an engine: those of all its platforms.
    fn search<'a>(
        &'a self,
        image: &'a RegistryImage,
        reference: &'a ImageReference,
        wanted: &'a Tripwire,
        files: bool,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>>;

    /// Removes an image from the reference's repository, with all tags that stand for it. Many registries refuse
    /// that unless they are told otherwise, which is no error.
    fn remove<'a>(
        &'a self,
        reference: &'a ImageReference,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<(), Fault>>;
}
