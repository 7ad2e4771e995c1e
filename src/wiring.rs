//! The worker, put together from the settings: the one place that knows them and every adapter.

mod engines;
pub mod plans;
pub mod tools;

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use image_builder_actors::delivery::seal::Seal;
use image_builder_actors::model::digest::hex;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::model::shutdown::{Shutdown, ShutdownPhase};
use image_builder_actors::pipeline;
use image_builder_actors::pipeline::{Pipeline, Ports};
use image_builder_actors::ports::build_store::{BuildStore, StoreError};
use image_builder_actors::ports::{Broker, DeadLetterStore, DeadLetters, OutcomeLedger, Probe};
use image_builder_actors::telemetry::delivery_span::Observer;
use image_builder_actors::telemetry::health::Health;
use image_builder_actors::telemetry::history::Recorder;
use image_builder_actors::telemetry::metrics::Metrics;
use image_builder_actors::telemetry::statuses::{Link, StatusReporter};
use reqwest::Url;
use ring::pbkdf2;
use ring::pbkdf2::PBKDF2_HMAC_SHA256;
use time::OffsetDateTime;

use self::engines::Engines;
use self::plans::WorkerPlans;
use crate::api;
use crate::api::Observed;
use crate::api::readiness::Readiness;
use crate::api::v1::{self, Backend};
use crate::blocking::blocking;
use crate::broker::rabbitmq::dead_letters::DeadQueue;
use crate::broker::rabbitmq::queues::{Queues, QueuesError};
use crate::broker::rabbitmq::{ConnectError, RabbitMq, RabbitSettings, host_name};
use crate::broker::sqlite::moving::{Moved, move_all};
use crate::broker::sqlite::{SqliteBroker, SqliteSettings};
use crate::config::{
    BrokerConfig, Config, ForgeConfig, HistoryConfig, NetworkConfig, RegistryConfig,
};
use crate::credentials::{CredentialsSettings, ManagerSettings, TokenMaker};
use crate::data_dir::DataDir;
use crate::engine::docker::{DockerSettings, Tenancy};
use crate::engine::settings::{BuildSettings, RegistryAuth, StraightPush};
use crate::exit::{Exit, StartError};
use crate::hooks::Applications;
use crate::notify::{WebhookNotifier, WebhookSettings};
use crate::planner::{PlannerSettings, SourcePlanner, cache_secret};
use crate::registry::{RegistryClient, RegistrySettings};
use crate::source::{CacheSettings, GitConnector, GitSettings, GithubSettings};
use crate::store;
use crate::store::{Place, Store, StoreSettings};

/// What `/readyz` tells of.
const NEEDS: [&str; 4] = ["broker", "engine", "registry", "disk"];

/// And of this: builds go on without it.
const HISTORY: &str = "history";

/// And of this, where there are any: those that were read before stay in force.
const APPLICATIONS: &str = "applications";

/// And of this, where users are kept apart: whether build steps reach what they should not.
pub const NETWORK: &str = "network";

/// How often it is looked through for what is kept no longer.
const BETWEEN_TIDIES: Duration = Duration::from_secs(60 * 60);

/// How often it is counted what waits on the broker.
const BETWEEN_COUNTS: Duration = Duration::from_secs(10);

/// A worker at work.
pub struct Worker {
    pub pipeline: Pipeline,
    pub broker: Arc<dyn Broker>,
    /// What each actor is doing.
    pub health: Arc<[Arc<Health>]>,
    /// Records what happens to builds.
    pub history: Recorder,
    /// How what the worker needs stands.
    pub readiness: Readiness,
    /// Tells everything in the worker when it is to end.
    pub shutdown: Shutdown,
    /// Its own for as long as it works.
    _data_dir: DataDir,
}

impl Worker {
    /// Waits for the broker; what else is not there yet is found missing when it is needed. From the
    /// beginning it answers over HTTP, so that it can be seen what it waits for.
    ///
    /// # Errors
    ///
    /// A setting cannot be used on this machine or with this broker, or something is in use.
    pub async fn start(config: &Config, observer: Observer) -> Result<Self, StartError> {
        let data_dir = DataDir::open(&config.data_dir)?;
        let mut readiness = Readiness::of(&NEEDS).wanting(HISTORY);
        if config.hooks.applications.is_used() {
            readiness = readiness.wanting(APPLICATIONS);
        }
        readiness = engines::host_needs(config).fold(readiness, Readiness::wanting);
        if config.keeps_network_apart() {
            readiness = readiness.wanting(NETWORK);
        }
        let health = pipeline::health();
        let shutdown = Shutdown::default();
        let listener = api::listen("HTTP_ADDR", &config.api.address).await?;
        let of_hooks = match &config.hooks.address {
            Some(address) => Some(api::listen("HOOKS_ADDR", address).await?),
            None => None,
        };
        // Not always what was asked for: port 0 means any that is free.
        let http = listener.local_addr().map_or(config.api.address.clone(), |at| at.to_string());
        let observed = Observed {
            readiness: readiness.clone(),
            actors: health.clone(),
            metrics: observer.metrics.clone(),
            shutdown: shutdown.clone(),
        };
        let adapters = Adapters::assemble(config, &data_dir)
            .map_err(|error| StartError::new(Exit::Config, format!("{error:#}")))?;
        let (builds, name) = (adapters.builds(), worker_name(&http));
        let queues = Arc::<OnceLock<v1::Queues>>::default();
        let applications =
            Applications::open(config.hooks.applications.clone(), config.pipeline.rules.clone())
                .map_err(|lines| StartError::new(Exit::Config, lines.join("\n")))?;
        let applications = Arc::new(applications);
        let backend = Backend {
            store: builds.clone(),
            queues: queues.clone(),
            rules: Arc::new(config.pipeline.rules.clone()),
            token: config.api.token.clone(),
            worker: name.clone(),
            applications: applications.clone(),
            planning: Arc::new(adapters.plans(config, &data_dir)),
        };
        if let Some(listener) = of_hooks {
            tracing::info!(http = config.hooks.address, "hooks are served here as well");
            tokio::spawn(api::serve_hooks(listener, observed.clone(), backend.clone()));
        }
        tokio::spawn(api::serve(listener, observed, backend));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            http,
            data_dir = %data_dir.path().display(),
            "starting"
        );
        adapters.watch(&readiness);
        let looked_at = applications;
        readiness.watch(APPLICATIONS, move || {
            let applications = looked_at.clone();
            blocking(move || applications.look())
        });
        let history = Recorder::start(builds.clone(), &name);
        let observer = observer
            .with_history(history.clone())
            .with_statuses(adapters.statuses(config.hooks.public_url.as_ref()));
        tokio::spawn(tidy(builds, shutdown.clone()));
        let watched = watch_broker(&readiness);
        let queue = connect(config, &data_dir).await?;
        let broker = queue.broker.clone();
        let _ = watched.set(broker.clone());
        let reached =
            v1::Queues { broker: broker.clone(), dead_letters: queue.kept_letters.clone() };
        let _ = queues.set(reached);

        let engines = adapters.engines.clone();
        engines.show(&observer.metrics);
        tokio::spawn(count_waiting(broker.clone(), observer.metrics.clone(), shutdown.clone()));
        let ports = adapters.ports(queue, &data_dir);
        let pipeline =
            Pipeline::start(ports, config.pipeline.clone(), &health, observer, shutdown.clone());
        tokio::spawn(engines.run(pipeline.capacity.clone(), shutdown.clone()));
        Ok(Self { pipeline, broker, health, history, readiness, shutdown, _data_dir: data_dir })
    }
}

/// Everything that the worker speaks to, the broker apart: that one has to be waited for.
pub struct Adapters {
    /// The registry's name in references.
    registry_name: String,
    /// By which tags in the registry are known that a worker put.
    seal: Seal,
    forge: Arc<GitConnector>,
    credentials: Arc<TokenMaker>,
    planner: Arc<SourcePlanner>,
    engines: Engines,
    registry: Arc<RegistryClient>,
    managers: Arc<WebhookNotifier>,
    builds: Arc<dyn BuildStore>,
}

/// The build store at this place.
///
/// # Errors
///
/// As of [`store::open`].
pub fn build_store(config: &Config, place: Place) -> Result<Store, StoreError> {
    let HistoryConfig { ttl, budget, .. } = config.history;
    store::open(StoreSettings { place, ttl, budget: budget.0 })
}

impl Adapters {
    /// Opens no connection: what is not there yet is found missing when it is needed.
    ///
    /// # Errors
    ///
    /// The machine lacks what an adapter needs: certificates, or room in the data directory. The
    /// settings are good, or there would be no [`Config`].
    pub fn assemble(config: &Config, data_dir: &DataDir) -> anyhow::Result<Self> {
        let registry_name = config.registry.url.to_string();
        let secret = cache_secret(data_dir.path()).context("DATA_DIR")?;
        let engine = DockerSettings {
            push_journal: Some(data_dir.pushes()),
            builds: BuildSettings {
                salt_key: secret.clone(),
                push_auth: push_auth(&config.registry),
                own_registry: Some(config.registry.url.server_address().to_owned()),
                straight: Some(StraightPush { plain_http: config.registry.url.is_plain_http() }),
                ..config.engine.builds.clone()
            },
            ..config.engine.clone()
        };
        let engines = Engines::assemble(config, engine, data_dir.path())?;
        let registry = registry_client(&config.registry).context("the registry's client")?;
        let managers = WebhookSettings {
            container_manager_url: config.notify.container_manager.clone(),
            connector_manager_url: config.notify.connector_manager.clone(),
            keys: config.notify.keys.clone(),
            timeout: config.pipeline.notifier.timeout,
        };
        let credentials = CredentialsSettings {
            manager: config
                .forge
                .credentials_url
                .clone()
                .map(|url| ManagerSettings { url, keys: config.notify.keys.clone() }),
            github_app: config.forge.github_app.clone(),
        };
        let place = match &config.history.database {
            Some(url) => Place::Postgres(url.clone()),
            None => Place::File(data_dir.history()),
        };
        let builds = build_store(config, place).context("DATABASE_URL")?;
        let git_cache = config.git_cache.map(|budget| CacheSettings {
            directory: data_dir.git(),
            budget: budget.0,
            secret: secret.clone(),
        });
        let seal = seal(config, &secret);
        let planner = planner(&config.limits, secret, config.engine.builds.tenancy);
        Ok(Self {
            registry_name,
            seal,
            forge: Arc::new(forge_client(
                &config.forge,
                &config.network,
                &config.limits,
                git_cache,
            )?),
            credentials: Arc::new(TokenMaker::new(credentials).context("the makers of tokens")?),
            planner: Arc::new(planner),
            engines,
            registry: Arc::new(registry),
            managers: Arc::new(WebhookNotifier::new(managers).context("the managers' client")?),
            builds: Arc::new(builds),
        })
    }

    /// Keeps an eye on what the worker needs.
    pub fn watch(&self, readiness: &Readiness) {
        self.engines.watch(readiness);
        let registry = self.registry.clone();
        readiness.watch("registry", move || {
            let registry = registry.clone();
            async move { registry.ping().await.map_err(|fault| fault.message) }
        });
        let builds = self.builds.clone();
        readiness.watch(HISTORY, move || {
            let builds = builds.clone();
            async move { builds.look().await.map_err(|error| error.to_string()) }
        });
    }

    /// What is known of builds, for whoever asks.
    pub fn builds(&self) -> Arc<dyn BuildStore> {
        self.builds.clone()
    }

    /// Has forges show on commits how builds stand, with links to where people reach the service.
    fn statuses(&self, public: Option<&Url>) -> StatusReporter {
        let public = public.map(|url| url.as_str().trim_end_matches('/').to_owned());
        let link: Link = Arc::new(move |build| {
            let page = api::path_of(&build.build_id, build.user_id.as_deref());
            Some(format!("{}{page}", public.as_ref()?))
        });
        StatusReporter::new(self.forge.clone(), self.credentials.clone(), link)
    }

    /// What would be built, for whoever asks.
    fn plans(&self, config: &Config, data_dir: &DataDir) -> WorkerPlans {
        WorkerPlans {
            forge: self.forge.clone(),
            credentials: self.credentials.clone(),
            planner: self.planner.clone(),
            builds: config.engine.builds.clone(),
            workspaces: data_dir.workspaces(),
            service: config.pipeline.service.clone(),
        }
    }

    /// All ports, with this broker.
    fn ports(self, queue: Queueing, data_dir: &DataDir) -> Ports {
        let Queueing { broker, ledger, dead_letters, .. } = queue;
        let probe = Probes {
            forge: self.forge.clone(),
            engines: self.engines.clone(),
            registry: self.registry.clone(),
        };
        Ports {
            probe: Arc::new(probe),
            ledger,
            dead_letters,
            broker,
            forge: self.forge,
            credentials: self.credentials,
            planner: self.planner,
            engine: self.engines.builder(),
            registry: self.registry,
            managers: self.managers,
            registry_name: self.registry_name,
            seal: self.seal,
            workspaces: data_dir.workspaces(),
        }
    }
}

/// What this worker is called where several are spoken of: no other one has its machine and its port.
fn worker_name(http: &str) -> String {
    let port = http.rsplit(':').next().unwrap_or_default();
    format!("{}:{port}", host_name())
}

/// Plans for an engine whose users are kept apart like this.
fn planner(limits: &Limits, secret: Secret, tenancy: Tenancy) -> SourcePlanner {
    let own_front_end = tenancy == Tenancy::Strict;
    SourcePlanner::new(PlannerSettings {
        own_front_end,
        ..PlannerSettings::new(limits.clone(), secret)
    })
}

/// What this worker and its replicas know each other's tags by. Those that share a broker share its password: who
/// has that can publish outcomes anyhow. It is not to be tried out by seals, which stand in the registry.
fn seal(config: &Config, own: &Secret) -> Seal {
    const ROUNDS: NonZeroU32 = NonZeroU32::new(10_000).expect("more than none");
    if let Some(secret) = &config.registry.reuse_secret {
        return Seal::new(secret.clone());
    }
    let address = config.broker.rabbitmq.as_ref().and_then(|it| Url::parse(it.uri.expose()).ok());
    let Some(password) = address.as_ref().and_then(Url::password) else {
        return Seal::new(own.clone());
    };
    let (salt, mut key) = (b"image-builder.seal", [0; 32]);
    pbkdf2::derive(PBKDF2_HMAC_SHA256, ROUNDS, salt, password.as_bytes(), &mut key);
    Seal::new(Secret::new(hex(&key)))
}

/// What the engine pushes with; `None` = nothing.
fn push_auth(registry: &RegistryConfig) -> Option<Arc<RegistryAuth>> {
    let known = registry.credentials.as_ref()?;
    Some(Arc::new(RegistryAuth {
        host: registry.url.server_address().to_owned(),
        username: known.username.clone(),
        password: known.password.clone(),
    }))
}

fn registry_client(registry: &RegistryConfig) -> anyhow::Result<RegistryClient> {
    RegistryClient::new(RegistrySettings {
        credentials: registry.credentials.clone(),
        ..RegistrySettings::new(registry.url.clone())
    })
}

fn forge_client(
    forge: &ForgeConfig,
    network: &NetworkConfig,
    limits: &Limits,
    cache: Option<CacheSettings>,
) -> anyhow::Result<GitConnector> {
    let settings = GitSettings {
        github: GithubSettings { url: forge.url.clone(), api_url: forge.api_url.clone() },
        forges: forge.others.clone(),
        proxies: network.own_proxies(),
        allowed: network.allowed.clone(),
        limits: limits.clone(),
        cache,
        ..GitSettings::default()
    };
    GitConnector::new(settings).context("the forge's client")
}

/// Looks at what the worker needs.
struct Probes {
    forge: Arc<GitConnector>,
    engines: Engines,
    registry: Arc<RegistryClient>,
}

impl Probe for Probes {
    fn look(&self, reason: Reason) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let answer = match reason {
                Reason::ForgeDown => self.forge.ping().await,
                Reason::EngineDown => return self.engines.look().await,
                // Where the forge asks for patience, that is a hold and looked at by nobody.
                Reason::RegistryDown | Reason::RateLimited => self.registry.ping().await,
                Reason::DiskLow => return self.engines.look_at_disk().await,
                _ => Ok(()),
            };
            answer.map_err(|fault| fault.message)
        })
    }

    fn probe(&self, reason: Reason) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            match reason {
                Reason::DiskLow => self.engines.make_room().await,
                _ => self.look(reason).await,
            }
        })
    }
}

/// The broker, with what else is kept there.
pub struct Queueing {
    pub broker: Arc<dyn Broker>,
    pub ledger: Arc<dyn OutcomeLedger>,
    pub dead_letters: Arc<dyn DeadLetters>,
    /// The dead letters, for whoever reads them.
    pub kept_letters: Arc<dyn DeadLetterStore>,
}

impl Queueing {
    fn of_rabbitmq(broker: RabbitMq, settings: RabbitSettings) -> Self {
        let (ledger, broker) = (broker.outcome_ledger(), Arc::new(broker));
        let kept_letters = Arc::new(DeadQueue::new(settings));
        Self { ledger, dead_letters: broker.clone(), broker, kept_letters }
    }
}

impl From<SqliteBroker> for Queueing {
    fn from(broker: SqliteBroker) -> Self {
        let (ledger, broker) = (broker.outcome_ledger(), Arc::new(broker));
        Self { ledger, dead_letters: broker.clone(), kept_letters: broker.clone(), broker }
    }
}

/// What RabbitMQ's adapter needs to know, at this address.
pub fn rabbitmq(config: &BrokerConfig, uri: Secret) -> RabbitSettings {
    let settings = RabbitSettings::new(uri, config.topology.clone());
    RabbitSettings { dead_ttl: config.dead_ttl, ..settings }
}

/// Opens the embedded queue in a directory that this process has.
async fn open_embedded(config: &Config, data_dir: &DataDir) -> Result<SqliteBroker, StartError> {
    let settings = SqliteSettings::new(data_dir.queue());
    let settings = SqliteSettings { dead_ttl: config.broker.dead_ttl, ..settings };
    SqliteBroker::open(settings).await.map_err(|error| StartError::new(Exit::Config, error))
}

/// The dead letters, for the commands. Where they are in the embedded queue no worker may be at work on it.
///
/// # Errors
/// A worker is, or the directory or its queue cannot be used.
pub async fn dead_letters(config: &Config) -> Result<OpenDeadLetters, StartError> {
    if let Some(config_of_broker) = &config.broker.rabbitmq {
        let store = DeadQueue::new(rabbitmq(&config.broker, config_of_broker.uri.clone()));
        return Ok(OpenDeadLetters { store: Box::new(store), _data_dir: None });
    }
    let data_dir = DataDir::open(&config.data_dir)?;
    let store = open_embedded(config, &data_dir).await?;
    Ok(OpenDeadLetters { store: Box::new(store), _data_dir: Some(data_dir) })
}

/// Dead letters, and the directory they are in, held for as long as they are read.
pub struct OpenDeadLetters {
    pub store: Box<dyn DeadLetterStore>,
    _data_dir: Option<DataDir>,
}

/// The queues of RabbitMQ, for the commands; `None` = the embedded queue is used.
pub fn queues(config: &Config) -> Option<Queues> {
    let config_of_broker = config.broker.rabbitmq.as_ref()?;
    Some(Queues::new(rabbitmq(&config.broker, config_of_broker.uri.clone())))
}

/// Moves all that waits in the embedded queue to RabbitMQ at this address, and says how far it is. No worker may be
/// at work on it.
///
/// # Errors
/// Either of them cannot be used. What was not moved is where it was.
pub async fn move_queue(
    config: &Config,
    uri: Secret,
    tell: impl FnMut(&Moved) + Send,
) -> Result<Moved, StartError> {
    let data_dir = DataDir::open(&config.data_dir)?;
    let settings = rabbitmq(&config.broker, uri);
    let unavailable = |error: &dyn std::fmt::Display| StartError::new(Exit::Unavailable, error);
    // One who is connected waits for the broker for as long as it takes; whoever looks at a terminal does not.
    Queues::new(settings.clone()).look().await.map_err(|error| match error {
        QueuesError::Refused(error) => StartError::new(Exit::Config, error),
        error => unavailable(&error),
    })?;
    let to =
        RabbitMq::connect(settings).await.map_err(|error| StartError::new(Exit::Config, error))?;
    let moved = move_all(&data_dir.queue(), &to, &to, tell).await;
    to.close().await;
    moved.map_err(|error| unavailable(&error))
}

/// Opens the embedded queue, or waits until RabbitMQ is there.
async fn connect(config: &Config, data_dir: &DataDir) -> Result<Queueing, StartError> {
    let Some(config_of_broker) = &config.broker.rabbitmq else {
        tracing::info!(
            "broker: the embedded queue in DATA_DIR, since RABBITMQ_URI is not set; this worker alone has it"
        );
        return open_embedded(config, data_dir).await.map(Queueing::from);
    };
    tracing::info!("broker: RabbitMQ");
    let refused = |error: ConnectError| match &error {
        // A queue or the exchange is there already and is of another kind: no matter of the address.
        ConnectError::Topology { .. } => StartError::new(Exit::Config, error),
        ConnectError::Address { .. } | ConnectError::Refused { .. } => {
            StartError::new(Exit::Config, format!("{}: {error}", config_of_broker.uri_variable))
        }
    };
    let settings = rabbitmq(&config.broker, config_of_broker.uri.clone());
    let connected = RabbitMq::connect(settings.clone()).await.map_err(refused)?;
    Ok(Queueing::of_rabbitmq(connected, settings))
}

/// Watches the broker from before there is one: until it is put into the cell, it is not ready.
fn watch_broker(readiness: &Readiness) -> Arc<OnceLock<Arc<dyn Broker>>> {
    let cell: Arc<OnceLock<Arc<dyn Broker>>> = Arc::default();
    let broker = cell.clone();
    readiness.watch("broker", move || {
        let broker = broker.get().cloned();
        async move {
            match broker {
                Some(broker) => broker.look().await,
                None => Err("not connected".to_owned()),
            }
        }
    });
    cell
}

/// Counts again and again what waits on the broker, until the worker ends.
async fn count_waiting(broker: Arc<dyn Broker>, metrics: Metrics, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(BETWEEN_COUNTS);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.reached(ShutdownPhase::Closing) => return,
        }
        match broker.waiting().await {
            Ok(requests) => metrics.requests_waiting(requests),
            // The last number stays; `/readyz` says that the broker is away.
            Err(error) => tracing::debug!(%error, "cannot count what waits"),
        }
    }
}

/// Removes what the history keeps no longer, now and again, until the worker ends.
async fn tidy(builds: Arc<dyn BuildStore>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(BETWEEN_TIDIES);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.reached(ShutdownPhase::Closing) => return,
        }
        let tidied = tokio::select! {
            tidied = builds.tidy(OffsetDateTime::now_utc()) => tidied,
            () = shutdown.reached(ShutdownPhase::Closing) => return,
        };
        if let Err(error) = tidied {
            // `/readyz` says so where it is away.
            tracing::debug!(%error, "the history is not tidied");
        }
    }
}
