//! What builds: a Docker Engine, or the hosts of `BUILDKIT_HOST`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use image_builder_actors::model::shutdown::Shutdown;
use image_builder_actors::ports::ImageBuilder;
use image_builder_actors::scheduling::capacity::Capacity;
use image_builder_actors::telemetry::metrics::Metrics;

use crate::api::readiness::Readiness;
use crate::config::Config;
use crate::engine::docker::disk::{DiskGuard, DiskSettings};
use crate::engine::docker::{DockerEngine, DockerSettings};
use crate::engine::fleet::{Fleet, FleetSettings};

/// How often the builds on each host are counted.
const BETWEEN_COUNTS: Duration = Duration::from_secs(5);

/// What builds. Clones share it.
#[derive(Clone)]
pub(super) enum Engines {
    Docker { engine: Arc<DockerEngine>, disk: DiskGuard },
    Fleet(Fleet),
}

/// What `/readyz` and the metrics call a host.
fn need(host: &str) -> String {
    format!("host {host}")
}

/// What `/readyz` tells of each host. Their names live as long as the program.
pub(super) fn host_needs(config: &Config) -> impl Iterator<Item = &'static str> {
    let hosts = config.fleet.iter().flat_map(|fleet| &fleet.hosts);
    hosts.map(|host| &*need(host).leak()).collect::<Vec<_>>().into_iter()
}

impl Engines {
    /// Opens no connection. `docker` is what builds may do, wherever.
    pub(super) fn assemble(
        config: &Config,
        docker: DockerSettings,
        data_dir: &Path,
    ) -> anyhow::Result<Self> {
        if let Some(fleet) = &config.fleet {
            let settings = FleetSettings { builds: docker.builds, ..fleet.clone() };
            tracing::info!(
                hosts = settings.hosts.join(","),
                builds_per_host = settings.builds_per_host,
                "building on BUILDKIT_HOST: no Docker Engine is asked"
            );
            return Ok(Engines::Fleet(Fleet::new(settings, data_dir.to_owned())?));
        }
        let engine = Arc::new(DockerEngine::connect(docker)?);
        let disk = config.disk.clone();
        let disk = DiskSettings::new(disk.low, disk.high, disk.budget);
        let registry = config.registry.url.to_string();
        let disk = DiskGuard::new(disk, data_dir, engine.clone(), registry);
        Ok(Engines::Docker { engine, disk })
    }

    /// The port.
    pub(super) fn builder(&self) -> Arc<dyn ImageBuilder> {
        match self {
            Engines::Docker { disk, .. } => Arc::new(disk.clone()),
            Engines::Fleet(fleet) => Arc::new(fleet.clone()),
        }
    }

    /// Whether anything can be built.
    pub(super) async fn look(&self) -> Result<(), String> {
        match self {
            Engines::Docker { engine, .. } => engine.ping().await.map_err(|fault| fault.message),
            Engines::Fleet(fleet) => fleet.look().await,
        }
    }

    /// Whether there is room to build.
    pub(super) async fn look_at_disk(&self) -> Result<(), String> {
        match self {
            Engines::Docker { disk, .. } => disk.look().await,
            Engines::Fleet(fleet) => fleet.look_at_disk().await,
        }
    }

    /// The same, after what can be removed is.
    pub(super) async fn make_room(&self) -> Result<(), String> {
        match self {
            Engines::Docker { disk, .. } => disk.make_room().await,
            // What it would free is on other machines.
            Engines::Fleet(fleet) => fleet.look_at_disk().await,
        }
    }

    /// Keeps an eye on the engine, or each host, and on the disks.
    pub(super) fn watch(&self, readiness: &Readiness) {
        let engines = self.clone();
        readiness.watch("engine", move || {
            let engines = engines.clone();
            async move { engines.look().await }
        });
        let engines = self.clone();
        readiness.watch("disk", move || {
            let engines = engines.clone();
            async move { engines.look_at_disk().await }
        });
        let Engines::Fleet(fleet) = self else { return };
        for host in fleet.hosts() {
            let (fleet, name) = (fleet.clone(), need(&host));
            readiness.watch_named(&name, move || {
                let (fleet, host) = (fleet.clone(), host.clone());
                async move { fleet.look_at(&host).await }
            });
        }
    }

    /// Shows how much the caches hold, whenever that was counted.
    pub(super) fn show(&self, metrics: &Metrics) {
        let metrics = metrics.clone();
        match self {
            Engines::Docker { disk, .. } => {
                let mut held = disk.held();
                tokio::spawn(async move {
                    while held.changed().await.is_ok() {
                        let bytes = held.borrow_and_update().total();
                        metrics.cache_bytes(bytes);
                    }
                });
            }
            Engines::Fleet(fleet) => {
                let mut held = fleet.held();
                let of_caches = metrics.clone();
                tokio::spawn(async move {
                    while held.changed().await.is_ok() {
                        of_caches.cache_bytes(*held.borrow_and_update());
                    }
                });
                let fleet = fleet.clone();
                tokio::spawn(async move {
                    let mut ticks = tokio::time::interval(BETWEEN_COUNTS);
                    loop {
                        ticks.tick().await;
                        for (host, builds) in fleet.in_hand() {
                            metrics.host_builds(&host, builds);
                        }
                    }
                });
            }
        }
    }

    /// Looks after disks and caches until the worker drains.
    pub(super) async fn run(self, capacity: Capacity, shutdown: Shutdown) {
        match self {
            Engines::Docker { disk, .. } => disk.run(capacity, shutdown).await,
            Engines::Fleet(fleet) => fleet.run(shutdown).await,
        }
    }
}
