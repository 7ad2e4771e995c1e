//! The outcome ledger in memory.

use std::sync::Arc;

use image_builder_actors::ports::OutcomeLedger;
use image_builder_actors::testing::conformance::outcome_ledger::World;
use image_builder_actors::testing::outcome_ledger::FakeLedger;

struct InMemory(FakeLedger);

impl World for InMemory {
    fn worker(&self) -> Arc<dyn OutcomeLedger> {
        Arc::new(self.0.clone())
    }

    async fn lose_connections(&self) {}
}

image_builder_actors::outcome_ledger_conformance!(InMemory(FakeLedger::default()));
