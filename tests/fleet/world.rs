//! Hosts to build on, and builds.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use image_builder::engine::docker::Tenancy;
use image_builder::engine::fleet::{Fleet, FleetSettings};
use image_builder::engine::settings::{BuildSettings, StraightPush};
use image_builder::registry::{RegistryClient, RegistrySettings, RegistryUrl};
use image_builder_actors::model::build_log::{BuildEvent, BuildLog, BuildLogListener};
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::image::{CREATED_LABEL, ImageLocation, RegistryImage};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::{Redactor, Secret};
use image_builder_actors::ports::{BuildOrder, ImageBuilder, Registry};
use image_builder_actors::testing::builder::order;
use tempfile::TempDir;

use crate::support::buildkit_bridge::BuildkitBridge;
use crate::support::engine::BASE;
use crate::support::own_engine::OwnEngine;

/// A registry that lets everybody in.
pub(crate) const REGISTRY: &str = "localhost:5000";

pub(crate) fn unique() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// What stands in for a host, and the engine behind it.
pub(crate) struct Host {
    pub(crate) bridge: BuildkitBridge,
    engines: Arc<[OwnEngine; 2]>,
    at: usize,
}

impl Host {
    pub(crate) fn engine(&self) -> &OwnEngine {
        &self.engines[self.at]
    }

    /// Makes it be there again, where it was.
    pub(crate) async fn come_back(&mut self, address: SocketAddr) {
        self.bridge = BuildkitBridge::start_at(address, &self.engine().socket()).await;
    }
}

/// Two hosts that know nothing of each other. Their engines are shared by all tests that run at the same time.
pub(crate) async fn hosts() -> [Host; 2] {
    static SHARED: Mutex<Weak<[OwnEngine; 2]>> = Mutex::new(Weak::<[OwnEngine; 2]>::new());
    let shared = || {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let engines = engines();
            *shared = Arc::downgrade(&engines);
            engines
        })
    };
    before(shared).await
}

/// Two more, for builds that count on what is in the cache: with those of others beside them, they do not always find
/// what they stored.
pub(crate) async fn own_hosts() -> [Host; 2] {
    before(engines).await
}

async fn before(engines: impl FnOnce() -> Arc<[OwnEngine; 2]> + Send + 'static) -> [Host; 2] {
    let engines = tokio::task::spawn_blocking(engines).await.expect("they start");
    let host = async |at: usize| {
        let bridge = BuildkitBridge::start(&engines[at].socket()).await;
        Host { bridge, engines: engines.clone(), at }
    };
    [host(0).await, host(1).await]
}

/// Starts two engines that have nothing but the base image.
fn engines() -> Arc<[OwnEngine; 2]> {
    let start = || {
        let engine = OwnEngine::new();
        engine.load(BASE);
        engine
    };
    let engines = thread::scope(|scope| {
        let both = [scope.spawn(start), scope.spawn(start)];
        both.map(|one| one.join().expect("it starts"))
    });
    Arc::new(engines)
}

/// What builds may do here.
pub(crate) fn builds() -> BuildSettings {
    let straight = Some(StraightPush { plain_http: false });
    let network = Some("none".to_owned());
    // Debian's engines do not say of which version their BuildKit is.
    let tenancy = Tenancy::Trusted;
    BuildSettings { straight, network, tenancy, ..BuildSettings::default() }
}

/// A fleet of these hosts, with one build at a time on each.
pub(crate) fn fleet(hosts: &[&Host], builds: BuildSettings) -> Fleet {
    let settings = FleetSettings {
        hosts: hosts.iter().map(|host| host.bridge.host()).collect(),
        tls_dir: None,
        drain: Vec::new(),
        builds_per_host: 1,
        budget: "10GB".parse().expect("a size"),
        low: "0%".parse().expect("a watermark"),
        builds,
    };
    Fleet::new(settings, std::env::temp_dir()).expect("good settings")
}

/// A build of these files for an application of its own.
pub(crate) struct Build {
    pub(crate) order: BuildOrder,
    _context: TempDir,
}

impl Build {
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let context = TempDir::new().expect("a temporary directory");
        for (path, text) in files {
            std::fs::write(context.path().join(path), text).expect("the directory is ours");
        }
        let reference = ImageReference::for_build(REGISTRY, "fleet-tests", &unique(), &unique());
        let mut order = order(context.path(), reference);
        order.labels.insert(CREATED_LABEL.to_owned(), "2020-02-03T04:05:06Z".to_owned());
        Self { order, _context: context }
    }

    /// Of this Dockerfile after `FROM` the base image.
    pub(crate) fn from_base(steps: &str) -> Self {
        Self::of(&[("Dockerfile", &format!("FROM {BASE}\n{steps}\n"))])
    }

    /// The same build, for the application of another one.
    pub(crate) fn in_place_of(mut self, other: &Self) -> Self {
        self.order.reference = other.order.reference.clone();
        self
    }

    /// Builds, and returns the log with the result.
    pub(crate) async fn on(&self, builder: &dyn ImageBuilder) -> (Result<String, Fault>, String) {
        let secrets: Vec<Secret> = self.order.plan.secrets.values().cloned().collect();
        let log = Arc::new(Lines::default());
        let progress = BuildLog::new(&self.order.build_id, Redactor::new(secrets));
        let progress = progress.with_listener(log.clone());
        let built = builder.build(&self.order, &progress).await.map(|location| match location {
            ImageLocation::Pushed { digest } => digest,
            elsewhere => panic!("it went elsewhere: {elsewhere:?}"),
        });
        (built, log.text())
    }

    /// Builds what has to work.
    pub(crate) async fn digest(&self, builder: &dyn ImageBuilder) -> (String, String) {
        let (built, log) = self.on(builder).await;
        (built.unwrap_or_else(|fault| panic!("{fault}\n{log}")), log)
    }
}

/// What the registry has under a digest or a tag of this reference's repository.
pub(crate) async fn stored(reference: &ImageReference, tag: &str) -> Option<RegistryImage> {
    registry().find(&reference.with_tag(tag)).await.expect("the registry answers")
}

pub(crate) fn registry() -> RegistryClient {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = RegistryUrl::parse(REGISTRY).expect("an address");
    RegistryClient::new(RegistrySettings::new(url)).expect("a client")
}

/// All that a build tells, one line each; a step that was taken from the cache as `CACHED <step>`.
#[derive(Debug, Default)]
struct Lines(Mutex<Vec<String>>);

impl Lines {
    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

impl BuildLogListener for Lines {
    fn hear(&self, event: &BuildEvent) {
        let line = match event {
            BuildEvent::Note(text) | BuildEvent::Output(text) => text.clone(),
            BuildEvent::StepStarted { .. } => return,
            BuildEvent::StepFinished { name, cached: true, .. } => format!("CACHED {name}"),
            BuildEvent::StepFinished { name, .. } => format!("DONE {name}"),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// Waits until a process on this machine has `mark` in its command line: the kernel tells nobody.
pub(crate) async fn until_running(mark: &str) {
    let is_there = || {
        let processes =
            std::fs::read_dir("/proc").expect("these tests look for processes in /proc");
        processes.flatten().any(|process| {
            std::fs::read(process.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
        })
    };
    while !is_there() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
