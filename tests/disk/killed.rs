//! What a worker leaves that is killed.
//!
//! The worker is this test's own program, started a second time to run one of the tests that are
//! ignored otherwise.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use image_builder::engine::docker::{DockerEngine, DockerSettings, Tenancy};
use image_builder::engine::settings::BuildSettings;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::image::BuiltImage;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::ports::ImageBuilder;
use tokio::net::TcpListener;

use crate::engine::SmallEngine;
use crate::orders::{Order, unique};
use crate::support::engine::BASE;

const PATIENCE: Duration = Duration::from_secs(60);

/// A process that runs one of the tests here. It is killed with this value.
struct Worker(Child);

impl Worker {
    fn start(test: &str, variables: &[(&str, &str)]) -> Self {
        let program = std::env::current_exe().expect("a test knows its program");
        let worker = Command::new(program)
            .args(["--exact", test, "--ignored"])
            .envs(variables.iter().copied())
            .spawn()
            .expect("the test starts a second time");
        Self(worker)
    }

    /// `kill -9`.
    fn kill(&mut self) {
        self.0.kill().expect("it is a child");
        self.0.wait().expect("it is a child");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).expect("the test that starts this one sets it")
}

pub(crate) async fn in_time(what: &str, holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Whether a process has `mark` in its command line. The worker has it as a variable only.
pub(crate) fn runs(mark: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes.into_iter().any(|process| {
        std::fs::read(process.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_builds_of_a_killed_worker_end_on_the_engine() {
    let small = SmallEngine::start(700).await;
    small.own.load(BASE);
    let mark = unique();
    let mut worker = Worker::start(
        "killed::worker_that_builds",
        &[("HOST", &small.own.host()), ("MARK", &mark)],
    );
    in_time("the build runs", async || runs(&mark)).await;
    worker.kill();
    in_time("the build has ended", async || !runs(&mark)).await;
    let containers = small.own.docker(&["ps", "--all", "--quiet"]);
    assert_eq!(containers, "");
    let usage = async || small.engine.usage().await.expect("the engine answers");
    in_time("the engine let go of the build", async || {
        usage().await.build_cache.iter().all(|record| !record.in_use)
    })
    .await;
    let images = usage().await.images;
    assert_eq!(images.len(), 1, "a half-built image is left: {images:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "is killed"]
async fn worker_that_builds() {
    let settings = DockerSettings {
        host: variable("HOST"),
        builds: BuildSettings {
            network: Some("none".to_owned()),
            tenancy: Tenancy::Trusted,
            ..BuildSettings::default()
        },
        ..DockerSettings::default()
    };
    let engine = DockerEngine::connect(settings).expect("an engine");
    // Also one that ignores what would end it politely.
    let step = format!("sh -c 'trap \"\" TERM HUP INT; sleep 600; : {}'", variable("MARK"));
    let order = Order::new(&format!("FROM {BASE}\nCOPY data /\nRUN {step}\n"), 1000);
    panic!("the build ended: {:?}", order.build(&engine).await);
}

/// A registry that takes connections and says nothing.
async fn silent_registry() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (format!("localhost:{port}"), listener)
}

/// The machine's own engine, with the journal of a worker.
fn engine_with(journal: &Path) -> DockerEngine {
    let push_journal = Some(journal.to_owned());
    DockerEngine::connect(DockerSettings { push_journal, ..DockerSettings::default() })
        .expect("an engine")
}

fn reference(registry: &str, name: &str) -> ImageReference {
    ImageReference::for_build(registry, "disk-tests", name, &"c".repeat(40))
}

/// On the machine's own engine: no disk matters here.
#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_a_killed_push_are_cleared_by_the_next_worker_and_by_no_other() {
    let settings = DockerSettings {
        builds: BuildSettings { tenancy: Tenancy::Trusted, ..BuildSettings::default() },
        ..DockerSettings::default()
    };
    let engine = DockerEngine::connect(settings).expect("an engine");
    engine.ping().await.expect("this test needs an engine: `.devcontainer/stack.sh up`");
    let order = Order::of_bytes(1000);
    let image = order.build(&engine).await.expect("the build is good");
    let (registry, _listener) = silent_registry().await;
    let data = tempfile::tempdir().expect("a directory");
    let journal = data.path().join("pushes");
    let (mine, kept) = (unique(), unique());
    let (pushed, theirs) = (reference(&registry, &mine), reference(&registry, &kept));

    let mut worker = Worker::start(
        "killed::worker_that_pushes",
        &[
            ("REGISTRY", &registry),
            ("JOURNAL", journal.to_str().expect("text")),
            ("IMAGE", &serde_json::to_string(&image).expect("JSON")),
            ("NAME", &mine),
        ],
    );
    let has = async |reference: &ImageReference| {
        let detail = engine.image_detail(&reference.to_string()).await;
        detail.expect("the engine answers").is_some()
    };
    in_time("the push has begun", async || has(&pushed).await).await;
    worker.kill();
    assert!(has(&pushed).await, "a killed worker cannot have removed the name");
    // Somebody else's push of the same image.
    let options = bollard::query_parameters::TagImageOptionsBuilder::new()
        .repo(&theirs.name())
        .tag(&theirs.tag)
        .build();
    engine.docker().tag_image(&image.id, Some(options)).await.expect("named");

    let other = tempfile::tempdir().expect("a directory");
    engine_with(other.path()).clear_left_names().await;
    assert!(has(&pushed).await, "another worker's names are not to be touched");

    engine_with(&journal).clear_left_names().await;
    assert!(!has(&pushed).await, "the name is still there");
    assert!(has(&theirs).await);
    assert_eq!(std::fs::read_dir(&journal).expect("there").count(), 0);
    let (name, found) = (order.name(&engine).await, order.find(&engine).await);
    assert_eq!(found.map(|found| found.id), Some(image.id), "only the name was to go");
    for name in [theirs.to_string(), name.expect("it is there")] {
        assert!(engine.remove_image(&name).await.expect("removed"));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "is killed"]
async fn worker_that_pushes() {
    let engine = engine_with(Path::new(&variable("JOURNAL")));
    let image: BuiltImage = serde_json::from_str(&variable("IMAGE")).expect("JSON");
    let progress = BuildLog::new("b", Redactor::default());
    let reference = reference(&variable("REGISTRY"), &variable("NAME"));
    panic!("the push ended: {:?}", engine.push(&image, &reference, &progress).await);
}
