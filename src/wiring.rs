//! The adapters, put together from the settings.

use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::pipeline::Ports;
use image_builder_actors::ports::{Broker, Probe};

use crate::api::readiness::Readiness;
use crate::broker::rabbitmq::RabbitSettings;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::engine::disk::{DiskGuard, DiskSettings};
use crate::engine::docker::DockerEngine;
use crate::notify::{WebhookNotifier, WebhookSettings};
use crate::planner::{PlannerSettings, SourcePlanner, cache_secret};
use crate::registry::{RegistryClient, RegistrySettings};
use crate::source::git::{GitConnector, GitSettings};

/// Everything that the worker speaks to, the broker apart: that one has to be waited for.
pub struct Adapters {
    /// The registry's name in references.
    pub registry_name: String,
    forge: Arc<GitConnector>,
    planner: Arc<SourcePlanner>,
    engine: Arc<DockerEngine>,
    registry: Arc<RegistryClient>,
    managers: Arc<WebhookNotifier>,
    disk: DiskGuard,
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
        let engine = DockerEngine::connect(config.engine.clone())?;
        let registry = RegistrySettings {
            credentials: config.registry.credentials.clone(),
            push_timeout: config.pipeline.pusher.timeout,
            journal: Some(data_dir.pushes()),
            ..RegistrySettings::new(config.registry.url.clone())
        };
        let registry = RegistryClient::new(registry, engine.docker().clone())
            .context("the registry's client, with its journal in DATA_DIR")?;
        let (engine, registry) = (Arc::new(engine), Arc::new(registry));
        let disk = config.disk.clone();
        let disk = DiskSettings::new(disk.low, disk.high, disk.budget, config.pipeline.job_timeout);
        let disk = DiskGuard::new(disk, data_dir.path(), engine.clone(), registry.clone());
        let managers = WebhookSettings {
            container_manager_url: config.notify.container_manager.clone(),
            connector_manager_url: config.notify.connector_manager.clone(),
            keys: config.notify.keys.clone(),
            timeout: config.pipeline.notifier.timeout,
        };
        let forge = GitSettings {
            url: config.forge.url.clone(),
            api_url: config.forge.api_url.clone(),
            limits: config.limits.clone(),
            ..GitSettings::default()
        };
        let secret = cache_secret(data_dir.path()).context("DATA_DIR")?;
        let planner = PlannerSettings::new(config.limits.clone(), secret);
        Ok(Self {
            registry_name,
            forge: Arc::new(GitConnector::new(forge).context("the forge's client")?),
            planner: Arc::new(SourcePlanner::new(planner)),
            engine,
            registry,
            managers: Arc::new(WebhookNotifier::new(managers).context("the managers' client")?),
            disk,
        })
    }

    /// Keeps an eye on what the worker needs.
    pub fn watch(&self, readiness: &Readiness) {
        let engine = self.engine.clone();
        readiness.watch("engine", move || {
            let engine = engine.clone();
            async move { engine.ping().await.map_err(|fault| fault.message) }
        });
        let registry = self.registry.clone();
        readiness.watch("registry", move || {
            let registry = registry.clone();
            async move { registry.ping().await.map_err(|fault| fault.message) }
        });
        let disk = self.disk.clone();
        readiness.watch("disk", move || {
            let disk = disk.clone();
            async move { disk.look().await }
        });
    }

    /// Keeps an eye on the disks, for as long as the worker works.
    pub fn disk(&self) -> DiskGuard {
        self.disk.clone()
    }

    /// All ports, with this broker.
    pub fn ports(self, broker: Arc<dyn Broker>) -> Ports {
        let probe = Probes {
            forge: self.forge.clone(),
            engine: self.engine.clone(),
            registry: self.registry.clone(),
            disk: self.disk.clone(),
        };
        Ports {
            probe: Arc::new(probe),
            broker,
            forge: self.forge,
            planner: self.planner,
            engine: self.disk.builder(),
            registry: self.disk.registry(),
            managers: self.managers,
        }
    }
}

/// Asks what was out of reach whether it is back.
struct Probes {
    forge: Arc<GitConnector>,
    engine: Arc<DockerEngine>,
    registry: Arc<RegistryClient>,
    disk: DiskGuard,
}

#[async_trait]
impl Probe for Probes {
    async fn probe(&self, reason: Reason) -> Result<(), String> {
        let answer = match reason {
            Reason::ForgeDown => self.forge.ping().await,
            Reason::EngineDown => self.engine.ping().await,
            Reason::RegistryDown => self.registry.ping().await,
            Reason::DiskLow => return self.disk.make_room().await,
            // Patience is all that was asked for.
            _ => Ok(()),
        };
        answer.map_err(|fault| fault.message)
    }
}

/// What the broker's adapter needs to know.
pub fn broker(config: &Config) -> RabbitSettings {
    RabbitSettings::new(config.broker.uri.clone(), config.broker.topology.clone())
}
