//! What builds may do, whichever engine makes them.

use std::path::PathBuf;
use std::sync::Arc;

use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Plan;

use super::buildkit::tenancy::Tenancy;
use super::credentials::PullCredentials;
pub use super::credentials::RegistryAuth;
use super::docker::disk::size::Size;
use crate::net::networks::Networks;
use crate::net::proxy::Proxies;

/// The settings of builds.
#[derive(Debug, Clone)]
pub struct BuildSettings {
    /// `BUILDER_NETWORK`: the network of build steps, `host` or `none`; `None` = the engine's default.
    pub network: Option<String>,
    /// What builds are told of proxies, as build arguments that no cache's key knows.
    pub proxies: Proxies,
    /// `BUILDER_ALLOW_CIDR`: what may be a source of builds though it is not public.
    pub allowed: Networks,
    /// `BUILDER_ALLOW_HOSTS`: from where builds may add files over HTTP and Git, where users are kept apart;
    /// `*.example.com` = whatever is below it.
    pub allowed_hosts: Vec<String>,
    /// `BUILDER_MEMORY`: what a step may hold, on engines that can bound it.
    pub memory: Option<Size>,
    /// `BUILDER_CPUS`: how many processors a step may keep busy, on engines that can bound it.
    pub cpus: Option<f64>,
    /// `BUILDER_CGROUPS`: control groups with limits; each user's builds run in one of them.
    pub cgroups: Vec<String>,
    /// `DOCKER_CONFIG`: the directory of Docker's own `config.json`, with whose credentials base images are
    /// pulled; `None` = with those of requests alone. Whoever sends a build request can pull with them
    /// whatever they open, so they must not open what tenants keep from each other.
    pub docker_config: Option<PathBuf>,
    /// The registry that has the images of all tenants: to it that file opens nothing.
    pub own_registry: Option<String>,
    /// The credential that images are pushed with; `None` = anonymous.
    pub push_auth: Option<Arc<RegistryAuth>>,
    /// Whether images go straight from BuildKit to a registry, where it can; and that registry.
    pub straight: Option<StraightPush>,
    /// Where caches are kept for other engines; `None` = nowhere.
    pub cache: Option<CacheRegistry>,
    /// How images are made that BuildKit pushes by itself.
    pub pushed: PushedImages,
    /// Whether every step is run, whatever the build cache has.
    pub no_cache: bool,
    /// `TENANCY`: whether users are kept apart. Where they are to be and the engine cannot, nothing is built.
    pub tenancy: Tenancy,
    /// What steps see of their build's secrets is made with it, so that it tells nothing.
    pub salt_key: Secret,
    pub limits: Limits,
}

impl Default for BuildSettings {
    fn default() -> Self {
        Self {
            network: None,
            proxies: Proxies::default(),
            allowed: Networks::default(),
            allowed_hosts: Vec::new(),
            memory: None,
            cpus: None,
            cgroups: Vec::new(),
            docker_config: None,
            own_registry: None,
            push_auth: None,
            straight: None,
            cache: None,
            pushed: PushedImages::default(),
            no_cache: false,
            tenancy: Tenancy::default(),
            salt_key: Secret::new("image-builder"),
            limits: Limits::default(),
        }
    }
}

/// How BuildKit is to push by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StraightPush {
    /// Whether `REGISTRY_URL` asks for plain HTTP.
    pub plain_http: bool,
}

/// What only BuildKit gives an image that it pushes by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushedImages {
    /// `REPRODUCIBLE_IMAGES`: whether images have the time of their commit, and no file of theirs a later one.
    pub reproducible: bool,
    /// `IMAGE_COMPRESSION`: how new layers are compressed.
    pub compression: Compression,
    /// `IMAGE_PROVENANCE`: whether a record of how it was built is attached, and what is in it.
    pub provenance: Option<Provenance>,
    /// `IMAGE_SBOM`: the generator of the list of packages that is attached, as an image reference.
    pub sbom_generator: Option<String>,
}

/// How the layers of an image are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    #[default]
    Gzip,
    Zstd,
}

/// What a record of a build tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// What went in: sources with their digests, and times.
    Sources,
    /// The build's steps and its arguments as well.
    All,
}

/// `CACHE_REGISTRY`: where the build cache of each application is kept, for engines that do not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRegistry {
    /// `host[:port][/prefix]`.
    pub name: String,
    /// Whether it is spoken to in plain HTTP.
    pub plain_http: bool,
    pub mode: CacheMode,
}

/// `CACHE_MODE`: which layers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// Those of the image.
    Image,
    /// Those of all stages.
    AllSteps,
}

impl CacheRegistry {
    /// Where the cache is of the application whose image this is. It is the user's alone.
    pub(super) fn of(&self, reference: &ImageReference) -> String {
        format!("{}/{}:cache", self.name, reference.repository)
    }
}

impl BuildSettings {
    /// What a build by this plan may pull with.
    pub(super) fn pull_credentials(&self, plan: &Plan) -> PullCredentials {
        PullCredentials {
            request: plan.registry_auth.clone(),
            docker_config: self.docker_config.clone(),
            own_registry: self.own_registry.clone(),
            own: Vec::new(),
        }
    }
}
