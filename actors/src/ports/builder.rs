//! The builder port: makes images on an engine, and pushes them from there.

use std::any::Any;
use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use super::planner::Plan;
use crate::model::build_log::BuildLog;
use crate::model::fault::Fault;
use crate::model::image::{BuildKey, BuiltImage, ImageLocation};
use crate::model::reference::ImageReference;
use crate::model::secret::Tripwire;

/// One image to build.
#[derive(Debug, Clone)]
pub struct BuildOrder {
    pub build_id: String,
    pub key: BuildKey,
    pub plan: Plan,
    pub labels: BTreeMap<String, String>,
    /// What the registry is to call the image.
    pub reference: ImageReference,
}

/// The right to have the engine work on a job that it may die of, until it is dropped.
pub struct Claim(#[expect(dead_code, reason = "kept to be dropped")] Box<dyn Any + Send>);

impl Claim {
    /// A claim that lasts as long as what an adapter holds it by.
    pub fn held_by(hold: impl Any + Send) -> Self {
        Self(Box::new(hold))
    }
}

/// A secret that an image shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// The secret, by the name that its owner knows it by.
    pub secret: String,
    /// Where it stands, such as "the variable `TOKEN`". Holds nothing of the secret.
    pub place: String,
}

/// Builds images, and pushes them. A fault says whether the engine died with the job in hand
/// ([`Fault::of_dead_engine`]), which is more than that one connection to it was lost.
pub trait ImageBuilder: Send + Sync + 'static {
    /// Names all that a build sees beside its plan: what it is sent of the context, and the base images as they
    /// are now. Plans of the same inputs and fingerprint give the same image. It begins with `inputs:`, so it
    /// is no commit. `None` = it cannot be told: then only the same commit gives the same image.
    ///
    /// # Errors
    /// The context cannot be sent.
    fn inputs<'a>(&'a self, plan: &'a Plan) -> BoxFuture<'a, Result<Option<String>, Fault>>;

    /// Builds the image, and returns where it is. `progress` is told when all steps are done and the image is left to be
    /// stored. Dropping the future stops the build on the engine.
    fn build<'a>(
        &'a self,
        order: &'a BuildOrder,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<ImageLocation, Fault>>;

    /// The image of this key that the engine has from an earlier build in the repository of `reference`. The
    /// key alone does not do: a build has its say in the labels of its image.
    fn find<'a>(
        &'a self,
        key: &'a BuildKey,
        reference: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<BuiltImage>, Fault>>;

    /// Claims the engine for a job that it may die of, so that of all such jobs of all workers one at a time
    /// is at work there. `None` = another one is. The claim ends when it is dropped, and with its worker.
    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, Fault>>;

    /// Looks for secrets in what an image shows of itself: its configuration and its history, and with `files`
    /// the files of its layers, within limits of time and size. `progress` hears what was not looked at.
    /// `None` = there are none. An image that the engine does not have any more is `engine_failed`.
    fn search<'a>(
        &'a self,
        image: &'a BuiltImage,
        wanted: &'a Tripwire,
        files: bool,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>>;

    /// Pushes an image that the engine has, and returns the digest under which the registry took it,
    /// as the engine reports it. Dropping the future ends the push.
    fn push<'a>(
        &'a self,
        image: &'a BuiltImage,
        reference: &'a ImageReference,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<String, Fault>>;
}
