//! The build store in memory.

use std::sync::Arc;

use image_builder_actors::ports::build_store::BuildStore;
use image_builder_actors::testing::build_store::FakeBuildStore;
use image_builder_actors::testing::conformance::build_store::World;

struct InMemory(FakeBuildStore);

impl World for InMemory {
    fn worker(&self) -> Arc<dyn BuildStore> {
        Arc::new(self.0.clone())
    }

    fn budget(&self) -> u64 {
        self.0.budget
    }
}

image_builder_actors::build_store_conformance!(InMemory(FakeBuildStore::default()));
