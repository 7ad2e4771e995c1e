//! The registry in memory.

use std::collections::BTreeMap;

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{RegistryImage, digest_of};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::ports::Registry;
use image_builder_actors::testing::conformance::registry::World;
use image_builder_actors::testing::registry::{FakeRegistry, no_manifest};
use uuid::Uuid;

struct InMemory(FakeRegistry);

impl World for InMemory {
    fn registry(&self) -> &dyn Registry {
        &self.0
    }

    fn reference(&self) -> ImageReference {
        ImageReference::for_build("in-memory:1", "user", &Uuid::new_v4().to_string(), "c0ffee")
    }

    async fn store(
        &self,
        reference: &ImageReference,
        labels: BTreeMap<String, String>,
    ) -> RegistryImage {
        let [digest, image_id] = [(); 2].map(|()| digest_of(Uuid::new_v4().as_bytes()));
        let image = RegistryImage { digest, image_id, size_bytes: 1, manifest: no_manifest() };
        self.0.store(&image, reference, labels).expect("it is up");
        image
    }

    async fn with_immutable_tags(&self) -> (Box<dyn Registry>, String) {
        self.0.make_tags_immutable();
        (Box::new(self.0.clone()), self.reference().registry)
    }

    fn out_of_reach(&self) -> (Box<dyn Registry>, ImageReference) {
        let fault = Fault::new(StageName::Pusher, Reason::RegistryDown, "it is down");
        self.0.set_down(Some(fault));
        (Box::new(self.0.clone()), self.reference())
    }
}

image_builder_actors::registry_conformance!(InMemory(FakeRegistry::default()));
