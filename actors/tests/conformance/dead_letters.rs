//! The dead letters in memory.

use image_builder_actors::ports::{Broker, DeadLetterStore, DeadLetters, Queue};
use image_builder_actors::testing::broker::FakeBroker;
use image_builder_actors::testing::conformance::dead_letters::World;
use image_builder_actors::testing::dead_letters::FakeDeadLetters;

struct InMemory {
    broker: FakeBroker,
    letters: FakeDeadLetters,
}

impl InMemory {
    fn new() -> Self {
        let broker = FakeBroker::default();
        Self { letters: FakeDeadLetters::new(broker.clone()), broker }
    }
}

impl World for InMemory {
    fn letters(&self) -> &dyn DeadLetters {
        &self.letters
    }

    fn store(&self) -> &dyn DeadLetterStore {
        &self.letters
    }

    fn broker(&self) -> &dyn Broker {
        &self.broker
    }

    async fn delete_build_queue(&self) {
        self.broker.delete_queue(Queue::Build);
    }
}

image_builder_actors::dead_letters_conformance!(InMemory::new());
