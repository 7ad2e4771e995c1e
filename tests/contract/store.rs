//! The build store port on SQL.

use std::sync::Arc;
use std::time::Duration;

use image_builder::store::{Place, Store, StoreSettings, open};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::build_store::BuildStore;
use image_builder_actors::testing::conformance::build_store::World;
use tempfile::TempDir;

const BUDGET: u64 = 256 * 1024;

fn settings(place: Place) -> StoreSettings {
    StoreSettings { place, ttl: Duration::from_secs(30 * 24 * 60 * 60), budget: BUDGET }
}

/// A file, which one process writes.
struct File {
    store: Store,
    _directory: TempDir,
}

impl File {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("it's 100% odd?.db");
        let store = open(settings(Place::File(path))).expect("opened");
        Self { store, _directory: directory }
    }
}

impl World for File {
    fn worker(&self) -> Arc<dyn BuildStore> {
        Arc::new(self.store.clone())
    }

    fn budget(&self) -> u64 {
        BUDGET
    }
}

mod sqlite {
    image_builder_actors::build_store_conformance!(super::File::new());
}
