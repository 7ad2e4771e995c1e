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
//! | `broker.rs`, `engine.rs`, `forge.rs`, `hooks.rs`, `network.rs`, `registry.rs`, `worker.rs` | from values to the structs of the rooms; what contradicts another setting is refused there |
//! | `commands.rs` | what is read: all of it, or what a command needs |
//! | `documents.rs` | the table as `config/.env.example` and as `docs/settings.md` |
//!
//! Reading never stops at the first bad value: [`ConfigErrors`] names them all.

mod broker;
mod commands;
mod documents;
mod engine;
mod environment;
mod file;
mod forge;
mod hooks;
mod names;
mod network;
mod reader;
mod registry;
mod settings;
mod table;
mod traces;
mod values;
mod worker;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use image_builder_actors::model::limits::Limits;
use image_builder_actors::pipeline::PipelineSettings;

pub use self::broker::{BrokerConfig, RabbitConfig, broker_address};
pub use self::commands::{DoctorConfig, ToolConfig};
pub use self::documents::example;
pub use self::engine::DiskConfig;
use self::engine::{engine, fleet};
pub use self::environment::{ENV_FILE, Environment, Source};
use self::file::EnvFile;
pub use self::forge::ForgeConfig;
pub use self::hooks::HooksConfig;
pub use self::network::NetworkConfig;
pub use self::reader::Effective;
use self::reader::Reader;
pub use self::registry::RegistryConfig;
pub use self::table::{Fallback, GROUPS, Group, Setting};
pub use self::worker::{ApiConfig, HistoryConfig, NotifyConfig, TelemetryConfig};
use crate::engine::docker::disk::size::Size;
use crate::engine::docker::{DockerSettings, Tenancy};
use crate::engine::fleet::FleetSettings;

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
    pub pipeline: PipelineSettings,
    pub drain_timeout: Duration,
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
            fleet: self.fleet.clone(),
            registry: self.registry.clone(),
            forge: self.forge.clone(),
            network: self.network.clone(),
            limits: self.limits.clone(),
            home: None,
        }
    }

    /// Whether build steps are on the bridge of a Docker Engine, and users are to be kept apart: then it matters what
    /// steps reach. Build hosts have networks of their own.
    pub fn keeps_network_apart(&self) -> bool {
        let builds = &self.engine.builds;
        self.fleet.is_none() && builds.tenancy == Tenancy::Strict && builds.network.is_none()
    }

    /// `None` only where there are errors.
    fn assemble(read: &mut Reader<'_>, cores: usize) -> Option<Self> {
        let limits = Limits::default();
        let network = NetworkConfig::read(read);
        let (forge, good) = read.good(ForgeConfig::read);
        let rules = forge.rules(&limits);
        let hooks = HooksConfig::read(read, good.then(|| rules.clone()));
        let pipeline = worker::pipeline(read, cores, rules, network.proxies.secrets());
        // All is read before the first that is missing ends it: all errors are reported at once.
        let broker = BrokerConfig::read(read, &pipeline.retry);
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
            drain_timeout: read.drain_timeout(),
            api: ApiConfig::read(read),
            telemetry: TelemetryConfig::read(read),
            data_dir: read.data_dir(),
            limits,
            remarks: read.environment.warnings.clone(),
            broker: broker?,
        })
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
