//! The six actors, put together and set to work.

pub mod builder;
mod cancellations;
pub mod connector;
pub mod consumer;
mod dispatcher;
pub mod listener;
pub mod notifier;
pub mod pool;
pub mod pusher;
pub mod retry;
pub mod stage;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use tokio::task::JoinSet;

use crate::delivery::artifacts::Images;
use crate::delivery::dedup::Redeliveries;
use crate::delivery::lease::Leased;
use crate::delivery::seal::Seal;
use crate::delivery::settlement::Settlement;
use crate::model::secret::Secret;
use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::parse::Rules;
use crate::pipeline::builder::Builder;
use crate::pipeline::connector::Connector;
use crate::pipeline::consumer::Consumer;
use crate::pipeline::dispatcher::Dispatcher;
use crate::pipeline::listener::Listener;
use crate::pipeline::notifier::Notifier;
use crate::pipeline::pool::Pool;
use crate::pipeline::pusher::Pusher;
use crate::pipeline::retry::Retry;
use crate::pipeline::stage::{Stage, StageActor, Work};
use crate::ports::{
    Broker, Credentials, DeadLetters, ImageBuilder, Notifier as NotifierPort, OutcomeLedger,
    Planner, Probe, Queue, Registry, SourceConnector,
};
use crate::scheduling::admission::{Admission, AdmissionRules};
use crate::scheduling::capacity::Capacity;
use crate::scheduling::fair_semaphore::FairSemaphore;
use crate::scheduling::holds::Holds;
use crate::scheduling::keyed_locks::KeyedLocks;
use crate::scheduling::retry_policy::RetryPolicy;
use crate::supervision::{Mailbox, RestartIntensity, Supervisor};
use crate::telemetry::delivery_span::Observer;
use crate::telemetry::health::{ActorName, Health};

/// What the pipeline reaches the outside by.
#[derive(Clone)]
pub struct Ports {
    pub broker: Arc<dyn Broker>,
    pub ledger: Arc<dyn OutcomeLedger>,
    pub dead_letters: Arc<dyn DeadLetters>,
    pub forge: Arc<dyn SourceConnector>,
    pub credentials: Arc<dyn Credentials>,
    pub planner: Arc<dyn Planner>,
    pub engine: Arc<dyn ImageBuilder>,
    pub registry: Arc<dyn Registry>,
    pub managers: Arc<dyn NotifierPort>,
    pub probe: Arc<dyn Probe>,
    /// The registry's name in references.
    pub registry_name: String,
    /// By which tags in the registry are known that a worker put.
    pub seal: Seal,
    /// Where workspaces are made.
    pub workspaces: PathBuf,
}

/// How the pipeline works.
#[derive(Debug, Clone)]
pub struct PipelineSettings {
    pub rules: Rules,
    /// The service's own credentials that builds come to see.
    pub service: Vec<Secret>,
    /// Builds in hand at once, those included that are fetched or pushed.
    pub most_in_hand: u16,
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
    /// Pause before it is looked for the first time whether there is room to work again.
    pub first_look: Duration,
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

/// How often a pause is looked through for requests that are too old: ten times in the longest age,
/// within these bounds.
const SOONEST: Duration = Duration::from_secs(2);
const LATEST: Duration = Duration::from_secs(5 * 60);

/// Requests that are read, and put in the backlog or settled, at once.
const READ_AT_ONCE: u16 = 256;

/// The pipeline at work.
pub struct Pipeline {
    supervisor: Supervisor,
    shutdown: Shutdown,
    /// The consumer of builds.
    builds: JoinSet<()>,
    /// The consumers of failed tries and of outcomes.
    ends: JoinSet<()>,
    /// For those who cancel builds.
    pub admission: Admission,
    /// Whether there is room to work.
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
        let holds = Holds::default();
        observer.metrics.show(&capacity, &holds);
        let looks =
            capacity.clone().watch(ports.probe.clone(), settings.first_look, shutdown.clone());
        tokio::spawn(looks);
        let every = (settings.retry.max_age / 10).clamp(SOONEST, LATEST);
        tokio::spawn(capacity.clone().interrupt(every, shutdown.clone()));
        let images = Images {
            engine: ports.engine.clone(),
            registry: ports.registry,
            registry_name: ports.registry_name,
            seal: ports.seal,
        };
        let settlement = Settlement {
            broker: ports.broker.clone(),
            ledger: ports.ledger,
            dead_letters: ports.dead_letters,
            policy: settings.retry.clone(),
            images: images.clone(),
            capacity: capacity.clone(),
            probe: ports.probe,
            holds: holds.clone(),
            observer,
        };
        let rules = Arc::new(settings.rules);
        let admission = Admission::new(AdmissionRules {
            builders: settings.builder.concurrency,
            per_user: settings.builds_per_user,
            supersede: settings.supersede,
        });
        let actors = Actors {
            supervisor: &supervisor,
            health,
            shutdown: &shutdown,
            settlement: &settlement,
            builds_per_user: settings.builds_per_user,
        };
        let pusher = Pusher { images: images.clone(), settlement: settlement.clone() };
        let pusher = actors.stage(ActorName::Pusher, settings.pusher, pusher);
        let builder = Builder {
            planner: ports.planner,
            engine: ports.engine.clone(),
            images: images.clone(),
            equal: KeyedLocks::default(),
            next: pusher.clone(),
        };
        let builder = actors.stage(ActorName::Builder, settings.builder, builder);
        let connector = Connector {
            forge: ports.forge.clone(),
            credentials: ports.credentials,
            holds,
            workspaces: ports.workspaces,
            next: builder,
        };
        let connector = actors.stage(ActorName::Connector, settings.connector, connector);
        let listener = actors.start(ActorName::Listener, READ_AT_ONCE.into(), |pool| Listener {
            pool,
            settlement: settlement.clone(),
            rules: rules.clone(),
            service: settings.service.clone(),
            admission: admission.clone(),
            job_timeout: settings.job_timeout,
            images,
            forge: ports.forge,
            engine: ports.engine.clone(),
            next: connector,
            shortcut: pusher,
        });
        let outcomes = settings.notifier.concurrency;
        let notifier = actors.start(ActorName::Notifier, outcomes, |pool| Notifier {
            pool,
            settlement: settlement.clone(),
            managers: ports.managers,
            policy: settings.retry,
            timeout: settings.notifier.timeout,
        });
        let failures = settings.retry_concurrency;
        let retry = actors.start(ActorName::Retry, failures, |pool| Retry {
            pool,
            settlement: settlement.clone(),
            rules,
        });

        let consumer = |queue, prefetch, until| Consumer {
            broker: ports.broker.clone(),
            settlement: settlement.clone(),
            queue,
            prefetch,
            shutdown: shutdown.clone(),
            until,
            last: OnceLock::new(),
            redeliveries: Redeliveries::default(),
            longest: GRACE + settings.notifier.timeout,
        };
        tokio::spawn(cancellations::hear(ports.broker.cancellations(), admission.clone()));
        let to_u16 = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        let (mut builds, mut ends) = (JoinSet::new(), JoinSet::new());
        builds.spawn(
            consumer(Queue::Build, READ_AT_ONCE, ShutdownPhase::Draining).run(listener.clone()),
        );
        let dispatcher = Dispatcher {
            broker: ports.broker.clone(),
            settlement: settlement.clone(),
            engine: ports.engine,
            admission: admission.clone(),
            most_in_hand: settings.most_in_hand,
            shutdown: shutdown.clone(),
            capacity: capacity.clone(),
            longest: GRACE + settings.job_timeout,
            redeliveries: Redeliveries::default(),
        };
        builds.spawn(dispatcher.run(listener));
        let closing = ShutdownPhase::Closing;
        ends.spawn(consumer(Queue::Outcome, to_u16(outcomes), closing).run(notifier));
        ends.spawn(consumer(Queue::Fail, to_u16(failures), closing).run(retry));
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

/// What the actors are made with.
struct Actors<'a> {
    supervisor: &'a Supervisor,
    health: &'a [Arc<Health>],
    shutdown: &'a Shutdown,
    settlement: &'a Settlement,
    builds_per_user: usize,
}

impl Actors<'_> {
    /// Starts the actor of a stage.
    fn stage<S: Stage>(
        &self,
        name: ActorName,
        StageSettings { concurrency, timeout }: StageSettings,
        stage: S,
    ) -> Mailbox<Work<S::In>> {
        self.start(name, concurrency, |pool| {
            let settlement = self.settlement.clone();
            StageActor { pool, settlement, timeout, stage }
        })
    }

    /// Starts an actor that works on so many messages at once.
    fn start<A, M>(
        &self,
        name: ActorName,
        concurrency: usize,
        make: impl FnOnce(Pool) -> A,
    ) -> Mailbox<M>
    where
        A: Actor<Context = Context<A>> + Handler<M> + Clone + Send + Sync,
        M: Message<Result = ()> + Leased + Send + 'static,
    {
        let found = self.health.iter().find(|health| health.name() == name);
        let health = found.map_or_else(|| Health::new(name), Arc::clone);
        let per_user = match name {
            ActorName::Builder => self.builds_per_user,
            _ => concurrency,
        };
        let slots = FairSemaphore::new(concurrency, per_user);
        let actor = make(Pool::new(slots, health.clone(), self.shutdown.clone()));
        self.supervisor.supervise(health, move || actor.clone())
    }
}
