//! Settings: from the environment and `config/.env` to typed values, one struct an actor.
//!
//! Reading never stops at the first bad value: [`ConfigErrors`] names them all.

mod read;
mod traces;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder_actors::limits::Limits;
use image_builder_actors::policy::RetryPolicy;
use image_builder_actors::secret::Secret;
use image_builder_actors::supervisor::Intensity;
use reqwest::Url;

use self::read::{Raw, Reader};
use crate::disk::size::{Size, Watermark};
use crate::otlp::TraceSettings;

/// The file that is read beside the environment, relative to the working directory.
pub const ENV_FILE: &str = "config/.env";

/// All settings. The contract's section 5 has their meaning and defaults.
#[derive(Debug, Clone)]
pub struct Config {
    pub broker: BrokerConfig,
    pub data_dir: PathBuf,
    pub engine: EngineConfig,
    pub disk: DiskConfig,
    pub registry: RegistryConfig,
    pub managers: ManagersConfig,
    pub forge: ForgeConfig,
    pub listener: ListenerConfig,
    pub connector: StageConfig,
    pub builder: StageConfig,
    pub pusher: StageConfig,
    pub notifier: StageConfig,
    /// Builder slots that one user can hold at once.
    pub builds_per_user: usize,
    /// Failed tries that are decided on at once.
    pub retry_concurrency: usize,
    pub retry: RetryPolicy,
    pub supervisor: Intensity,
    pub drain_timeout: Duration,
    /// `host:port` of the HTTP server.
    pub http_addr: String,
    /// Where traces go; `None` = there are none.
    pub traces: Option<TraceSettings>,
    pub limits: Limits,
}

#[derive(Debug, Clone)]
pub struct BrokerConfig {
    pub uri: Secret,
    pub build_queue: String,
    pub fail_queue: String,
    pub outcome_queue: String,
    pub dead_queue: String,
    /// `None` = no copies are kept.
    pub dead_ttl: Option<Duration>,
    pub result_queue: Option<String>,
    pub cancel_exchange: String,
}

#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// `unix://…`, `tcp://…`, `http://…` or `https://…`; `None` = Docker's default socket.
    pub host: Option<String>,
    /// Directory with `ca.pem`, `cert.pem` and `key.pem`.
    pub cert_path: Option<PathBuf>,
    pub tls_verify: bool,
    /// Network of `RUN` steps: `host` or `none`; `None` = the engine's default.
    pub network: Option<String>,
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

#[derive(Debug, Clone)]
pub struct RegistryConfig {
    pub url: String,
    pub username: Option<String>,
    pub password: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct ManagersConfig {
    /// `None` = the notification is only logged. May hold a credential.
    pub container_manager: Option<Url>,
    pub connector_manager: Option<Url>,
    pub secret: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct ForgeConfig {
    /// Without a trailing slash.
    pub url: String,
    pub api_url: String,
}

#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// The prefetch: deliveries in the worker at once.
    pub concurrency: u16,
    /// From delivery to settled, waiting included.
    pub job_timeout: Duration,
    /// Whether newer requests supersede older ones that do not build yet.
    pub supersede: bool,
}

#[derive(Debug, Clone)]
pub struct StageConfig {
    /// Jobs worked on at once.
    pub concurrency: usize,
    /// Longest time that one job is worked on.
    pub timeout: Duration,
}

/// Every bad or missing value, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// The environment, with `config/.env` below it.
///
/// # Errors
///
/// The file is there but cannot be read.
pub fn environment(file: &Path) -> Result<HashMap<String, String>, ConfigErrors> {
    let mut vars = HashMap::new();
    match dotenvy::from_filename_iter(file) {
        Ok(lines) => {
            for line in lines {
                // The error quotes the line, which may hold a credential: it is not repeated.
                let (name, value) = line.map_err(|_| {
                    ConfigErrors(vec![format!(
                        "{}: a line after {} good ones cannot be read; write NAME=value, with quotes around a value with spaces",
                        file.display(),
                        vars.len()
                    )])
                })?;
                vars.insert(name, value);
            }
        }
        Err(dotenvy::Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(_) => return Err(ConfigErrors(vec![format!("{}: cannot be read", file.display())])),
    }
    vars.extend(std::env::vars());
    Ok(vars)
}

impl Config {
    /// Reads the settings out of `vars`.
    ///
    /// # Errors
    ///
    /// All bad and missing values.
    pub fn read(vars: HashMap<String, String>) -> Result<Self, ConfigErrors> {
        let mut read = Reader::new(Raw::from_vars(vars)?);
        let config = Self::assemble(&mut read);
        if read.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(read.errors)) }
    }

    /// What can be set so and is hardly meant so, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let stages = self.connector.timeout + self.builder.timeout + self.pusher.timeout;
        let job = self.listener.job_timeout;
        let cut_short = (stages > job).then(|| {
            format!(
                "JOB_TIMEOUT: {} is less than CONNECTOR_TIMEOUT, BUILDER_TIMEOUT and PUSHER_TIMEOUT together ({}): a job whose stages take their time is cut short; raise JOB_TIMEOUT (and keep it below RABBITMQ_CONSUMER_TIMEOUT), or lower the others",
                humantime::format_duration(job),
                humantime::format_duration(stages)
            )
        });
        let (places, per_user) = (usize::from(self.listener.concurrency), self.builds_per_user);
        let hidden = (places <= per_user).then(|| {
            format!(
                "LISTENER_CONCURRENCY: {places} is not more than BUILDER_PER_USER ({per_user}): the builds of one user can take every place and hide those of others; raise it, or lower BUILDER_PER_USER"
            )
        });
        cut_short.into_iter().chain(hidden).collect()
    }

    fn assemble(read: &mut Reader) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let raw = read.raw.clone();

        let builder =
            read.stage("BUILDER", raw.builder_concurrency, cores, raw.builder_timeout, "15m");
        let connector = read.stage(
            "CONNECTOR",
            raw.connector_concurrency,
            cores.max(2),
            raw.connector_timeout,
            "3m",
        );
        let pusher =
            read.stage("PUSHER", raw.pusher_concurrency, cores.max(2), raw.pusher_timeout, "5m");
        let notifier =
            read.stage("NOTIFIER", raw.notifier_concurrency, 4, raw.notifier_timeout, "30s");
        let job_timeout = read.duration("JOB_TIMEOUT", raw.job_timeout, "25m");
        let consumer_timeout =
            read.duration("RABBITMQ_CONSUMER_TIMEOUT", raw.rabbitmq_consumer_timeout, "30m");
        if job_timeout >= consumer_timeout {
            read.errors.push(
                "JOB_TIMEOUT: must be below RABBITMQ_CONSUMER_TIMEOUT, or the broker takes deliveries away from under running jobs".to_owned(),
            );
        }
        Self {
            broker: BrokerConfig {
                uri: read.broker_uri(),
                build_queue: read.queue("BUILD_QUEUE", raw.build_queue, "image-builder.build"),
                fail_queue: read.queue("FAIL_QUEUE", raw.fail_queue, "image-builder.fail"),
                outcome_queue: read.queue(
                    "OUTCOME_QUEUE",
                    raw.outcome_queue,
                    "image-builder.outcome",
                ),
                dead_queue: read.queue("DEAD_QUEUE", raw.dead_queue, "image-builder.dead"),
                dead_ttl: match raw.dead_queue_ttl.as_deref() {
                    Some("0") => None,
                    _ => Some(read.ttl("DEAD_QUEUE_TTL", raw.dead_queue_ttl, "7d")),
                },
                result_queue: raw
                    .result_queue
                    .map(|name| read.queue("RESULT_QUEUE", Some(name), "")),
                cancel_exchange: read.queue(
                    "CANCEL_EXCHANGE",
                    raw.cancel_exchange,
                    "image-builder.cancel",
                ),
            },
            data_dir: raw.data_dir.unwrap_or_else(|| "./data".to_owned()).into(),
            engine: EngineConfig {
                host: read.docker_host(),
                cert_path: raw.docker_cert_path.map(PathBuf::from),
                tls_verify: raw.docker_tls_verify.is_some_and(|value| value != "0"),
                network: read.one_of("BUILDER_NETWORK", raw.builder_network, &["host", "none"]),
            },
            disk: read.disk(),
            registry: RegistryConfig {
                url: raw.registry_url.unwrap_or_else(|| "localhost:5000".to_owned()),
                password: read.secret(
                    "REGISTRY_PASSWORD",
                    raw.registry_password,
                    raw.registry_password_file,
                ),
                username: raw.registry_username,
            },
            managers: ManagersConfig {
                container_manager: read
                    .optional_url("CONTAINER_MANAGER_URL", raw.container_manager_url),
                connector_manager: read
                    .optional_url("CONNECTOR_MANAGER_URL", raw.connector_manager_url),
                secret: read.secret(
                    "NOTIFIER_SECRET",
                    raw.notifier_secret,
                    raw.notifier_secret_file,
                ),
            },
            forge: ForgeConfig {
                url: read.forge_url("GITHUB_URL", raw.github_url, "https://github.com"),
                api_url: read.forge_url(
                    "GITHUB_API_URL",
                    raw.github_api_url,
                    "https://api.github.com",
                ),
            },
            listener: ListenerConfig {
                // Enough to keep every builder busy while the next jobs are fetched and the last
                // ones pushed, and no more: what is prefetched here waits for this worker.
                concurrency: read
                    .count(
                        "LISTENER_CONCURRENCY",
                        raw.listener_concurrency,
                        builder.concurrency + 2,
                    )
                    .min(u16::MAX.into()) as u16,
                job_timeout,
                supersede: read.flag("LISTENER_SUPERSEDE", raw.listener_supersede),
            },
            builds_per_user: read.count(
                "BUILDER_PER_USER",
                raw.builder_per_user,
                builder.concurrency,
            ),
            connector,
            builder,
            pusher,
            notifier,
            retry_concurrency: read.count("RETRY_CONCURRENCY", raw.retry_concurrency, 4),
            retry: RetryPolicy {
                max_attempts: read.count("RETRY_MAX_ATTEMPTS", raw.retry_max_attempts, 5) as u32,
                initial_delay: read.duration("RETRY_INITIAL_DELAY", raw.retry_initial_delay, "10s"),
                multiplier: read.multiplier("RETRY_MULTIPLIER", raw.retry_multiplier, 3.0),
                max_delay: read.duration("RETRY_MAX_DELAY", raw.retry_max_delay, "10m"),
            },
            supervisor: Intensity {
                max_restarts: read.count("SUPERVISOR_MAX_RESTARTS", raw.supervisor_max_restarts, 5),
                window: read.duration("SUPERVISOR_WINDOW", raw.supervisor_window, "30s"),
                health_interval: read.duration(
                    "SUPERVISOR_HEALTH_INTERVAL",
                    raw.supervisor_health_interval,
                    "30s",
                ),
            },
            drain_timeout: read.duration("DRAIN_TIMEOUT", raw.drain_timeout, "60s"),
            http_addr: read.address("HTTP_ADDR", raw.http_addr, "127.0.0.1:8080"),
            traces: read.traces(),
            limits: Limits::default(),
        }
    }
}

#[cfg(test)]
mod tests;
