//! The builder port: makes images on an engine.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::planner::Plan;
use crate::model::build_log::BuildLog;
use crate::model::fault::Fault;
use crate::model::image::{BuildKey, BuiltImage, ImageLocation};

/// One image to build.
#[derive(Debug, Clone)]
pub struct BuildOrder {
    pub build_id: String,
    pub key: BuildKey,
    pub plan: Plan,
    pub labels: BTreeMap<String, String>,
}

/// Builds images.
#[async_trait]
pub trait ImageBuilder: Send + Sync + 'static {
    /// Builds the image, and tells where it is. Dropping the future stops the build on the engine.
    async fn build(&self, order: &BuildOrder, progress: &BuildLog) -> Result<ImageLocation, Fault>;

    /// The image of this key that the engine has from an earlier build.
    async fn find(&self, key: &BuildKey) -> Result<Option<BuiltImage>, Fault>;
}
