//! The six actors, put together and set to work.

pub mod builder;
pub mod connector;
pub mod consumer;
pub mod listener;
pub mod messages;
pub mod notifier;
pub mod pool;
pub mod pusher;
pub mod retry;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::delivery::artifacts::Images;
use crate::delivery::dedup::Redeliveries;
use crate::delivery::outcome_ledger;
use crate::delivery::outcome_ledger::OutcomeLedger;
use crate::delivery::settlement::Settlement;
use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::parse::Rules;
use crate::pipeline::builder::{Builder, KeyedLocks};
use crate::pipeline::connector::Connector;
use crate::pipeline::consumer::Consumer;
use crate::pipeline::listener::Listener;
use crate::pipeline::notifier::Notifier;
use crate::pipeline::pool::Pool;
use crate::pipeline::pusher::Pusher;
use crate::pipeline::retry::Retry;
use crate::ports::{
    Broker, ImageBuilder, Notifier as NotifierPort, Planner, Probe, Queue, Registry,
    SourceConnector,
};
use crate::scheduling::admission::{Admission, AdmissionRules};
use crate::scheduling::capacity::Capacity;
use crate::scheduling::fair_semaphore::FairSemaphore;
use crate::scheduling::retry_policy::RetryPolicy;
use crate::supervision::{RestartIntensity, Supervisor};
use crate::telemetry::delivery_span::Observer;
use crate::telemetry::health::{ActorName, Health};

/// The outside, as the inside sees it.
#[derive(Clone)]
pub struct Ports {
    pub broker: Arc<dyn Broker>,
    pub forge: Arc<dyn SourceConnector>,
    pub planner: Arc<dyn Planner>,
    pub engine: Arc<dyn ImageBuilder>,
    pub registry: Arc<dyn Registry>,
    pub managers: Arc<dyn NotifierPort>,
    pub probe: Arc<dyn Probe>,
}

/// How the pipeline works.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    pub rules: Rules,
    /// Where workspaces are made.
    pub workspaces: PathBuf,
    /// The registry's name in references.
    pub registry_name: String,
    /// Deliveries of the build queue in hand at once.
    pub prefetch: u16,
    /// From delivery to settled, waiting included.
    pub job_timeout: Duration,
    pub connector: StageSettings,
    pub builder: StageSettings,
    pub pusher: StageSettings,
    pub notifier: StageSettings,
    pub retry_concurrency: usize,
    /// Builder slots that one user can hold at once.
    pub builds_per_user: usize,
    /// Whether newer requests supersede older ones that do not build yet.
    pub supersede: bool,
    pub retry: RetryPolicy,
    /// How long the dead queue keeps a copy; `None` = no copies.
    pub dead_ttl: Option<Duration>,
    /// Whether outcomes are published to the result queue as well.
    pub results: bool,
    pub intensity: RestartIntensity,
}

/// How one actor works.
#[derive(Debug, Clone)]
pub struct StageSettings {
    /// Jobs worked on at once.
    pub concurrency: usize,
    /// Longest time that one job is worked on.
    pub timeout: Duration,
}

/// How long past its deadline a delivery may take to be settled: publishing has its own limits.
const GRACE: Duration = Duration::from_secs(120);

/// The pipeline at work.
pub struct Pipeline {
    supervisor: Supervisor,
    shutdown: Shutdown,
    builds: JoinSet<()>,
    /// What becomes of builds: failed tries and outcomes.
    ends: JoinSet<()>,
    /// For those who cancel builds.
    pub admission: Admission,
    /// OutcomeLedger and asked whether there is room to work.
    pub capacity: Capacity,
}

/// The health of each actor, to be shown before the pipeline is at work.
pub fn health() -> Arc<[Arc<Health>]> {
    ActorName::ALL.map(Health::new).into()
}

impl Pipeline {
    /// Starts the actors and their consumers. Must be called where an actix `System` runs.
    pub fn start(
        ports: Ports,
        settings: PipelineSettings,
        health: &[Arc<Health>],
        observer: Observer,
        shutdown: Shutdown,
    ) -> Self {
        let supervisor = Supervisor::new(settings.intensity, shutdown.clone());
        let capacity = Capacity::default();
        observer.metrics.show(&capacity);
        tokio::spawn(capacity.clone().watch(ports.probe, shutdown.clone()));
        let settlement = Settlement {
            broker: ports.broker.clone(),
            told: OutcomeLedger::start(ports.broker.clone(), outcome_ledger::LONGEST_WAIT),
            dead_ttl: settings.dead_ttl,
            capacity: capacity.clone(),
            observer,
        };
        let images = Images {
            engine: ports.engine.clone(),
            registry: ports.registry,
            registry_name: settings.registry_name,
        };
        let rules = Arc::new(settings.rules);
        let admission = Admission::new(AdmissionRules {
            // One place stays in sight of the other users.
            per_user: settings.builds_per_user.max(usize::from(settings.prefetch) - 1),
            supersede: settings.supersede,
        });
        let pool = |name: ActorName, concurrency: usize| {
            let per_user = match name {
                ActorName::Builder => settings.builds_per_user,
                _ => concurrency,
            };
            let health = health
                .iter()
                .find(|health| health.name() == name)
                .map_or_else(|| Health::new(name), Arc::clone);
            let slots = FairSemaphore::new(concurrency, per_user);
            let (pool, panics) = Pool::new(slots, health.clone(), shutdown.clone());
            (pool, health, panics)
        };

        let (pool_of, health_of, panics) = pool(ActorName::Pusher, settings.pusher.concurrency);
        let pusher = Pusher {
            pool: pool_of,
            settlement: settlement.clone(),
            images: images.clone(),
            timeout: settings.pusher.timeout,
        };
        let pusher = supervisor.supervise(health_of, panics, move || pusher.clone());

        let (pool_of, health_of, panics) = pool(ActorName::Builder, settings.builder.concurrency);
        let builder = Builder {
            pool: pool_of,
            settlement: settlement.clone(),
            planner: ports.planner,
            engine: ports.engine.clone(),
            images: images.clone(),
            timeout: settings.builder.timeout,
            turns: KeyedLocks::default(),
            next: pusher.clone(),
        };
        let builder = supervisor.supervise(health_of, panics, move || builder.clone());

        let (pool_of, health_of, panics) =
            pool(ActorName::Connector, settings.connector.concurrency);
        let connector = Connector {
            pool: pool_of,
            settlement: settlement.clone(),
            forge: ports.forge,
            workspaces: settings.workspaces,
            timeout: settings.connector.timeout,
            next: builder,
        };
        let connector = supervisor.supervise(health_of, panics, move || connector.clone());

        let (pool_of, health_of, panics) = pool(ActorName::Listener, settings.prefetch.into());
        let listener = Listener {
            pool: pool_of,
            settlement: settlement.clone(),
            rules: rules.clone(),
            admission: admission.clone(),
            shortest_rung: settings.retry.delay(1, None),
            job_timeout: settings.job_timeout,
            images: images.clone(),
            engine: ports.engine.clone(),
            next: connector,
            shortcut: pusher,
        };
        let listener = supervisor.supervise(health_of, panics, move || listener.clone());

        let (pool_of, health_of, panics) = pool(ActorName::Notifier, settings.notifier.concurrency);
        let notifier = Notifier {
            pool: pool_of,
            settlement: settlement.clone(),
            managers: ports.managers,
            policy: settings.retry.clone(),
            timeout: settings.notifier.timeout,
            results: settings.results,
        };
        let notifier = supervisor.supervise(health_of, panics, move || notifier.clone());

        let (pool_of, health_of, panics) = pool(ActorName::Retry, settings.retry_concurrency);
        let retry = Retry { pool: pool_of, settlement, rules, policy: settings.retry, images };
        let retry = supervisor.supervise(health_of, panics, move || retry.clone());

        let consumer = |queue, prefetch, until| Consumer {
            broker: ports.broker.clone(),
            queue,
            prefetch,
            shutdown: shutdown.clone(),
            until,
            capacity: (queue == Queue::Build).then(|| capacity.clone()),
            last: OnceLock::new(),
            redeliveries: Redeliveries::default(),
            longest: GRACE
                + match queue {
                    Queue::Build => settings.job_timeout,
                    Queue::Fail | Queue::Outcome => settings.notifier.timeout,
                },
        };
        let to_u16 = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        let (mut builds, mut ends) = (JoinSet::new(), JoinSet::new());
        builds.spawn(
            consumer(Queue::Build, settings.prefetch, ShutdownPhase::Draining).run(listener),
        );
        let outcomes = to_u16(settings.notifier.concurrency);
        ends.spawn(consumer(Queue::Outcome, outcomes, ShutdownPhase::Closing).run(notifier));
        let failures = to_u16(settings.retry_concurrency);
        ends.spawn(consumer(Queue::Fail, failures, ShutdownPhase::Closing).run(retry));
        Self { supervisor, shutdown, builds, ends, admission, capacity }
    }

    /// Waits until an actor has died too often; the answer says which, and of what.
    pub async fn escalated(&self) -> String {
        self.supervisor.escalated().await
    }

    /// Waits until the worker drains and every delivery in hand is settled: first the builds, then
    /// what they ended in.
    pub async fn settled(&mut self) {
        while self.builds.join_next().await.is_some() {}
        self.shutdown.enter(ShutdownPhase::Closing);
        while self.ends.join_next().await.is_some() {}
    }
}
