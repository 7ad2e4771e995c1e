//! What the suite's scenarios are made of on the real engine.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bollard::query_parameters::ListImagesOptionsBuilder;
use image_builder::engine::docker::{DockerEngine, DockerSettings, LOCAL_REGISTRY};
use image_builder::engine::settings::BuildSettings;
use image_builder_actors::model::build_log::{BuildEvent, BuildLog, BuildLogListener};
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::image::{BuiltImage, RegistryImage};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::{Redactor, Secret};
use image_builder_actors::ports::{BuildOrder, ImageBuilder, Registry};
use image_builder_actors::testing::builder::{on_engine, order};
use image_builder_actors::testing::conformance::builder::World;
use tempfile::TempDir;

use crate::engine::docker_engine;
use crate::registry::{NOWHERE, OPEN, client, reference_in, settings, unique};

/// The base image of the builds here.
pub(super) const BASE: &str = "busybox:1.35";
/// One that has the C library of the machine's programs, and a `test` that knows more of times than their seconds.
pub(super) const DEBIAN: &str = "debian:bookworm-slim";

pub(super) struct RealWorld {
    pub(super) engine: DockerEngine,
    downed: DockerEngine,
    contexts: Mutex<Vec<TempDir>>,
    /// What the engine calls the images that were built here: `user/application`.
    built: Mutex<Vec<String>>,
}

impl RealWorld {
    pub(super) async fn new() -> Self {
        Self::with(BuildSettings::default()).await
    }

    /// A world whose engine builds as `builds` says, at `DOCKER_HOST`.
    pub(super) async fn with(builds: BuildSettings) -> Self {
        let engine = docker_engine(builds);
        let docker = engine.negotiated().await.expect(
            "these tests need a container engine: start it with `.devcontainer/stack.sh up`",
        );
        docker.inspect_image(BASE).await.unwrap_or_else(|error| {
            panic!("these tests need {BASE}: make it with `.devcontainer/stack.sh images`: {error}")
        });
        let nowhere = "unix:///nonexistent/docker.sock".to_owned();
        let downed = DockerEngine::connect(DockerSettings { host: nowhere, ..Default::default() })
            .expect("an engine may be down");
        Self { engine, downed, contexts: Mutex::default(), built: Mutex::default() }
    }

    /// An order whose context has these files.
    pub(super) fn order(&self, files: &[(&str, &str)]) -> BuildOrder {
        let context = TempDir::new().expect("a temporary directory");
        for (path, text) in files {
            let path = context.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a file is in a directory"))
                .and_then(|()| std::fs::write(&path, text))
                .expect("a file in a temporary directory");
        }
        let order = order(context.path(), reference_in(OPEN));
        self.contexts.lock().expect("no test panics with it").push(context);
        self.built.lock().expect("no test panics with it").push(order.reference.repository.clone());
        order
    }

    /// An order of this Dockerfile after `FROM` the base image.
    pub(super) fn dockerfile(&self, steps: &str) -> BuildOrder {
        self.order(&[("Dockerfile", &format!("FROM {BASE}\n{steps}\n"))])
    }

    /// The order, as one of this user for an application of its own.
    pub(super) fn of(&self, user: &str, order: BuildOrder) -> BuildOrder {
        let reference = ImageReference::for_build(OPEN, user, &unique(), &order.reference.tag);
        self.built.lock().expect("no test panics with it").push(reference.repository.clone());
        BuildOrder { reference, ..order }
    }

    /// An order of an image of one small file.
    pub(super) fn small_order(&self) -> BuildOrder {
        self.order(&[("Dockerfile", "FROM scratch\nCOPY mark /\n"), ("mark", &unique())])
    }

    /// Builds, and returns the progress with the result.
    pub(super) async fn build(&self, order: &BuildOrder) -> (Result<BuiltImage, Fault>, BuildLog) {
        let secrets: Vec<Secret> = order.plan.secrets.values().cloned().collect();
        let progress = BuildLog::new(&order.build_id, Redactor::new(secrets));
        let result = tokio::time::timeout(
            Duration::from_secs(90),
            ImageBuilder::build(&self.engine, order, &progress),
        )
        .await
        .expect("the build ends in time");
        (result.map(on_engine), progress)
    }

    /// Builds what has to work, and returns what it wrote.
    pub(super) async fn output(&self, order: &BuildOrder) -> Vec<String> {
        let (result, progress) = self.build(order).await;
        result.unwrap_or_else(|fault| panic!("{fault}\n{}", progress.tail().join("\n")));
        progress.tail()
    }

    /// Builds what has to fail.
    pub(super) async fn fault(&self, order: &BuildOrder) -> Fault {
        self.build(order).await.0.expect_err("the build has to fail")
    }
}

impl Drop for RealWorld {
    /// Removes the images that were built here.
    fn drop(&mut self) {
        let engine = self.engine.clone();
        let repositories = std::mem::take(&mut *self.built.lock().expect("no test panics with it"));
        let remove = async move {
            // Most of these builds were meant to fail.
            for name in names_in(&engine, &repositories).await {
                let _ = engine.remove_image(&name).await;
            }
        };
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| runtime.block_on(remove));
    }
}

/// What the engine calls an image.
pub(super) async fn names_of(engine: &DockerEngine, id: &str) -> Vec<String> {
    let image = engine.docker().inspect_image(id).await.expect("it is there");
    image.repo_tags.unwrap_or_default()
}

/// The names on the engine of all images that were built of these repositories.
pub(super) async fn names_in(engine: &DockerEngine, repositories: &[String]) -> Vec<String> {
    // An engine that is asked for none of them lists all that it has.
    if repositories.is_empty() {
        return Vec::new();
    }
    let all = repositories.iter().map(|repository| format!("{LOCAL_REGISTRY}/{repository}"));
    let filters = HashMap::from([("reference".to_owned(), all.collect::<Vec<_>>())]);
    let options = ListImagesOptionsBuilder::new().filters(&filters).build();
    let images = engine.docker().list_images(Some(options)).await.unwrap_or_default();
    images.into_iter().flat_map(|image| image.repo_tags).collect()
}

impl World for RealWorld {
    fn builder(&self) -> &dyn ImageBuilder {
        &self.engine
    }

    fn downed(&self) -> &dyn ImageBuilder {
        &self.downed
    }

    fn good(&self) -> BuildOrder {
        self.dockerfile(&format!("RUN echo {}", unique()))
    }

    fn small(&self) -> BuildOrder {
        self.small_order()
    }

    fn babbling(&self, secret: &str) -> BuildOrder {
        let mut order = self.dockerfile(&format!(
            "RUN --mount=type=secret,id=it : {}; echo \"the secret is $(cat /run/secrets/it)\"",
            unique()
        ));
        order.plan.secrets.insert("it".to_owned(), Secret::new(secret));
        order
    }

    fn failing(&self) -> BuildOrder {
        self.dockerfile(&format!("RUN : {}; echo last words; exit 3", unique()))
    }

    fn senseless(&self) -> BuildOrder {
        self.dockerfile("RUNN true")
    }

    fn endless(&self) -> BuildOrder {
        let mark = unique();
        let mut order = self.dockerfile(&format!("RUN sh -c 'sleep 600; : {mark}'"));
        order.build_id = mark;
        order
    }

    async fn until_running(&self, order: &BuildOrder) {
        until(|| process_with(&order.build_id)).await;
    }

    async fn until_stopped(&self, order: &BuildOrder) {
        until(|| !process_with(&order.build_id)).await;
    }

    async fn lose(&self, image: &BuiltImage) {
        for name in names_of(&self.engine, &image.id).await {
            assert_eq!(self.engine.remove_image(&name).await, Ok(true));
        }
    }

    fn reference(&self) -> ImageReference {
        reference_in(OPEN)
    }

    async fn stored(&self, reference: &ImageReference) -> Option<RegistryImage> {
        client(settings(OPEN)).find(reference).await.expect("the registry answers")
    }

    fn reference_out_of_reach(&self) -> ImageReference {
        reference_in(NOWHERE)
    }
}

/// What a build's log says beside the output of its steps.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Vec<String>>);

impl Notes {
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().expect("no test panics with it").clone()
    }
}

impl BuildLogListener for Notes {
    fn hear(&self, event: &BuildEvent) {
        if let BuildEvent::Note(text) = event {
            self.0.lock().expect("no test panics with it").push(text.clone());
        }
    }
}

/// What a build's steps write, as its log has it.
#[derive(Debug, Default)]
pub(super) struct Output(Mutex<Vec<String>>);

impl Output {
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().expect("no test panics with it").clone()
    }
}

impl BuildLogListener for Output {
    fn hear(&self, event: &BuildEvent) {
        if let BuildEvent::Output(line) = event {
            self.0.lock().expect("no test panics with it").push(line.clone());
        }
    }
}

/// Whether a process on this machine has `mark` in its command line.
fn process_with(mark: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("these tests look for processes in /proc");
    processes.flatten().any(|process| {
        std::fs::read(process.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
    })
}

/// Looks again and again: the kernel tells nobody of a process that ends elsewhere.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
