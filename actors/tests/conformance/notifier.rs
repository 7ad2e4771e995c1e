//! The notifier in memory.

use std::time::Duration;

use image_builder_actors::ports::{Notifier, NotifyError};
use image_builder_actors::testing::conformance::notifier::{Taken, World};
use image_builder_actors::testing::notifier::FakeNotifier;

struct InMemory(FakeNotifier);

impl World for InMemory {
    fn notifier(&self) -> &dyn Notifier {
        &self.0
    }

    fn refuse_next(&self, retry_after: Option<Duration>) {
        self.0.script.fail(1, NotifyError { message: "not now".to_owned(), retry_after });
    }

    fn taken(&self) -> Vec<Taken> {
        self.0.taken.all().into_iter().map(|taken| (taken.id, taken.body)).collect()
    }
}

image_builder_actors::notifier_conformance!(InMemory(FakeNotifier::default()));
