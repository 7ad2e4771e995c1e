//! The registry port: stores images, and tells what it stores.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::model::build_log::BuildLog;
use crate::model::fault::Fault;
use crate::model::image::{BuiltImage, RegistryImage};
use crate::model::reference::ImageReference;

/// Stores images and tells what it stores.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// The image that the registry has under a tag or digest.
    async fn find(&self, reference: &ImageReference) -> Result<Option<RegistryImage>, Fault>;

    /// Pushes an image under the reference's tag and under `further_tags`, and asks the registry
    /// for the digest that it was told.
    async fn push(
        &self,
        image: &BuiltImage,
        reference: &ImageReference,
        further_tags: &[String],
        progress: &BuildLog,
    ) -> Result<RegistryImage, Fault>;

    /// Puts the reference's tag and `further_tags` on an image that the repository has already.
    async fn tag(
        &self,
        image: &RegistryImage,
        reference: &ImageReference,
        further_tags: &[String],
    ) -> Result<(), Fault>;

    /// The labels of an image that the reference's repository has.
    async fn labels(
        &self,
        reference: &ImageReference,
        image: &RegistryImage,
    ) -> Result<BTreeMap<String, String>, Fault>;
}
