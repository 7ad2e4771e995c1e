//! The builder in memory.

use std::path::Path;

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{BuiltImage, RegistryImage};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::ports::{BuildOrder, ImageBuilder, Registry};
use image_builder_actors::testing::builder::{End, FakeBuilder, order};
use image_builder_actors::testing::conformance::builder::World;
use image_builder_actors::testing::registry::FakeRegistry;
use uuid::Uuid;

struct InMemory {
    builder: FakeBuilder,
    downed: FakeBuilder,
    registry: FakeRegistry,
}

impl InMemory {
    fn new() -> Self {
        let (downed, registry) = (FakeBuilder::default(), FakeRegistry::default());
        downed.next().fail(1, Fault::new(StageName::Builder, Reason::EngineDown, "It is down."));
        Self { builder: FakeBuilder::pushing_to(registry.clone()), downed, registry }
    }

    fn scripted(&self, output: &str, end: End) -> BuildOrder {
        let reference = ImageReference::for_build("registry", "user", "application", "c0ffee");
        let order = order(Path::new("/nonexistent"), reference);
        self.builder.script(&order.build_id, output, end);
        order
    }
}

impl World for InMemory {
    fn builder(&self) -> &dyn ImageBuilder {
        &self.builder
    }

    fn downed(&self) -> &dyn ImageBuilder {
        &self.downed
    }

    fn good(&self) -> BuildOrder {
        self.scripted("", End::Image)
    }

    fn small(&self) -> BuildOrder {
        self.good()
    }

    fn babbling(&self, secret: &str) -> BuildOrder {
        self.scripted(&format!("the secret is {secret}"), End::Image)
    }

    fn failing(&self) -> BuildOrder {
        let message = "Step `RUN exit 3` failed with exit code 3.";
        let fault = Fault::new(StageName::Builder, Reason::BuildFailed, message);
        self.scripted("last words", End::Fault(fault.at_step("RUN exit 3")))
    }

    fn senseless(&self) -> BuildOrder {
        let fault = Fault::new(StageName::Builder, Reason::InvalidPlan, "It cannot work.");
        self.scripted("", End::Fault(fault))
    }

    fn endless(&self) -> BuildOrder {
        self.scripted("", End::Never)
    }

    async fn until_running(&self, order: &BuildOrder) {
        self.builder.until_running(&order.build_id).await;
    }

    async fn until_stopped(&self, order: &BuildOrder) {
        self.builder.until_stopped(&order.build_id).await;
    }

    async fn lose(&self, image: &BuiltImage) {
        self.builder.lose(&image.id);
    }

    fn reference(&self) -> ImageReference {
        ImageReference::for_build("in-memory:1", "user", &Uuid::new_v4().to_string(), "c0ffee")
    }

    async fn stored(&self, reference: &ImageReference) -> Option<RegistryImage> {
        self.registry.find(reference).await.expect("it is up")
    }

    fn reference_out_of_reach(&self) -> ImageReference {
        let fault = Fault::new(StageName::Pusher, Reason::RegistryDown, "It is down.");
        self.registry.set_down(Some(fault));
        self.reference()
    }
}

image_builder_actors::builder_conformance!(InMemory::new());
