//! Settings: from the environment and `config/.env` to typed values, one struct an actor.
//!
//! Reading never stops at the first bad value: [`ConfigErrors`] names them all.

mod read;
mod traces;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::scheduling::retry_policy::RetryPolicy;
use image_builder_actors::supervision::RestartIntensity;
use reqwest::Url;

use self::read::Reader;
use crate::broker::rabbitmq::topology::Topology;
use crate::engine::disk::size::{Size, Watermark};
use crate::engine::docker::DockerSettings;
use crate::notify::SigningKeys;
use crate::registry::{RegistryCredentials, RegistryUrl};
use crate::telemetry::traces::TraceSettings;

/// The file that is read beside the environment, relative to the working directory.
pub const ENV_FILE: &str = "config/.env";

/// All settings. The contract's section 5 has their meaning and defaults.
#[derive(Debug, Clone)]
pub struct Config {
    pub broker: BrokerConfig,
    pub data_dir: PathBuf,
    pub engine: DockerSettings,
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
    pub supervisor: RestartIntensity,
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
    /// The variable that brought the address.
    pub uri_variable: String,
    pub topology: Topology,
    /// `None` = no copies are kept.
    pub dead_ttl: Option<Duration>,
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
    pub url: RegistryUrl,
    /// `None` = anonymous.
    pub credentials: Option<RegistryCredentials>,
}

#[derive(Debug, Clone)]
pub struct ManagersConfig {
    /// `None` = the notification is only logged. May hold a credential.
    pub container_manager: Option<Url>,
    pub connector_manager: Option<Url>,
    /// `None` = notifications are not signed.
    pub keys: Option<SigningKeys>,
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

/// The environment, with `config/.env` below it.
#[derive(Default)]
pub struct Environment {
    vars: HashMap<String, String>,
    /// One line for each variable of ours that is no text.
    errors: Vec<String>,
}

impl Environment {
    /// Reads `file`, where it is there, and the real environment, which wins.
    ///
    /// # Errors
    ///
    /// The file is there but cannot be read.
    pub fn read(file: &Path) -> Result<Self, ConfigErrors> {
        Ok(Self::merged(read_file(file)?, std::env::vars_os()))
    }

    /// What a real variable says is not mixed with what the file says: it takes the place of the
    /// file's variables of its family.
    fn merged(
        mut file: HashMap<String, String>,
        real: impl Iterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut found = Self::default();
        // A name that is no text is not ours.
        for (name, value) in
            real.filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        {
            let value = value.into_string().unwrap_or_else(|value| {
                if read::is_ours(&name) {
                    found.errors.push(format!("{name}: is not UTF-8 text"));
                }
                value.to_string_lossy().into_owned()
            });
            found.vars.insert(name, value);
        }
        let set: HashSet<_> = found
            .vars
            .iter()
            .filter(|(_, value)| !value.trim().is_empty())
            .map(|(name, _)| family(name))
            .collect();
        file.retain(|name, _| !set.contains(family(name)));
        for (name, value) in file {
            found.vars.entry(name).or_insert(value);
        }
        found
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str)
    }

    /// The settings.
    ///
    /// # Errors
    ///
    /// All bad and missing values.
    pub fn config(self) -> Result<Config, ConfigErrors> {
        match Config::read(self.vars) {
            Ok(config) if self.errors.is_empty() => Ok(config),
            read => {
                let others = read.err().map(|errors| errors.0).unwrap_or_default();
                Err(ConfigErrors::new(self.errors.into_iter().chain(others)))
            }
        }
    }
}

/// What the variables have in common that give the same value: a text, a file with it, and for the
/// broker's address another name.
fn family(name: &str) -> &str {
    match name.strip_suffix("_FILE").unwrap_or(name) {
        "AMQP_URL" => "RABBITMQ_URI",
        name => name,
    }
}

fn read_file(file: &Path) -> Result<HashMap<String, String>, ConfigErrors> {
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
    Ok(vars)
}

impl Config {
    /// Reads the settings out of `vars`.
    ///
    /// # Errors
    ///
    /// All bad and missing values.
    pub fn read(vars: HashMap<String, String>) -> Result<Self, ConfigErrors> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut read = Reader::new(vars)?;
        match Self::assemble(&mut read, cores) {
            Some(config) if read.errors.is_empty() => Ok(config),
            _ => Err(ConfigErrors::new(read.errors)),
        }
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

    /// `None` only where there are errors.
    fn assemble(read: &mut Reader, cores: usize) -> Option<Self> {
        let raw = read.raw.clone();
        let limits = Limits::default();

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
        let notifier = read.stage(
            "NOTIFIER",
            raw.notifier_concurrency,
            cores.max(4),
            raw.notifier_timeout,
            "30s",
        );
        let errors = read.errors.len();
        let job_timeout = read.duration("JOB_TIMEOUT", raw.job_timeout, "25m");
        let consumer_timeout =
            read.duration("RABBITMQ_CONSUMER_TIMEOUT", raw.rabbitmq_consumer_timeout, "30m");
        if read.errors.len() == errors && job_timeout >= consumer_timeout {
            read.bad(
                "JOB_TIMEOUT",
                "must be below RABBITMQ_CONSUMER_TIMEOUT, or the broker takes deliveries away from under running jobs",
            );
        }
        let retry = RetryPolicy {
            max_attempts: read.count("RETRY_MAX_ATTEMPTS", raw.retry_max_attempts, 5) as u32,
            initial_delay: read.ttl("RETRY_INITIAL_DELAY", raw.retry_initial_delay, "10s"),
            multiplier: read.multiplier("RETRY_MULTIPLIER", raw.retry_multiplier, 3.0),
            max_delay: read.ttl("RETRY_MAX_DELAY", raw.retry_max_delay, "10m"),
        };
        let broker = read.broker(&retry);
        let registry = read.registry();
        Some(Self {
            data_dir: raw.data_dir.unwrap_or_else(|| "./data".to_owned()).into(),
            engine: read.engine(limits.clone()),
            disk: read.disk(),
            managers: ManagersConfig {
                container_manager: read
                    .optional_url("CONTAINER_MANAGER_URL", raw.container_manager_url),
                connector_manager: read
                    .optional_url("CONNECTOR_MANAGER_URL", raw.connector_manager_url),
                keys: read.signing_keys(),
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
            retry_concurrency: read.count("RETRY_CONCURRENCY", raw.retry_concurrency, cores.max(4)),
            retry,
            supervisor: RestartIntensity {
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
            limits,
            // Last, when everything has been read: what is bad is told all at once.
            broker: broker?,
            registry: registry?,
        })
    }
}

#[cfg(test)]
mod tests;
