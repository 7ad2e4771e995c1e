//! Build orders with their contexts, and a guard over the engine that builds them.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use image_builder::engine::docker::DockerEngine;
use image_builder::engine::docker::disk::size::Size;
use image_builder::engine::docker::disk::{DiskGuard, DiskSettings, Young};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::image::{BuildKey, BuiltImage};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::ports::{BuildOrder, ImageBuilder};
use image_builder_actors::testing::builder::{on_engine, order};
use tempfile::TempDir;

use crate::engine::SmallEngine;

pub(crate) const MB: u64 = 1_000_000;

/// A text that no other test uses.
pub(crate) fn unique() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// An order with the context that it needs.
pub(crate) struct Order {
    pub(crate) order: BuildOrder,
    _context: TempDir,
}

impl Order {
    /// An image of one file of this many bytes.
    pub(crate) fn of_bytes(bytes: u64) -> Self {
        Self::new("FROM scratch\nCOPY data /data\n", bytes)
    }

    /// A build of this Dockerfile, with a file `data` of this many bytes beside it.
    pub(crate) fn new(dockerfile: &str, bytes: u64) -> Self {
        let context = tempfile::tempdir().expect("a directory");
        write(&context.path().join("data"), bytes);
        std::fs::write(context.path().join("Dockerfile"), dockerfile).expect("written");
        let reference = ImageReference::for_build("localhost:5000", "tests", &unique(), "c0ffee00");
        Self { order: order(context.path(), reference), _context: context }
    }

    pub(crate) fn key(&self) -> &BuildKey {
        &self.order.key
    }

    /// What the engine calls the image; `None` = it does not have it.
    pub(crate) async fn name(&self, engine: &DockerEngine) -> Option<String> {
        let found = engine.local_image(self.key(), &self.order.reference).await;
        found.expect("the engine answers").map(|image| image.name)
    }

    /// Looks for the image as a job does, which uses it.
    pub(crate) async fn find(&self, builder: &dyn ImageBuilder) -> Option<BuiltImage> {
        builder.find(self.key(), &self.order.reference).await.expect("an answer")
    }

    pub(crate) async fn build(&self, builder: &dyn ImageBuilder) -> Result<BuiltImage, Fault> {
        let progress = BuildLog::new(&self.order.build_id, Redactor::default());
        builder.build(&self.order, &progress).await.map(on_engine)
    }
}

/// A file that no other one equals, and that really takes up room.
fn write(path: &Path, bytes: u64) {
    let mut file = File::create(path).expect("created");
    let mut block = vec![b'.'; MB as usize];
    let mark = unique();
    block[..mark.len()].copy_from_slice(mark.as_bytes());
    for _ in 0..bytes / MB {
        file.write_all(&block).expect("written");
    }
    file.write_all(&block[..(bytes % MB) as usize]).expect("written");
}

/// A guard over an engine, with watermarks out of the way and nothing too young to go, unless
/// `change` says otherwise.
pub(crate) fn guard(
    engine: &Arc<DockerEngine>,
    data_dir: &Path,
    change: impl FnOnce(&mut DiskSettings),
) -> DiskGuard {
    let mark = |text: &str| text.parse().expect("a watermark");
    let mut settings = DiskSettings::new(mark("1%,1MB"), mark("2%,2MB"), Size(0));
    settings.young = Young { image: Duration::ZERO, cache: Duration::ZERO };
    change(&mut settings);
    DiskGuard::new(settings, data_dir, engine.clone(), "localhost:5000".to_owned())
}

/// Watermarks that pruning the build cache alone does not reach, and a budget that never matters.
pub(crate) fn prune_for_room(settings: &mut DiskSettings) {
    settings.low = "150MB".parse().expect("a watermark");
    settings.high = "450MB".parse().expect("a watermark");
    settings.budget = Size(10_000 * MB);
}

/// A guard over a small engine, as a worker has one.
pub(crate) struct Guarded {
    pub(crate) guard: DiskGuard,
    pub(crate) builder: Arc<dyn ImageBuilder>,
    _data_dir: TempDir,
}

impl Guarded {
    /// See [`guard`].
    pub(crate) fn new(small: &SmallEngine, change: impl FnOnce(&mut DiskSettings)) -> Self {
        let data_dir = tempfile::tempdir().expect("a directory");
        let guard = guard(&small.engine, data_dir.path(), change);
        Self { builder: Arc::new(guard.clone()), guard, _data_dir: data_dir }
    }
}

/// Whether the engine has the image of an order.
pub(crate) async fn has(small: &SmallEngine, order: &Order) -> bool {
    order.name(&small.engine).await.is_some()
}
