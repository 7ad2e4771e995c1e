//! The maker of tokens in memory.

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::ports::Credentials;
use image_builder_actors::testing::conformance::credentials::World;
use image_builder_actors::testing::credentials::FakeCredentials;

struct InMemory(FakeCredentials);

impl World for InMemory {
    fn credentials(&self) -> &dyn Credentials {
        &self.0
    }

    async fn know(&self, token: &str) {
        self.0.know(self.reference(), token);
    }

    fn reference(&self) -> &'static str {
        "a-reference"
    }

    async fn fail(&self) {
        let fault = Fault::new(StageName::Connector, Reason::ForgeFailed, "It failed.");
        self.0.script.fail(1, fault);
    }
}

image_builder_actors::credentials_conformance!(InMemory(FakeCredentials::default()));
