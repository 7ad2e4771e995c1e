//! The planner port: decides how a source becomes an image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use futures_util::future::BoxFuture;

use super::source::FetchedSource;
use crate::model::build_log::BuildLog;
use crate::model::fault::Fault;
use crate::model::login::RegistryLogin;
use crate::model::platform::Platform;
use crate::model::request::{BuildRequest, BuilderKind};
use crate::model::secret::Secret;

/// How an image is to be made: both strategies come down to a Dockerfile.
#[derive(Debug, Clone)]
pub struct Plan {
    pub builder: BuilderKind,
    /// The directory that is the build context.
    pub context: PathBuf,
    /// The Dockerfile's path relative to the context.
    pub dockerfile: String,
    /// The stage to build; `None` = the last.
    pub target: Option<String>,
    pub build_args: BTreeMap<String, String>,
    /// Secrets that `RUN --mount=type=secret` steps may mount, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// What the image is for; none = the engine's own platform.
    pub platforms: Vec<Platform>,
    /// Credentials for base images, by the registry's host. The image does not depend on them.
    pub registry_auth: BTreeMap<String, RegistryLogin>,
    /// Changes whenever anything in the plan does (secrets and credentials apart), or the planner itself.
    pub fingerprint: String,
}

/// Decides how a source becomes an image.
pub trait Planner: Send + Sync + 'static {
    /// Makes the plan that `request.plan` asks for, and writes what it needs beside the source into its
    /// workspace. It replaces files of the source, and writes into none. Whose build it is decides which caches it
    /// shares.
    fn plan<'a>(
        &'a self,
        source: &'a FetchedSource,
        request: &'a BuildRequest,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Plan, Fault>>;
}
