//! Settings: from the environment and `config/.env` to typed values, one struct a room.
//!
//! | file | what is in it |
//! |---|---|
//! | `settings.rs` | the table: each setting with its name, kind, default and meaning |
//! | `values.rs` | the kinds of values |
//! | `table.rs` | the table as data, and its variables |
//! | `environment.rs` | where the texts come from |
//! | `file.rs` | `config/.env` |
//! | `names.rs` | what was meant by a name that is none |
//! | `reader.rs` | from a text to a value, or to a line on what is wrong with it; a method a setting |
//! | `documents.rs` | the table as `config/.env.example` and as `docs/settings.md` |
//!
//! Reading never stops at the first bad value: [`ConfigErrors`] names them all.

mod documents;
mod environment;
mod file;
mod names;
mod reader;
mod settings;
mod table;
mod traces;
mod values;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::ForgeName;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::parse::Rules;
use image_builder_actors::pipeline::StageSettings;
use image_builder_actors::scheduling::retry_policy::RetryPolicy;
use image_builder_actors::supervision::RestartIntensity;
use reqwest::Url;
use tracing_subscriber::EnvFilter;

pub use self::documents::example;
pub use self::environment::{ENV_FILE, Environment, Source};
use self::file::EnvFile;
pub use self::reader::Effective;
use self::reader::Reader;
pub use self::table::{Fallback, GROUPS, Group, Setting};
use crate::broker::rabbitmq::topology::{Topology, TopologySettings};
use crate::credentials::GithubAppSettings;
use crate::engine::docker::disk::size::{Size, Watermark};
use crate::engine::docker::{DockerEngine, DockerSettings, Tenancy};
use crate::engine::fleet::{Fleet, FleetSettings};
use crate::engine::settings::{BuildSettings, CacheRegistry, PushedImages};
use crate::hooks::ApplicationsSettings;
use crate::net::networks::Networks;
use crate::net::proxy::Proxies;
use crate::net::signature::SigningKeys;
use crate::registry::{RegistryCredentials, RegistryUrl};
use crate::source::ForgeSettings;
use crate::telemetry::LogFormat;
use crate::telemetry::traces::TraceSettings;

/// All settings. Their names, defaults and meanings are in [`GROUPS`].
#[derive(Debug, Clone)]
pub struct Config {
    pub broker: BrokerConfig,
    pub engine: DockerSettings,
    /// What builds in place of that engine; `None` = it does.
    pub fleet: Option<FleetSettings>,
    pub disk: DiskConfig,
    pub registry: RegistryConfig,
    pub notify: NotifyConfig,
    pub forge: ForgeConfig,
    pub hooks: HooksConfig,
    pub network: NetworkConfig,
    /// What may be kept of repositories; `None` = nothing.
    pub git_cache: Option<Size>,
    pub history: HistoryConfig,
    pub pipeline: PipelineConfig,
    pub api: ApiConfig,
    pub telemetry: TelemetryConfig,
    pub data_dir: PathBuf,
    pub limits: Limits,
    /// What may not be meant so in `config/.env`, one line each.
    pub remarks: Vec<String>,
}

impl Config {
    /// Reads the settings out of `vars` alone.
    ///
    /// # Errors
    ///
    /// All bad and missing values.
    pub fn read(vars: HashMap<String, String>) -> Result<Self, ConfigErrors> {
        let vars = vars.into_iter().map(|(name, value)| (name.into(), value.into()));
        Environment::of(vars, EnvFile::default()).config()
    }

    /// What can be set so and is hardly meant so, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let pipeline = &self.pipeline;
        let stages = [&pipeline.connector, &pipeline.builder, &pipeline.pusher];
        let stages = stages.iter().map(|stage| stage.timeout).sum();
        let job = pipeline.job_timeout;
        let cut_short = (stages > job).then(|| {
            format!(
                "JOB_TIMEOUT: {} is less than CONNECTOR_TIMEOUT, BUILDER_TIMEOUT and PUSHER_TIMEOUT together ({}): a job whose stages take their time is cut short; raise JOB_TIMEOUT (and keep it below RABBITMQ_CONSUMER_TIMEOUT), or lower the others",
                humantime::format_duration(job),
                humantime::format_duration(stages)
            )
        });
        let (places, builders) = (pipeline.most_in_hand, pipeline.builder.concurrency);
        let idle = (usize::from(places) < builders).then(|| {
            format!(
                "LISTENER_CONCURRENCY: {places} is less than BUILDER_CONCURRENCY ({builders}): some builders never have anything to build; raise it, or lower BUILDER_CONCURRENCY"
            )
        });
        let trusted = (self.engine.builds.tenancy == Tenancy::Trusted).then(|| {
            "TENANCY: with `trusted` every user can reach what the builds of others read and make on the engine, and what the engine's machine reaches; set it to `strict` if they do not trust each other".to_owned()
        });
        let host = (self.engine.builds.network.as_deref() == Some("host")).then(|| {
            "BUILDER_NETWORK: with `host` every build step reaches what the engine's machine reaches, services on its loopback included; leave it unset if users are not trusted with that".to_owned()
        });
        let own = self.remarks.iter().cloned();
        own.chain(cut_short).chain(idle).chain(trusted).chain(host).collect()
    }

    /// What a command needs that builds by itself.
    pub fn tools(&self) -> ToolConfig {
        ToolConfig {
            engine: self.engine.clone(),
            registry: self.registry.clone(),
            forge: self.forge.clone(),
            network: self.network.clone(),
            limits: self.limits.clone(),
            home: None,
        }
    }

    /// Whether build steps are on the engine's bridge, and users are to be kept apart: then it matters what steps
    /// reach.
    pub fn keeps_network_apart(&self) -> bool {
        self.engine.builds.tenancy == Tenancy::Strict && self.engine.builds.network.is_none()
    }

    /// `None` only where there are errors.
    fn assemble(read: &mut Reader<'_>, cores: usize) -> Option<Self> {
        let limits = Limits::default();
        let network = NetworkConfig::read(read);
        let pipeline = PipelineConfig::read(read, cores);
        // All is read before the first that is missing ends it: all errors are reported at once.
        let broker = BrokerConfig::read(read, &pipeline.retry);
        let (forge, good) = read.good(ForgeConfig::read);
        let hooks = HooksConfig::read(read, good.then(|| forge.rules(&limits)));
        let engine = engine(read, &network, limits.clone());
        let disk = DiskConfig::read(read);
        Some(Self {
            fleet: fleet(read, &engine, &disk, pipeline.builder.concurrency),
            engine,
            network,
            disk,
            registry: RegistryConfig::read(read),
            notify: NotifyConfig::read(read),
            forge,
            hooks,
            git_cache: read.git_cache_budget(),
            history: HistoryConfig::read(read),
            pipeline,
            api: ApiConfig::read(read),
            telemetry: TelemetryConfig::read(read),
            data_dir: read.data_dir(),
            limits,
            remarks: read.environment.warnings.clone(),
            broker: broker?,
        })
    }
}

impl Environment {
    /// The settings.
    ///
    /// # Errors
    ///
    /// All bad and missing values.
    pub fn config(&self) -> Result<Config, ConfigErrors> {
        self.effective().map(|(config, _)| config)
    }

    /// The settings, and of each what is to be shown of it, in the order of the table.
    ///
    /// # Errors
    ///
    /// All bad and missing values.
    pub fn effective(&self) -> Result<(Config, Vec<Effective>), ConfigErrors> {
        let mut reader = Reader::new(self);
        reader.errors.clone_from(&self.errors);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let config = Config::assemble(&mut reader, cores);
        let (config, mut effective) = reader.finish(config)?;
        effective.sort_by_key(|it| Setting::all().position(|one| std::ptr::eq(one, it.setting)));
        Ok((config, effective))
    }

    /// Gives the process those variables that libraries read out of its environment by themselves, and child
    /// processes expect there: of proxies and certificates. They may stand in a file, and in either case.
    ///
    /// Bad ones are left as they are; whoever reads the settings says what is wrong with them.
    ///
    /// # Safety
    /// No other thread may be there yet.
    #[allow(unsafe_code, reason = "there is no other way to give libraries these variables")]
    pub unsafe fn give_to_libraries(&self) {
        let network = NetworkConfig::read(&mut Reader::new(self));
        for (name, value) in network.variables() {
            // SAFETY: the caller promises that nobody else reads or writes the environment.
            unsafe { std::env::set_var(name, value) };
        }
    }

    /// What a command needs that builds by itself, whatever else is set.
    ///
    /// # Errors
    ///
    /// All of these that are bad.
    pub fn tools(&self) -> Result<ToolConfig, ConfigErrors> {
        let mut reader = Reader::new(self);
        let tools = ToolConfig::read(&mut reader);
        reader.finish(Some(tools)).map(|(tools, _)| tools)
    }

    /// What `image-builder doctor` looks at one by one, whatever else is set.
    ///
    /// # Errors
    ///
    /// All of these that are bad.
    pub fn doctor(&self) -> Result<DoctorConfig, ConfigErrors> {
        let mut reader = Reader::new(self);
        let (tools, disk) = (ToolConfig::read(&mut reader), DiskConfig::read(&mut reader));
        let doctor = DoctorConfig {
            fleet: fleet(&mut reader, &tools.engine, &disk, 1),
            tools,
            disk,
            notify: NotifyConfig::read(&mut reader),
            data_dir: reader.data_dir(),
        };
        reader.finish(Some(doctor)).map(|(doctor, _)| doctor)
    }

    /// `HTTP_ADDR` alone, whatever else is set.
    ///
    /// # Errors
    ///
    /// It is bad.
    pub fn http_addr(&self) -> Result<String, ConfigErrors> {
        let mut reader = Reader::new(self);
        let address = reader.http_addr();
        reader.finish(Some(address)).map(|(address, _)| address)
    }

    /// How a service is asked, whatever else is set.
    ///
    /// # Errors
    ///
    /// All bad values of it.
    pub fn api(&self) -> Result<ApiConfig, ConfigErrors> {
        let mut reader = Reader::new(self);
        let api = ApiConfig::read(&mut reader);
        reader.finish(Some(api)).map(|(api, _)| api)
    }
}

/// The settings that a command needs which builds by itself: no queue is among them.
#[derive(Debug, Clone)]
pub struct ToolConfig {
    pub engine: DockerSettings,
    pub registry: RegistryConfig,
    pub forge: ForgeConfig,
    pub network: NetworkConfig,
    pub limits: Limits,
    /// The directory of the user who calls.
    pub home: Option<PathBuf>,
}

impl ToolConfig {
    fn read(read: &mut Reader<'_>) -> Self {
        let limits = Limits::default();
        let network = NetworkConfig::read(read);
        Self {
            engine: engine(read, &network, limits.clone()),
            network,
            registry: RegistryConfig::read(read),
            forge: ForgeConfig::read(read),
            limits,
            home: read.home().map(PathBuf::from),
        }
    }
}

/// The settings that `image-builder doctor` looks at one by one, with those of [`ToolConfig`].
#[derive(Debug, Clone)]
pub struct DoctorConfig {
    pub tools: ToolConfig,
    /// What builds in place of the Docker Engine.
    pub fleet: Option<FleetSettings>,
    pub disk: DiskConfig,
    pub notify: NotifyConfig,
    pub data_dir: PathBuf,
}

#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `None` = the embedded queue.
    pub rabbitmq: Option<RabbitConfig>,
    /// What the queues of RabbitMQ are called, whether or not it is used.
    pub topology: Topology,
    /// `None` = no dead letters are kept.
    pub dead_ttl: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct RabbitConfig {
    pub uri: Secret,
    /// The variable that brought the address.
    pub uri_variable: String,
}

impl BrokerConfig {
    /// `None` only where there are errors.
    fn read(read: &mut Reader<'_>, retry: &RetryPolicy) -> Option<Self> {
        let (uri, good) = read.good(Reader::rabbitmq_uri);
        let dead_ttl = read.dead_queue_ttl();
        let settings = TopologySettings {
            build_queue: read.build_queue(),
            fail_queue: read.fail_queue(),
            outcome_queue: read.outcome_queue(),
            dead_queue: read.dead_queue(),
            result_queue: read.result_queue(),
            cancel_exchange: read.cancel_exchange(),
            build_lanes: read.build_lanes(),
            build_rungs: retry.rungs(),
            outcome_rungs: retry.rungs(),
        };
        if good && uri.is_none() && settings.result_queue.is_some() {
            read.bad("RESULT_QUEUE", "needs RABBITMQ_URI: nobody else can read the embedded queue");
        }
        // The errors name the variables themselves.
        let topology = Topology::new(settings)
            .map_err(|errors| read.errors.extend(errors.iter().map(ToString::to_string)));
        let (topology, uri_variable) = (topology.ok()?, read.variable_of("RABBITMQ_URI"));
        let rabbitmq = uri.zip(uri_variable);
        let rabbitmq = rabbitmq.map(|(uri, uri_variable)| RabbitConfig { uri, uri_variable });
        Some(Self { rabbitmq, topology, dead_ttl })
    }
}

/// An address of RabbitMQ that somebody gave.
///
/// # Errors
/// What is wrong with it, without a credential.
pub fn broker_address(text: &str) -> Result<Secret, String> {
    (values::AMQP_URI.read)(text)
}

#[derive(Debug, Clone)]
pub struct HooksConfig {
    /// `host:port` of a server that has hooks alone; `None` = there is none.
    pub address: Option<String>,
    /// Where people reach the service.
    pub public_url: Option<Url>,
    /// What is built after a push.
    pub applications: ApplicationsSettings,
}

impl HooksConfig {
    /// The file of the applications is looked at where it is known which forges there are.
    fn read(read: &mut Reader<'_>, rules: Option<Rules>) -> Self {
        let secrets = [
            (ForgeName::Github, read.github_hook_secret()),
            (ForgeName::Gitlab, read.gitlab_hook_secret()),
            (ForgeName::Gitea, read.gitea_hook_secret()),
        ];
        let secrets = secrets.into_iter().filter_map(|(forge, secret)| Some((forge, secret?)));
        let applications =
            ApplicationsSettings { file: read.applications_file(), secrets: secrets.collect() };
        if let Some(Err(lines)) = rules.map(|rules| applications.check(&rules)) {
            read.errors.extend(lines);
        }
        Self { address: read.hooks_addr(), public_url: read.public_url(), applications }
    }
}

/// The engine, as Docker's own client would find it.
fn engine(read: &mut Reader<'_>, network: &NetworkConfig, limits: Limits) -> DockerSettings {
    let usual = read.home().map(|home| home.join(".docker"));
    let docker_config = read.docker_config().or(usual);
    let settings = DockerSettings {
        host: read.docker_host(),
        cert_path: read.docker_cert_path().or_else(|| docker_config.clone()),
        tls_verify: read.docker_tls_verify().is_some(),
        builds: BuildSettings {
            network: read.builder_network(),
            proxies: network.proxies.clone(),
            allowed: network.allowed.clone(),
            allowed_hosts: network.allowed_hosts.clone(),
            memory: read.builder_memory(),
            cpus: read.builder_cpus(),
            cgroups: read.builder_cgroups().unwrap_or_default(),
            tenancy: read.tenancy(),
            limits,
            docker_config,
            pushed: PushedImages {
                reproducible: read.reproducible_images(),
                compression: read.image_compression(),
                provenance: read.image_provenance(),
                sbom_generator: read.image_sbom(),
            },
            cache: cache_registry(read),
            ..BuildSettings::default()
        },
        ..DockerSettings::default()
    };
    if let Err(error) = DockerEngine::connect(settings.clone()) {
        // It names the variable itself.
        read.errors.push(error.to_string());
    }
    settings
}

/// Where build caches are kept beside the engine.
fn cache_registry(read: &mut Reader<'_>) -> Option<CacheRegistry> {
    let mode = read.cache_mode();
    let url = read.cache_registry()?;
    Some(CacheRegistry { name: url.to_string(), plain_http: url.is_plain_http(), mode })
}

/// The hosts of `BUILDKIT_HOST`; `None` = it is not set. `concurrency` = builds at once.
fn fleet(
    read: &mut Reader<'_>,
    engine: &DockerSettings,
    disk: &DiskConfig,
    concurrency: usize,
) -> Option<FleetSettings> {
    let (hosts, tls_dir) = (read.buildkit_host(), read.buildkit_tls_dir());
    let drain = read.buildkit_drain().unwrap_or_default();
    let taking = hosts.as_ref().map_or(1, |hosts| hosts.len().saturating_sub(drain.len()).max(1));
    let shared = u16::try_from(concurrency.div_ceil(taking)).unwrap_or(u16::MAX);
    let builds_per_host = usize::from(read.buildkit_builds_per_host(shared));
    let settings = FleetSettings {
        hosts: hosts?,
        tls_dir,
        drain,
        builds_per_host,
        budget: disk.budget,
        low: disk.low.clone(),
        builds: engine.builds.clone(),
    };
    if let Err(error) = Fleet::new(settings.clone(), PathBuf::new()) {
        // It names the variable itself.
        read.errors.push(error.to_string());
    }
    Some(settings)
}

#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// Free space below which nothing is built.
    pub low: Watermark,
    /// Free space that pruning aims at.
    pub high: Watermark,
    /// What images made here and the build cache may hold on the engine.
    pub budget: Size,
}

impl DiskConfig {
    fn read(read: &mut Reader<'_>) -> Self {
        let (disk, good) = read.good(|read| Self {
            low: read.disk_low_watermark(),
            high: read.disk_high_watermark(),
            budget: read.cache_budget(),
        });
        if good && !disk.low.may_be_below(&disk.high) {
            read.bad(
                "DISK_LOW_WATERMARK",
                format!("`{}` must be below DISK_HIGH_WATERMARK, `{}`", disk.low, disk.high),
            );
        }
        disk
    }
}

#[derive(Debug, Clone)]
pub struct RegistryConfig {
    pub url: RegistryUrl,
    /// `None` = anonymous.
    pub credentials: Option<RegistryCredentials>,
}

impl RegistryConfig {
    fn read(read: &mut Reader<'_>) -> Self {
        let url = read.registry_url();
        let username = read.registry_username();
        let (password, good) = read.good(Reader::registry_password);
        // A bad one is set, too.
        match (&username, password.is_some() || !good) {
            (Some(_), false) => {
                read.bad("REGISTRY_PASSWORD", "is missing beside REGISTRY_USERNAME");
            }
            (None, true) => read.bad("REGISTRY_USERNAME", "is missing beside REGISTRY_PASSWORD"),
            _ => {}
        }
        let credentials = username.zip(password);
        let credentials =
            credentials.map(|(username, password)| RegistryCredentials { username, password });
        Self { url, credentials }
    }
}

#[derive(Debug, Clone)]
pub struct NotifyConfig {
    /// `None` = the notification is only logged. May hold a credential.
    pub container_manager: Option<Url>,
    pub connector_manager: Option<Url>,
    /// `None` = notifications are not signed.
    pub keys: Option<SigningKeys>,
}

impl NotifyConfig {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            container_manager: read.container_manager_url(),
            connector_manager: read.connector_manager_url(),
            keys: read.notifier_secret(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct ForgeConfig {
    /// Without a trailing slash.
    pub url: String,
    pub api_url: String,
    pub others: ForgeSettings,
    /// Who makes tokens of what the platform calls credentials; may hold a credential.
    pub credentials_url: Option<Url>,
    pub github_app: Option<GithubAppSettings>,
}

impl ForgeConfig {
    fn read(read: &mut Reader<'_>) -> Self {
        let (url, api_url) = (read.github_url(), read.github_api_url());
        let id = read.github_app_id();
        let (key, good) = read.good(Reader::github_app_key);
        // A bad one is set, too.
        match (&id, key.is_some() || !good) {
            (Some(_), false) => read.bad("GITHUB_APP_KEY", "is missing beside GITHUB_APP_ID"),
            (None, true) => read.bad("GITHUB_APP_ID", "is missing beside GITHUB_APP_KEY"),
            _ => {}
        }
        let github_app = id.zip(key).zip(Url::parse(&api_url).ok());
        let github_app =
            github_app.map(|((id, key), api_url)| GithubAppSettings { id, key, api_url });
        let others = ForgeSettings {
            gitlab: Some(read.gitlab_url()),
            gitea: read.gitea_url(),
            bitbucket: Some(read.bitbucket_url()),
            git: read.git_servers().unwrap_or_default(),
        };
        Self { url, api_url, others, credentials_url: read.credentials_url(), github_app }
    }

    /// What requests are checked against.
    pub fn rules(&self, limits: &Limits) -> Rules {
        let ForgeSettings { gitlab, gitea, bitbucket, git } = &self.others;
        let others = [
            (ForgeName::Gitlab, gitlab.as_slice()),
            (ForgeName::Gitea, gitea.as_slice()),
            (ForgeName::Bitbucket, bitbucket.as_slice()),
            (ForgeName::Git, git),
        ];
        let urls = others.iter().flat_map(|(name, urls)| urls.iter().map(|url| (*name, url)));
        let rules = Rules::new(&self.url, limits.clone());
        urls.fold(rules, |rules, (name, url)| rules.with(name, url))
    }
}

/// How other networks are reached, and by which certificates servers are known.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// As builds are told of them.
    pub proxies: Proxies,
    /// What may be reached for strangers though it is not public.
    pub allowed: Networks,
    /// Hosts from which strangers' builds may add files.
    pub allowed_hosts: Vec<String>,
    certificates: [(&'static str, Option<String>); 2],
}

impl NetworkConfig {
    fn read(read: &mut Reader<'_>) -> Self {
        let file = read.ssl_cert_file().map(|file| file.display().to_string());
        Self {
            proxies: Proxies {
                http: read.http_proxy(),
                https: read.https_proxy(),
                exempt: read.no_proxy(),
            },
            allowed: read.builder_allow_cidr().unwrap_or_default(),
            allowed_hosts: read.builder_allow_hosts(),
            certificates: [("SSL_CERT_FILE", file), ("SSL_CERT_DIR", read.ssl_cert_dir())],
        }
    }

    /// The proxies, as the worker itself uses them.
    pub fn own_proxies(&self) -> Proxies {
        self.proxies.clone().with_this_machine_exempt()
    }

    /// The variables that libraries read.
    fn variables(&self) -> impl Iterator<Item = (String, String)> {
        let certificates = self.certificates.iter().cloned();
        let certificates = certificates.filter_map(|(name, value)| Some((name.to_owned(), value?)));
        self.own_proxies().variables().into_iter().chain(certificates)
    }
}

#[derive(Debug, Clone)]
pub struct HistoryConfig {
    /// The PostgreSQL that has it; `None` = a file in the data directory.
    pub database: Option<Secret>,
    /// How long a build is kept after the last that happened to it.
    pub ttl: Duration,
    /// What all builds may hold.
    pub budget: Size,
}

impl HistoryConfig {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            database: read.database_url(),
            ttl: read.history_ttl(),
            budget: read.history_budget(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// Builds in hand at once, those included that are fetched or pushed.
    pub most_in_hand: u16,
    /// From delivery to settled, waiting included.
    pub job_timeout: Duration,
    pub connector: StageSettings,
    pub builder: StageSettings,
    pub pusher: StageSettings,
    pub notifier: StageSettings,
    /// Builder slots that one user can hold at once.
    pub builds_per_user: usize,
    /// Whether newer requests supersede older ones that do not build yet.
    pub supersede: bool,
    /// Failed attempts that are decided on at once.
    pub retry_concurrency: usize,
    pub retry: RetryPolicy,
    pub supervisor: RestartIntensity,
    pub drain_timeout: Duration,
}

impl PipelineConfig {
    fn read(read: &mut Reader<'_>, cores: usize) -> Self {
        let cores = u16::try_from(cores).unwrap_or(u16::MAX);
        let ((job_timeout, consumer_timeout), good) =
            read.good(|read| (read.job_timeout(), read.rabbitmq_consumer_timeout()));
        if good && job_timeout >= consumer_timeout {
            read.bad(
                "JOB_TIMEOUT",
                "must be below RABBITMQ_CONSUMER_TIMEOUT, or the broker takes deliveries away from under running jobs",
            );
        }
        let builders = read.builder_concurrency(cores);
        let connectors = read.connector_concurrency(cores.max(2));
        let pushers = read.pusher_concurrency(cores.max(2));
        let stage =
            |concurrency: u16, timeout| StageSettings { concurrency: concurrency.into(), timeout };
        Self {
            // As many as all stages work on at once.
            most_in_hand: read
                .listener_concurrency(connectors.saturating_add(builders).saturating_add(pushers)),
            job_timeout,
            connector: stage(connectors, read.connector_timeout()),
            builder: stage(builders, read.builder_timeout()),
            pusher: stage(pushers, read.pusher_timeout()),
            notifier: stage(read.notifier_concurrency(cores.max(4)), read.notifier_timeout()),
            builds_per_user: read.builder_per_user(builders).into(),
            supersede: read.listener_supersede(),
            retry_concurrency: read.retry_concurrency(cores.max(4)).into(),
            retry: RetryPolicy {
                max_attempts: read.retry_max_attempts().into(),
                initial_delay: read.retry_initial_delay(),
                multiplier: read.retry_multiplier(),
                max_delay: read.retry_max_delay(),
                max_age: read.job_max_age(),
            },
            supervisor: RestartIntensity {
                max_restarts: read.supervisor_max_restarts().into(),
                window: read.supervisor_window(),
                health_interval: read.supervisor_health_interval(),
            },
            drain_timeout: read.drain_timeout(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// `host:port` of the HTTP server.
    pub address: String,
    /// `None` = the API is served to this machine alone.
    pub token: Option<Secret>,
    /// Where the commands ask; `None` = at the address of this machine's own server.
    pub url: Option<Url>,
}

impl ApiConfig {
    fn read(read: &mut Reader<'_>) -> Self {
        Self { address: read.http_addr(), token: read.api_token(), url: read.image_builder_url() }
    }
}

#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    pub filter: EnvFilter,
    pub format: LogFormat,
    /// Where traces go; `None` = there are none.
    pub traces: Option<TraceSettings>,
}

impl TelemetryConfig {
    fn read(read: &mut Reader<'_>) -> Self {
        Self {
            filter: read.rust_log(),
            format: read.log_format().unwrap_or_else(LogFormat::of_stream),
            traces: traces::read(read),
        }
    }
}

/// Every bad or missing value, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl ConfigErrors {
    /// Of several lines on one variable the first: what follows may only follow from it.
    pub fn new(lines: impl IntoIterator<Item = String>) -> Self {
        let mut seen = HashSet::new();
        let first = |line: &String| {
            let variable = line.split_once(": ").map_or(line.as_str(), |(variable, _)| variable);
            seen.insert(variable.to_owned())
        };
        Self(lines.into_iter().filter(first).collect())
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests;
