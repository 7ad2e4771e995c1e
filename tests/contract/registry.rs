//! The registry port: what it promises, and what only a real one can show.

mod adapter;
pub(crate) mod server;
mod upload;

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use image_builder::registry::{RegistryClient, RegistryCredentials, RegistrySettings, RegistryUrl};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::image::RegistryImage;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::{Secret, Tripwire};
use image_builder_actors::ports::{Exposed, RefusedTag, Registry};
use image_builder_actors::testing::conformance::registry::World;

use self::server::USER;
use self::upload::upload;
use crate::http_server::{HttpServer, answer};
use crate::stand_in::with_immutable_tags;

/// A registry that lets everybody in.
pub(crate) const OPEN: &str = "localhost:5000";
/// A registry that wants a password.
pub(crate) const CLOSED: &str = "localhost:5001";
/// The password that it wants.
pub(crate) const CLOSED_PASSWORD: &str = "builder-secret";
/// Nothing listens there.
pub(crate) const NOWHERE: &str = "127.0.0.1:1";

pub(crate) fn unique() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A repository of its own in a registry.
pub(crate) fn reference_in(registry: &str) -> ImageReference {
    let commit = format!("{}00000000", unique());
    ImageReference::for_build(registry, "image-builder-tests", &unique(), &commit)
}

mod conformance {
    use super::{CLOSED, CLOSED_PASSWORD, OPEN, Real, settings, with_password};

    image_builder_actors::registry_conformance!(Real::new(settings(OPEN)).await);

    mod with_a_password {
        use super::*;

        image_builder_actors::registry_conformance!(
            Real::new(with_password(settings(CLOSED), CLOSED_PASSWORD)).await
        );
    }
}

/// A registry that runs on this machine.
struct Real {
    client: RegistryClient,
    settings: RegistrySettings,
}

impl Real {
    async fn new(settings: RegistrySettings) -> Self {
        let client = client(settings.clone());
        if let Err(fault) = client.ping().await {
            panic!("this test needs the registry of .devcontainer/stack.sh: {fault}");
        }
        Self { client, settings }
    }
}

impl World for Real {
    fn registry(&self) -> &dyn Registry {
        &self.client
    }

    fn reference(&self) -> ImageReference {
        reference_in(&self.settings.url.to_string())
    }

    async fn store(
        &self,
        reference: &ImageReference,
        labels: BTreeMap<String, String>,
    ) -> RegistryImage {
        upload(&self.settings, reference, &labels).await
    }

    async fn with_immutable_tags(&self) -> (Box<dyn Registry>, String) {
        // The registry of this machine has no such setting.
        let front = immutable_tags_before(self.settings.url.api_base()).await;
        let settings = RegistrySettings { url: url(&front.host()), ..self.settings.clone() };
        let host = front.host();
        (Box::new(Fronted { client: client(settings), _front: front }), host)
    }

    fn out_of_reach(&self) -> (Box<dyn Registry>, ImageReference) {
        let settings = RegistrySettings { url: url(NOWHERE), ..self.settings.clone() };
        (Box::new(client(settings)), reference_in(NOWHERE))
    }
}

/// A real registry behind a front that refuses tags that are there.
async fn immutable_tags_before(real: String) -> HttpServer {
    HttpServer::answering(move |request| {
        with_immutable_tags(request, &real, || answer(412, &[], ""))
    })
    .await
}

/// A client, and the front that it speaks to.
struct Fronted {
    client: RegistryClient,
    _front: HttpServer,
}

impl Registry for Fronted {
    fn find<'a>(
        &'a self,
        reference: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<RegistryImage>, Fault>> {
        self.client.find(reference)
    }

    fn tag<'a>(
        &'a self,
        image: &'a RegistryImage,
        reference: &'a ImageReference,
        tags: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<RefusedTag>, Fault>> {
        self.client.tag(image, reference, tags)
    }

    fn labels<'a>(
        &'a self,
        reference: &'a ImageReference,
        image: &'a RegistryImage,
    ) -> BoxFuture<'a, Result<BTreeMap<String, String>, Fault>> {
        self.client.labels(reference, image)
    }

    fn search<'a>(
        &'a self,
        image: &'a RegistryImage,
        reference: &'a ImageReference,
        wanted: &'a Tripwire,
        files: bool,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>> {
        self.client.search(image, reference, wanted, files, progress)
    }

    fn remove<'a>(
        &'a self,
        reference: &'a ImageReference,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        self.client.remove(reference, digest)
    }
}

fn url(text: &str) -> RegistryUrl {
    RegistryUrl::parse(text).expect("an address")
}

pub(crate) fn settings(registry: &str) -> RegistrySettings {
    RegistrySettings::new(url(registry))
}

pub(crate) fn with_password(settings: RegistrySettings, password: &str) -> RegistrySettings {
    let credentials =
        RegistryCredentials { username: USER.to_owned(), password: Secret::new(password) };
    RegistrySettings { credentials: Some(credentials), ..settings }
}

pub(crate) fn client(settings: RegistrySettings) -> RegistryClient {
    rustls::crypto::ring::default_provider().install_default().ok();
    RegistryClient::new(settings).expect("a client")
}
