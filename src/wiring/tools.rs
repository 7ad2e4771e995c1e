//! What a command needs that builds by itself: an engine, the planner and the forge, and no queue.

use std::path::{Path, PathBuf};

use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::request::BuildRequest;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::FetchedSource;

use super::{forge_client, plans, push_auth, registry_client};
use crate::api::plans::ShownPlan;
use crate::config::ToolConfig;
use crate::engine::docker::{DockerEngine, DockerSettings, Tenancy};
use crate::engine::fleet::{Fleet, FleetSettings};
use crate::engine::settings::{BuildSettings, StraightPush};
use crate::exit::{Exit, StartError};
use crate::planner::{SourcePlanner, cache_secret};
use crate::registry::RegistryClient;
use crate::source::GitConnector;

/// The adapters of such a command.
pub struct Tools {
    pub engine: DockerEngine,
    /// What builds in its place.
    pub fleet: Option<Fleet>,
    pub planner: SourcePlanner,
    /// What builds may do.
    builds: BuildSettings,
    config: ToolConfig,
}

impl Tools {
    /// Opens no connection.
    ///
    /// # Errors
    ///
    /// The machine lacks what an adapter needs. The settings are good, or there would be no [`ToolConfig`].
    pub fn assemble(config: ToolConfig, no_cache: bool) -> Result<Self, StartError> {
        let push_auth = push_auth(&config.registry);
        let own_registry = Some(config.registry.url.server_address().to_owned());
        let secret = caches(config.home.as_deref());
        let builds = BuildSettings {
            push_auth,
            own_registry,
            no_cache,
            salt_key: secret.clone(),
            // Whoever builds by hand is the engine's one user.
            tenancy: Tenancy::Trusted,
            ..config.engine.builds.clone()
        };
        let engine = DockerSettings { builds: builds.clone(), ..config.engine.clone() };
        let engine =
            DockerEngine::connect(engine).map_err(|error| StartError::new(Exit::Config, error))?;
        let straight = Some(StraightPush { plain_http: config.registry.url.is_plain_http() });
        let fleet = config.fleet.clone().map(|settings| {
            let builds = BuildSettings { straight, ..builds.clone() };
            // Sources are fetched to where temporary files are.
            Fleet::new(FleetSettings { builds, ..settings }, std::env::temp_dir())
        });
        let fleet = fleet.transpose().map_err(|error| StartError::new(Exit::Config, error))?;
        let planner = super::planner(&config.limits, secret, builds.tenancy);
        Ok(Self { engine, fleet, planner, builds, config })
    }

    /// The registry's name in references.
    pub fn registry_name(&self) -> String {
        self.config.registry.url.to_string()
    }

    /// The registry's client.
    ///
    /// # Errors
    ///
    /// The machine's certificates cannot be read.
    pub fn registry(&self) -> anyhow::Result<RegistryClient> {
        registry_client(&self.config.registry)
    }

    /// The service's own credentials that builds come to see.
    pub fn secrets(&self) -> Vec<Secret> {
        self.config.network.proxies.secrets()
    }

    /// What would be built of a source.
    ///
    /// # Errors
    ///
    /// What the build would fail of before its engine is asked.
    pub async fn plan(
        &self,
        source: &FetchedSource,
        request: &BuildRequest,
        log: &BuildLog,
    ) -> Result<ShownPlan, Fault> {
        plans::shown(&self.planner, &self.builds, source, request, log).await
    }

    /// The forge's client. It reads the machine's certificates, which takes a moment: only who fetches asks
    /// for it.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn forge(&self) -> Result<GitConnector, StartError> {
        let ToolConfig { forge, network, limits, .. } = &self.config;
        let forge = forge_client(forge, network, limits, None);
        forge.map_err(|error| StartError::new(Exit::Config, format!("{error:#}")))
    }
}

/// What the names of nixpacks' caches are made with: kept for this user, so that the next build finds them.
/// Where nothing can be kept, each build has its own.
fn caches(home: Option<&Path>) -> Secret {
    let place = std::env::var_os("XDG_CACHE_HOME").filter(|place| !place.is_empty());
    let place = place.map(PathBuf::from).or_else(|| Some(home?.join(".cache")));
    let kept = place.and_then(|place| {
        let place = place.join("image-builder");
        std::fs::create_dir_all(&place).ok()?;
        cache_secret(&place).ok()
    });
    kept.unwrap_or_else(|| Secret::new(uuid::Uuid::new_v4().to_string()))
}
