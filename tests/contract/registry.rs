//! The registry port.

mod adapter;
mod engine;
mod server;

use async_trait::async_trait;
use image_builder::registry::{RegistryClient, RegistryCredentials, RegistrySettings, RegistryUrl};
use image_builder_actors::delivery::artifacts::{BUILDER_LABEL, REVISION_LABEL};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{BuildKey, BuiltImage, RegistryImage};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::request::BuilderKind;
use image_builder_actors::model::secret::{Redactor, Secret};
use image_builder_actors::ports::Registry;
use image_builder_actors::testing::registry::FakeRegistry;

use self::engine::Engine;
use self::server::{USER, digest_of};

/// A registry that lets everybody in.
const OPEN: &str = "localhost:5000";
/// A registry that wants a password.
const CLOSED: &str = "localhost:5001";
/// Nothing listens there.
const NOWHERE: &str = "127.0.0.1:1";

fn progress() -> BuildLog {
    BuildLog::new("a build of the tests", Redactor::default())
}

fn key() -> BuildKey {
    serde_json::from_str(r#""0123456789abcdef""#).expect("a key is a text")
}

fn unique() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A repository of its own in a registry.
fn reference_in(registry: &str) -> ImageReference {
    let commit = format!("{}00000000", unique());
    ImageReference::for_build(registry, "image-builder-tests", &unique(), &commit)
}

// ---- what holds for every registry ------------------------------------------------------------

/// A registry, and an engine that pushes to it.
#[async_trait]
trait World: Sized {
    type Port: Registry;
    async fn new() -> Self;
    fn registry(&self) -> &Self::Port;
    /// A reference in a repository that nothing was pushed to.
    fn reference(&self) -> ImageReference;
    /// An image that the engine has, with a content of its own.
    async fn image(&mut self) -> BuiltImage;
    /// The same, labelled by a build of this commit from a Dockerfile.
    async fn labelled_image(&mut self, commit: &str) -> BuiltImage;
    /// An image that the engine no longer has.
    async fn lost_image(&mut self) -> BuiltImage;
    /// The same registry, out of reach.
    async fn out_of_reach(&self) -> (Box<dyn Registry>, ImageReference);
}

/// Pushes with no further tags.
async fn push(
    registry: &dyn Registry,
    image: &BuiltImage,
    reference: &ImageReference,
) -> Result<RegistryImage, Fault> {
    registry.push(image, reference, &[], &progress()).await
}

async fn what_was_never_pushed_is_not_found<W: World>() {
    let world = W::new().await;
    let reference = world.reference();
    assert_eq!(world.registry().find(&reference).await, Ok(None));
    let digest = digest_of(b"of nothing in particular");
    assert_eq!(world.registry().find(&reference.with_tag(&digest)).await, Ok(None));
}

async fn a_pushed_image_is_found_by_tag_by_digest_and_by_every_further_tag<W: World>() {
    let mut world = W::new().await;
    let (image, reference) = (world.image().await, world.reference());
    let further = [key().tag(), "stable".to_owned()];
    let pushed = world
        .registry()
        .push(&image, &reference, &further, &progress())
        .await
        .expect("the push succeeds");

    assert_eq!(pushed.image_id, image.id);
    assert!(pushed.digest.starts_with("sha256:") && pushed.digest.len() == 71, "{pushed:?}");
    assert!(pushed.size_bytes > 0);
    for tag in further.iter().chain([&reference.tag, &pushed.digest]) {
        let found = world.registry().find(&reference.with_tag(tag)).await;
        assert_eq!(found, Ok(Some(pushed.clone())), "{tag}");
    }
    let other_tag = reference.with_tag("other");
    assert_eq!(world.registry().find(&other_tag).await, Ok(None));
}

async fn a_further_tag_is_put_on_an_image_that_is_there_and_on_no_other<W: World>() {
    let mut world = W::new().await;
    let (image, reference) = (world.image().await, world.reference());
    let pushed = push(world.registry(), &image, &reference).await.expect("the push succeeds");
    let other = reference.with_tag("other");
    let further = ["further".to_owned()];
    world.registry().tag(&pushed, &other, &further).await.expect("the image is there");
    for tag in [&other.tag, &further[0]] {
        let found = world.registry().find(&reference.with_tag(tag)).await;
        assert_eq!(found, Ok(Some(pushed.clone())), "{tag}");
    }

    let missing = RegistryImage { digest: digest_of(b"of nothing in particular"), ..pushed };
    let fault = world.registry().tag(&missing, &reference.with_tag("none"), &[]).await;
    assert_eq!(fault.expect_err("there is none").reason, Reason::RegistryFailed);
}

async fn the_labels_of_an_image_are_read_from_the_registry<W: World>() {
    let mut world = W::new().await;
    let reference = world.reference();
    let image = world.labelled_image(&reference.tag).await;
    let pushed = push(world.registry(), &image, &reference).await.expect("the push succeeds");
    let labels = world.registry().labels(&reference, &pushed).await.expect("they can be read");
    assert_eq!(labels.get(REVISION_LABEL), Some(&reference.tag));
    assert_eq!(labels.get(BUILDER_LABEL).map(String::as_str), Some("dockerfile"));

    let missing = digest_of(b"of nothing in particular");
    let missing = RegistryImage { digest: missing.clone(), image_id: missing, ..pushed };
    let fault = world.registry().labels(&reference, &missing).await;
    assert_eq!(fault.expect_err("there is none").reason, Reason::RegistryFailed);
}

async fn an_image_of_one_repository_is_not_found_in_another<W: World>() {
    let mut world = W::new().await;
    let (image, reference) = (world.image().await, world.reference());
    push(world.registry(), &image, &reference).await.expect("the push succeeds");
    let elsewhere =
        ImageReference { repository: world.reference().repository, ..reference.clone() };
    assert_eq!(world.registry().find(&elsewhere).await, Ok(None));
}

async fn an_image_that_is_pushed_twice_keeps_its_digest<W: World>() {
    let mut world = W::new().await;
    let (image, reference) = (world.image().await, world.reference());
    let first = push(world.registry(), &image, &reference).await.expect("the push succeeds");
    let second = push(world.registry(), &image, &reference).await.expect("the push succeeds");
    assert_eq!(first, second);
}

async fn a_tag_follows_the_last_push_and_the_digest_stays<W: World>() {
    let mut world = W::new().await;
    let reference = world.reference();
    let (old, new) = (world.image().await, world.image().await);
    let old = push(world.registry(), &old, &reference).await.expect("the push succeeds");
    let new = push(world.registry(), &new, &reference).await.expect("the push succeeds");
    assert_ne!(old.digest, new.digest);
    assert_eq!(world.registry().find(&reference).await, Ok(Some(new)));
    let by_digest = reference.with_tag(&old.digest);
    assert_eq!(world.registry().find(&by_digest).await, Ok(Some(old)));
}

async fn an_image_that_the_engine_has_lost_is_an_engine_failure<W: World>() {
    let mut world = W::new().await;
    let (image, reference) = (world.lost_image().await, world.reference());
    let fault = push(world.registry(), &image, &reference).await.expect_err("there is none");
    assert_eq!((fault.stage, fault.reason), (StageName::Pusher, Reason::EngineFailed), "{fault}");
    assert_eq!(world.registry().find(&reference).await, Ok(None));
}

async fn a_registry_out_of_reach_is_down<W: World>() {
    let mut world = W::new().await;
    let image = world.image().await;
    let (registry, reference) = world.out_of_reach().await;
    let found = registry.find(&reference).await.expect_err("nothing is there");
    let pushed = push(&*registry, &image, &reference).await.expect_err("nothing is there");
    for fault in [found, pushed] {
        assert_eq!(
            (fault.stage, fault.reason),
            (StageName::Pusher, Reason::RegistryDown),
            "{fault}"
        );
    }
}

macro_rules! conformance {
    ($implementation:ident, $world:ty, [$($behaviour:ident),* $(,)?]) => {
        mod $implementation {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $behaviour() {
                    super::$behaviour::<$world>().await;
                }
            )*
        }
    };
    ($($implementation:ident: $world:ty;)*) => {
        $(conformance!($implementation, $world, [
            what_was_never_pushed_is_not_found,
            a_pushed_image_is_found_by_tag_by_digest_and_by_every_further_tag,
            a_further_tag_is_put_on_an_image_that_is_there_and_on_no_other,
            the_labels_of_an_image_are_read_from_the_registry,
            an_image_of_one_repository_is_not_found_in_another,
            an_image_that_is_pushed_twice_keeps_its_digest,
            a_tag_follows_the_last_push_and_the_digest_stays,
            an_image_that_the_engine_has_lost_is_an_engine_failure,
            a_registry_out_of_reach_is_down,
        ]);)*
    };
}

conformance! {
    in_memory: InMemory;
    real: Real<Open>;
    real_with_a_password: Real<Closed>;
}

struct InMemory(FakeRegistry);

fn any_image() -> BuiltImage {
    let id = digest_of(unique().as_bytes());
    BuiltImage { id, builder: BuilderKind::Dockerfile, key: key() }
}

#[async_trait]
impl World for InMemory {
    type Port = FakeRegistry;

    async fn new() -> Self {
        Self(FakeRegistry::new())
    }

    fn registry(&self) -> &FakeRegistry {
        &self.0
    }

    fn reference(&self) -> ImageReference {
        reference_in("in-memory:1")
    }

    async fn image(&mut self) -> BuiltImage {
        any_image()
    }

    async fn labelled_image(&mut self, _: &str) -> BuiltImage {
        any_image()
    }

    async fn lost_image(&mut self) -> BuiltImage {
        let image = any_image();
        self.0.forget(&image.id);
        image
    }

    async fn out_of_reach(&self) -> (Box<dyn Registry>, ImageReference) {
        let fault = Fault::new(StageName::Pusher, Reason::RegistryDown, "it is down");
        self.0.set_down(Some(fault));
        (Box::new(self.0.clone()), self.reference())
    }
}

/// A registry that runs on this machine, with the engine that runs on it.
struct Real<R> {
    registry: RegistryClient,
    engine: Engine,
    which: std::marker::PhantomData<R>,
}

trait Which: Send + Sync + 'static {
    fn settings() -> RegistrySettings;
}

struct Open;
struct Closed;

impl Which for Open {
    fn settings() -> RegistrySettings {
        settings(OPEN)
    }
}

impl Which for Closed {
    fn settings() -> RegistrySettings {
        with_password(settings(CLOSED), "builder-secret")
    }
}

#[async_trait]
impl<R: Which> World for Real<R> {
    type Port = RegistryClient;

    async fn new() -> Self {
        let engine = Engine::connect().await;
        let registry = client(R::settings(), &engine);
        if let Err(fault) = registry.ping().await {
            panic!("this test needs the registry of .devcontainer/stack.sh: {fault}");
        }
        Self { registry, engine, which: std::marker::PhantomData }
    }

    fn registry(&self) -> &RegistryClient {
        &self.registry
    }

    fn reference(&self) -> ImageReference {
        reference_in(&R::settings().url.to_string())
    }

    async fn image(&mut self) -> BuiltImage {
        self.engine.image().await
    }

    async fn labelled_image(&mut self, commit: &str) -> BuiltImage {
        let label = format!("LABEL {REVISION_LABEL}={commit} {BUILDER_LABEL}=dockerfile");
        self.engine.labelled_image(&label).await
    }

    async fn lost_image(&mut self) -> BuiltImage {
        any_image()
    }

    async fn out_of_reach(&self) -> (Box<dyn Registry>, ImageReference) {
        let settings = RegistrySettings { url: url(NOWHERE), ..R::settings() };
        (Box::new(client(settings, &self.engine)), reference_in(NOWHERE))
    }
}

// ---- what the tests of the real one share ------------------------------------------------------

fn url(text: &str) -> RegistryUrl {
    RegistryUrl::parse(text).expect("an address")
}

fn settings(registry: &str) -> RegistrySettings {
    RegistrySettings::new(url(registry))
}

fn with_password(settings: RegistrySettings, password: &str) -> RegistrySettings {
    let credentials =
        RegistryCredentials { username: USER.to_owned(), password: Secret::new(password) };
    RegistrySettings { credentials: Some(credentials), ..settings }
}

fn client(settings: RegistrySettings, engine: &Engine) -> RegistryClient {
    rustls::crypto::ring::default_provider().install_default().ok();
    RegistryClient::new(settings, engine.docker.clone()).expect("a client")
}
