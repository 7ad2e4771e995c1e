//! What builds, and room for it.

use std::path::PathBuf;

use image_builder_actors::model::limits::Limits;

use super::network::NetworkConfig;
use super::reader::Reader;
use crate::engine::docker::disk::size::{Size, Watermark};
use crate::engine::docker::{DockerEngine, DockerSettings};
use crate::engine::fleet::{Fleet, FleetSettings};
use crate::engine::settings::{BuildSettings, CacheRegistry, PushedImages};

/// The engine, as Docker's own client would find it.
pub(super) fn engine(
    read: &mut Reader<'_>,
    network: &NetworkConfig,
    limits: Limits,
) -> DockerSettings {
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
pub(super) fn fleet(
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
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
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
