//! The container engine: builds images with its BuildKit.
//!
//! Builds go by BuildKit's control API (`super::buildkit`). bollard serves for everything else that the
//! engine is asked, over the same connections (`wire`, `address`).

pub mod disk;
mod foreign;
mod housekeeping;
mod inputs;
pub(super) mod local;
mod loss;
pub(super) mod push;
mod search;
mod told;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ImageInspect, SystemInfo};
use bollard::query_parameters::RemoveImageOptionsBuilder;
use futures_util::future::BoxFuture;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, StageName};
use image_builder_actors::model::image::{BuildKey, BuiltImage, ImageLocation};
use image_builder_actors::model::platform::Platform;
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Tripwire;
use image_builder_actors::ports::{BuildOrder, Claim, Exposed, ImageBuilder, Plan};

pub use housekeeping::{CacheRecord, EngineFacts, EngineUsage, ImageDetail, ImageUsage};
pub use local::{LOCAL_REGISTRY, LocalImage};
use loss::Life;
use push::EnginePush;
use told::{LastTold, Told};

use super::address::{Address, DockerAddressError};
pub use super::credentials::RegistryAuth;
use super::faults::{self, ANSWER_TIMEOUT, redacted};
use super::{platforms, wire};
use crate::blocking::blocking;
use crate::engine::buildkit::abilities::Abilities;
use crate::engine::buildkit::build::Builds;
use crate::engine::buildkit::context::Context;
pub use crate::engine::buildkit::context::ContextSize;
use crate::engine::buildkit::control::{Control, Door, Endpoint};
use crate::engine::buildkit::session::{Claimed, Session};
use crate::engine::buildkit::solve::{Known, Output};
pub use crate::engine::buildkit::tenancy::Tenancy;
use crate::engine::buildkit::tenancy::left_out;
use crate::engine::settings::BuildSettings;

/// What bollard allows for the start of an answer, in seconds.
const CLIENT_TIMEOUT: u64 = 120;

/// How to reach the engine, and what builds may do on it.
#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// `DOCKER_HOST`: `unix://`, `tcp://`, `http://` or `https://`.
    pub host: String,
    /// `DOCKER_CERT_PATH`: the directory with `ca.pem`, `cert.pem` and `key.pem`; needed for TLS.
    pub cert_path: Option<PathBuf>,
    /// `DOCKER_TLS_VERIFY`: `tcp://` means TLS. The engine's certificate is always verified.
    pub tls_verify: bool,
    /// A directory to write down which names pushes gave to images, so that those of a worker that was
    /// killed are cleared; `None` = they are not.
    pub push_journal: Option<PathBuf>,
    pub builds: BuildSettings,
}

impl Default for DockerSettings {
    fn default() -> Self {
        Self {
            host: "unix:///var/run/docker.sock".to_owned(),
            cert_path: None,
            tls_verify: false,
            push_journal: None,
            builds: BuildSettings::default(),
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerSettingsError {
    #[error(transparent)]
    Address(#[from] DockerAddressError),
    #[error("BUILDER_NETWORK: `{0}` is neither `host` nor `none`")]
    Network(String),
    #[error("DATA_DIR: the journal of pushes cannot be written: {0}")]
    PushJournal(std::io::Error),
}

/// A container engine. Clones share one client.
#[derive(Clone)]
pub struct DockerEngine {
    docker: Docker,
    address: Address,
    settings: Arc<DockerSettings>,
    /// Whether engine and client have agreed on an API version.
    negotiated: Arc<AtomicBool>,
    /// Whether the engine keeps users apart as the settings ask for.
    admitted: Arc<AtomicBool>,
    /// The engine that was found to, in this life of it and by its API version: another one is asked again.
    apart: Arc<Mutex<Option<(Life, String)>>>,
    told: Arc<LastTold>,
    pushes: Arc<EnginePush>,
    builds: Arc<Builds>,
}

impl DockerEngine {
    /// Prepares a client. Opens no connection: the engine may be down and come up later.
    pub fn connect(settings: DockerSettings) -> Result<Self, DockerSettingsError> {
        let network = settings.builds.network.as_deref();
        if let Some(bad) = network.filter(|network| !matches!(*network, "host" | "none")) {
            return Err(DockerSettingsError::Network(bad.to_owned()));
        }
        let (host, cert_path) = (&settings.host, settings.cert_path.as_deref());
        let address = Address::of_docker(host, settings.tls_verify, cert_path)?;
        let docker = wire::client(address.clone(), CLIENT_TIMEOUT);
        let (auth, journal) =
            (settings.builds.push_auth.as_deref(), settings.push_journal.as_deref());
        let pushes = EnginePush::new(docker.clone(), auth, journal)
            .map_err(DockerSettingsError::PushJournal)?;
        Ok(Self {
            pushes: Arc::new(pushes),
            builds: Arc::new(Builds::new(settings.builds.clone(), Arc::default())),
            docker,
            address,
            settings: Arc::new(settings),
            negotiated: Arc::default(),
            admitted: Arc::default(),
            apart: Arc::default(),
            told: Arc::default(),
        })
    }

    /// The client. It speaks a version that the engine understands only once [`Self::negotiated`] or
    /// [`Self::ping`] has succeeded.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// The client, after engine and client have agreed on an API version. Asks the engine once.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn negotiated(&self) -> Result<&Docker, Fault> {
        if !self.negotiated.load(Ordering::Relaxed) {
            self.negotiate().await?;
        }
        Ok(&self.docker)
    }

    /// Its BuildKit, once engine and client have agreed on an API version.
    fn endpoint(&self) -> Endpoint {
        let door = Door::Docker(self.docker.client_version());
        Endpoint { address: self.address.clone(), door }
    }

    async fn negotiate(&self) -> Result<(), Fault> {
        let what = "asking for its version";
        faults::in_time(ANSWER_TIMEOUT, what, self.docker.clone().negotiate_version())
            .await?
            .map_err(|error| faults::of_client(&self.address, what, &error))?;
        self.negotiated.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Asks the engine for its version, whether it is up and answers, and what it can do.
    ///
    /// # Errors
    /// `engine_down`, also where the engine cannot keep users apart and has to; `engine_failed` or `timeout`.
    pub async fn ping(&self) -> Result<(), Fault> {
        self.negotiate().await?;
        if self.settings.builds.tenancy == Tenancy::Strict {
            let engine = (self.life().await?, self.docker.client_version().to_string());
            if !self.is_known_to_keep_apart(&engine) {
                self.keeps_users_apart().await?;
                *self.apart() = Some(engine);
            }
        }
        self.admitted.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn is_known_to_keep_apart(&self, engine: &(Life, String)) -> bool {
        engine.0.is_known() && self.apart().as_ref() == Some(engine)
    }

    fn apart(&self) -> MutexGuard<'_, Option<(Life, String)>> {
        self.apart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the engine whether it can keep users apart.
    ///
    /// # Errors
    /// `engine_down`, also where it cannot; `engine_failed` or `timeout`.
    pub async fn keeps_users_apart(&self) -> Result<(), Fault> {
        let what = "asking what it can do";
        let asked = async {
            let version = self.docker.version().await;
            let version =
                version.map_err(|error| faults::of_client(&self.address, what, &error))?;
            let mut control = Control::open(&self.endpoint()).await?;
            let abilities = Abilities::of(&mut control).await?;
            abilities.keep_users_apart(Some(
                version.version.as_deref().unwrap_or("of an unknown version"),
            ))
        };
        faults::in_time(ANSWER_TIMEOUT, what, asked).await?
    }

    async fn claimed(&self, what: Claimed) -> Result<Option<Claim>, Fault> {
        self.negotiated().await?;
        let session = Session::claim(&self.endpoint(), what).await?;
        Ok(session.map(Claim::held_by))
    }

    /// Claims the engine's disk, to find out which build fills it: of all workers one at a time does. `None` = another
    /// one is at it.
    ///
    /// # Errors
    /// `engine_down`, `engine_failed` or `timeout`.
    pub async fn claim_disk(&self) -> Result<Option<Claim>, Fault> {
        self.claimed(Claimed::Disk).await
    }

    /// Removes the names that pushes of dead workers left on images.
    pub async fn clear_left_names(&self) {
        self.pushes.clear_left_names().await;
    }

    /// What it can build for: of an engine that keeps its images as manifests its BuildKit tells.
    async fn platforms(&self, info: &SystemInfo) -> Result<platforms::Abilities, Fault> {
        if keeps_manifests(info) {
            let mut control = Control::open(&self.endpoint()).await?;
            let platforms = Abilities::platforms(&mut control).await?;
            return Ok(platforms::Abilities { platforms, several: true });
        }
        let name = |part: &Option<String>| part.clone().unwrap_or_default();
        let platform = format!("{}/{}", name(&info.os_type), name(&info.architecture));
        Ok(platforms::Abilities {
            platforms: Platform::from_name(&platform).into_iter().collect(),
            several: false,
        })
    }

    /// What the engine says of itself in this life of it.
    async fn told(&self, life: &Life) -> Result<Told, Fault> {
        if let Some(told) = self.told.get(life) {
            return Ok(told);
        }
        let what = "asking for its time";
        let info = faults::in_time(ANSWER_TIMEOUT, what, self.docker.info())
            .await?
            .map_err(|error| faults::of_client(&self.address, what, &error))?;
        let told = Told::new(info);
        self.told.set(life.clone(), told.clone());
        Ok(told)
    }

    /// Builds, and returns where the image is.
    async fn make(
        &self,
        order: &BuildOrder,
        told: &Told,
        progress: &BuildLog,
    ) -> Result<ImageLocation, Fault> {
        let info = &told.info;
        if !order.plan.platforms.is_empty() {
            let warning = platforms::check(&order.plan.platforms, &self.platforms(info).await?)?;
            warning.into_iter().for_each(|warning| progress.note(warning));
        }
        let straight = self.settings.builds.straight.filter(|_| keeps_manifests(info));
        let output = match straight {
            Some(push) => Output::straight(order, push),
            None => Output::Engine { name: local::new_name(&order.reference) },
        };
        let name = info.server_version.as_ref().map(|version| format!("Docker {version}"));
        let has_other_bases = foreign::has_other_bases(self, &order.plan, progress).await?;
        let known = Known { now: told.now(), name: name.as_deref(), has_other_bases };
        let digest = self.builds.build(&self.endpoint(), &known, order, &output, progress).await?;
        if straight.is_some() {
            return Ok(ImageLocation::Pushed { digest });
        }
        self.keep_one_name(&digest, &order.reference).await;
        Ok(ImageLocation::OnEngine(BuiltImage::new(digest, order.plan.builder, order.key.clone())))
    }

    async fn inspect(&self, name_or_id: &str, what: &str) -> Result<Option<ImageInspect>, Fault> {
        inspect_image(self.negotiated().await?, name_or_id)
            .await
            .map_err(|error| faults::of_client(&self.address, what, &error))
    }
}

/// What a build by a plan would send to an engine. None need be there.
#[derive(Debug, Clone)]
pub struct Outlook {
    pub context: ContextSize,
    /// What the plan gives and the build leaves out, a sentence each.
    pub left_out: Vec<String>,
}

impl Outlook {
    /// # Errors
    /// What the build would be refused for before an engine is asked: the context cannot be sent, or a tenant asks
    /// for a front end of their own.
    pub async fn of(plan: &Plan, settings: &BuildSettings) -> Result<Self, Fault> {
        let (plan, limits, tenancy) = (plan.clone(), settings.limits.clone(), settings.tenancy);
        blocking(move || {
            let context = Context::open(&plan, &limits)?;
            tenancy.check_front_end(context.dockerfile())?;
            let names = plan.build_args.keys().filter(|name| tenancy.reserves(name));
            let left_out = names.map(|name| left_out(name)).collect();
            Ok(Self { context: context.size()?, left_out })
        })
        .await
    }
}

impl ImageBuilder for DockerEngine {
    fn inputs<'a>(&'a self, plan: &'a Plan) -> BoxFuture<'a, Result<Option<String>, Fault>> {
        Box::pin(inputs::of(self, plan))
    }

    fn build<'a>(
        &'a self,
        order: &'a BuildOrder,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<ImageLocation, Fault>> {
        Box::pin(async move {
            if !self.admitted.load(Ordering::Relaxed) {
                self.ping().await?;
            }
            let life = self.life().await?;
            let made = async { self.make(order, &self.told(&life).await?, progress).await };
            match made.await {
                Ok(location) => Ok(location),
                Err(fault) => {
                    let fault = self.outlived(&life, fault).await;
                    Err(redacted(fault, progress))
                }
            }
        })
    }

    fn find<'a>(
        &'a self,
        key: &'a BuildKey,
        reference: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<BuiltImage>, Fault>> {
        Box::pin(async move {
            let Some(image) = self.local_image(key, reference).await? else { return Ok(None) };
            let Some(builder) = image.builder else { return Ok(None) };
            self.touch(&image.name).await;
            Ok(Some(BuiltImage::new(image.id, builder, key.clone())))
        })
    }

    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, Fault>> {
        Box::pin(self.claimed(Claimed::Whole))
    }

    fn search<'a>(
        &'a self,
        image: &'a BuiltImage,
        wanted: &'a Tripwire,
        files: bool,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>> {
        Box::pin(async move {
            let found = search::search(self, &image.id, wanted, files, progress).await;
            found.map_err(|fault| Fault { stage: StageName::Pusher, ..fault })
        })
    }

    fn push<'a>(
        &'a self,
        image: &'a BuiltImage,
        reference: &'a ImageReference,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<String, Fault>> {
        Box::pin(async move {
            let of_a_push = |fault| Fault { stage: StageName::Pusher, ..fault };
            self.negotiated().await.map_err(of_a_push)?;
            let life = self.life().await.map_err(of_a_push)?;
            match self.pushes.push(&image.id, reference, progress).await {
                Ok(digest) => Ok(digest),
                Err(fault) => Err(self.outlived(&life, fault).await),
            }
        })
    }
}

/// Whether the engine keeps its images as manifests, in containerd's image store: its BuildKit then makes all
/// kinds of images by itself.
fn keeps_manifests(info: &SystemInfo) -> bool {
    let status = info.driver_status.iter().flatten();
    status.flatten().any(|text| text.starts_with("io.containerd.snapshotter"))
}

/// What the engine says of an image; `None` = it does not have it.
async fn inspect_image(docker: &Docker, name_or_id: &str) -> Result<Option<ImageInspect>, Error> {
    match docker.inspect_image(name_or_id).await {
        Ok(image) => Ok(Some(image)),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a name of an image, and with its last one the image. `false` = the engine did not: it
/// has no such name, or a container is made of the image.
async fn remove_image(docker: &Docker, name_or_id: &str) -> Result<bool, Error> {
    let options = RemoveImageOptionsBuilder::new().noprune(true).build();
    match docker.remove_image(name_or_id, Some(options), None).await {
        Ok(_) => Ok(true),
        Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
