//! The six actors on ports in memory.

use std::sync::Arc;
use std::time::Duration;

use crate::delivery::seal::Seal;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::limits::Limits;
use crate::model::notification::{Notification, notified_build};
use crate::model::secret::Secret;
use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::parse::Rules;
use crate::pipeline;
use crate::pipeline::{Pipeline, PipelineSettings, Ports, StageSettings};
use crate::ports::{Broker, Message, Queue};
use crate::scheduling::retry_policy::RetryPolicy;
use crate::supervision::RestartIntensity;
use crate::telemetry::delivery_span::Observer;
use crate::telemetry::health::{ActorName, Health, Snapshot};
use crate::telemetry::history::Recorder;
use crate::telemetry::statuses::StatusReporter;
use crate::testing::broker::FakeBroker;
use crate::testing::build_store::FakeBuildStore;
use crate::testing::builder::FakeBuilder;
use crate::testing::commit_statuses::FakeCommitStatuses;
use crate::testing::credentials::FakeCredentials;
use crate::testing::dead_letters::FakeDeadLetters;
use crate::testing::notifier::FakeNotifier;
use crate::testing::outcome_ledger::FakeLedger;
use crate::testing::planner::FakePlanner;
use crate::testing::probe::FakeProbe;
use crate::testing::registry::FakeRegistry;
use crate::testing::source::FakeSource;
use actix_rt::System;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A pipeline at work on ports in memory.
pub struct World {
    pub broker: FakeBroker,
    pub ledger: FakeLedger,
    pub dead_letters: FakeDeadLetters,
    pub forge: FakeSource,
    pub credentials: FakeCredentials,
    pub planner: FakePlanner,
    pub engine: FakeBuilder,
    pub registry: FakeRegistry,
    pub managers: FakeNotifier,
    pub probe: FakeProbe,
    /// What forges show on commits.
    pub statuses: FakeCommitStatuses,
    /// What is known of the builds.
    pub builds: FakeBuildStore,
    pub history: Recorder,
    pub shutdown: Shutdown,
    pub pipeline: Pipeline,
    health: Arc<[Arc<Health>]>,
    workspaces: TempDir,
}

/// Settings with delays that a test can wait for.
pub fn settings() -> PipelineSettings {
    let stage = |concurrency| StageSettings { concurrency, timeout: Duration::from_secs(10) };
    PipelineSettings {
        rules: Rules::new("https://github.com", Limits::default()),
        service: Vec::new(),
        most_in_hand: 8,
        job_timeout: Duration::from_secs(15),
        connector: stage(4),
        builder: stage(2),
        pusher: stage(4),
        notifier: stage(4),
        retry_concurrency: 4,
        builds_per_user: 2,
        supersede: false,
        retry: RetryPolicy {
            max_attempts: 3,
            initial_delay: Duration::from_millis(10),
            multiplier: 2.0,
            max_delay: Duration::from_millis(40),
            max_age: Duration::from_secs(24 * 60 * 60),
        },
        first_look: Duration::from_millis(50),
        intensity: RestartIntensity {
            max_restarts: 5,
            window: Duration::from_secs(30),
            health_interval: Duration::from_secs(30),
        },
    }
}

/// Runs a test on a pipeline with these settings.
pub fn with_pipeline<F>(settings: PipelineSettings, test: impl FnOnce(World) -> F)
where
    F: Future<Output = ()>,
{
    let system = System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
    });
    system.block_on(async {
        let world = World::start(settings);
        tokio::time::timeout(3 * PATIENCE, test(world)).await.expect("the test ends in time");
    });
}

impl World {
    fn start(settings: PipelineSettings) -> Self {
        let workspaces = tempfile::tempdir().expect("a directory");
        let (broker, forge, planner) =
            (FakeBroker::default(), FakeSource::default(), FakePlanner::default());
        let (registry, managers, probe) =
            (FakeRegistry::default(), FakeNotifier::default(), FakeProbe::default());
        let engine = FakeBuilder::pushing_to(registry.clone());
        let credentials = FakeCredentials::default();
        let (ledger, dead_letters) = (FakeLedger::default(), FakeDeadLetters::new(broker.clone()));
        let ports = Ports {
            broker: Arc::new(broker.clone()),
            ledger: Arc::new(ledger.clone()),
            dead_letters: Arc::new(dead_letters.clone()),
            forge: Arc::new(forge.clone()),
            credentials: Arc::new(credentials.clone()),
            planner: Arc::new(planner.clone()),
            engine: Arc::new(engine.clone()),
            registry: Arc::new(registry.clone()),
            managers: Arc::new(managers.clone()),
            probe: Arc::new(probe.clone()),
            registry_name: "registry.test".to_owned(),
            seal: Seal::new(Secret::new("key")),
            workspaces: workspaces.path().to_owned(),
        };
        let (health, shutdown) = (pipeline::health(), Shutdown::default());
        let builds = FakeBuildStore::default();
        let history = Recorder::start(Arc::new(builds.clone()), "worker");
        let statuses = FakeCommitStatuses::default();
        let reporter = StatusReporter::new(
            Arc::new(statuses.clone()),
            Arc::new(credentials.clone()),
            Arc::new(|build| Some(format!("https://builds.test/{}", build.build_id))),
        );
        let observer = Observer::default().with_history(history.clone()).with_statuses(reporter);
        let pipeline = Pipeline::start(ports, settings, &health, observer, shutdown.clone());
        Self {
            broker,
            ledger,
            dead_letters,
            forge,
            credentials,
            planner,
            engine,
            registry,
            managers,
            probe,
            statuses,
            builds,
            history,
            shutdown,
            pipeline,
            health,
            workspaces,
        }
    }

    /// Publishes a request as a client does.
    pub async fn request(&self, body: &Value) {
        self.publish(body.to_string().as_bytes()).await;
    }

    /// Publishes any body.
    pub async fn publish(&self, body: &[u8]) {
        let message = Message { body: body.to_vec(), ..Message::default() };
        let published = self.broker.publish(Queue::Build, message, Duration::ZERO).await;
        published.expect("published");
    }

    /// Publishes a request, and waits until its build has begun. It ends once the engine releases it.
    pub async fn hold_build(&self, body: &Value) {
        self.engine.hold();
        self.request(body).await;
        self.engine.until_running(body["uuid"].as_str().expect("an id")).await;
    }

    /// Publishes a request, and returns the one notification that is to come of it.
    pub async fn outcome_of(&self, body: &Value) -> (String, Value) {
        self.request(body).await;
        self.notified_once().await
    }

    /// The notifications that were taken, once there are `count`: what they are about, as
    /// `<build id>.<type>`, and their bodies.
    pub async fn notified(&self, count: usize) -> Vec<(String, Value)> {
        let taken = tokio::time::timeout(PATIENCE, self.managers.taken.wait_for(count)).await;
        taken.expect("the managers are notified in time").iter().map(parsed).collect()
    }

    /// The one notification that there is to be.
    pub async fn notified_once(&self) -> (String, Value) {
        self.notified(1).await;
        self.quiet().await;
        let mut taken = self.notified(1).await;
        assert_eq!(taken.len(), 1, "{taken:?}");
        taken.remove(0)
    }

    /// Waits until the source of this build was asked for.
    pub async fn until_fetched(&self, build_id: &str) {
        let mut calls = self.forge.calls.all();
        while !calls.iter().any(|call| call.build_id == build_id) {
            calls = self.forge.calls.wait_for(calls.len() + 1).await;
        }
    }

    /// Waits until nothing waits in a queue and nothing is unsettled.
    pub async fn quiet(&self) {
        let idle = self.broker.wait_until(|broker| {
            let queues = [Queue::Build, Queue::Fail, Queue::Outcome];
            queues
                .into_iter()
                .all(|queue| broker.messages(queue).is_empty() && broker.unsettled(queue) == 0)
                && broker.backlog().is_empty()
                && broker.taken() == 0
        });
        tokio::time::timeout(PATIENCE, idle).await.expect("the queues run empty in time");
    }

    pub fn health(&self, name: ActorName) -> Snapshot {
        let health = self.health.iter().find(|health| health.name() == name);
        health.expect("every actor has one").snapshot()
    }

    /// The restarts of each actor, in the order of [`ActorName::ALL`].
    pub fn restarts(&self) -> [u64; 6] {
        ActorName::ALL.map(|name| self.health(name).restarts())
    }

    /// The deaths of this cause of each actor, in the order of [`ActorName::ALL`].
    pub fn deaths(&self, cause: &str) -> [u64; 6] {
        ActorName::ALL.map(|name| self.health(name).deaths.get(cause).copied().unwrap_or_default())
    }

    /// The jobs that crashed with each actor, in the order of [`ActorName::ALL`]; one is counted once it
    /// is dropped.
    pub fn crashed(&self) -> [u64; 6] {
        ActorName::ALL
            .map(|name| self.health(name).failed.get("crashed").copied().unwrap_or_default())
    }

    /// Waits until the figures of the actors are as `good` wants them. They change without any event.
    pub async fn until(&self, good: impl Fn(&Self) -> bool) {
        let all = async {
            while !good(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the figures become good in time");
    }

    /// What is left in the workspaces' directory once those that go are gone.
    pub async fn workspaces_left(&self) -> usize {
        let path = self.workspaces.path().to_owned();
        let count = || std::fs::read_dir(&path).expect("readable").count();
        for _ in 0..500 {
            if count() == 0 {
                break;
            }
            // Removing is the file system's business: there is no event for it.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        count()
    }

    /// Drains the pipeline to its end.
    pub async fn drain(&mut self) {
        self.shutdown.enter(ShutdownPhase::Draining);
        tokio::time::timeout(PATIENCE, self.pipeline.settled()).await.expect("settled in time");
    }
}

/// A request for the default branch of `owner/name`.
pub fn request(uuid: &str) -> Value {
    json!({"uuid": uuid, "userID": "alice", "repo": "owner/name", "token": "hunter2hunter2"})
}

/// Such a request with another value in one field.
pub fn request_with(uuid: &str, field: &str, value: impl Into<Value>) -> Value {
    let mut body = request(uuid);
    body[field] = value.into();
    body
}

/// A fault of the test's making.
pub fn fault(stage: StageName, reason: Reason) -> Fault {
    Fault::new(stage, reason, "the test wants it so")
}

fn parsed(notification: &Notification) -> (String, Value) {
    let body = serde_json::from_slice(&notification.body).expect("a notification is JSON");
    let build = notified_build(&notification.body).map_or_else(String::new, |build| build.build_id);
    (format!("{build}.{}", notification.kind.as_str()), body)
}
