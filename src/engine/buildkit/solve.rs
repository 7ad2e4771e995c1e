//! One build: what is asked of BuildKit, and what comes of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bollard::ClientVersion;
use bollard_buildkit_proto::moby::buildkit::v1::{
    CacheOptions, SolveRequest, SolveResponse, StatusRequest, StatusResponse,
};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::BuildOrder;
use tonic::{Response, Status, Streaming};

use super::control::Control;
use super::events::Follower;
use super::faults;
use super::session::{DOCKERFILE_NAME, Files, Offer, Session};
use super::tenancy::{self, Tenancy};
use crate::engine::cgroups::{Cgroup, Memory, ran_out};
use crate::engine::credentials::PullCredentials;
use crate::engine::docker::address::Address;
use crate::engine::docker::disk::size::Size;
use crate::net::networks::Networks;

/// Most that the build arguments, labels and the like of a build hold together, in bytes.
const LONGEST_REQUEST: usize = 60 * 1024;
/// How long the last news of a build that has ended may be under way.
const LAST_NEWS: Duration = Duration::from_secs(15);
/// The build argument that the front end takes for the name space of cache mounts.
const CACHE_NAME_SPACE: &str = "build-arg:BUILDKIT_CACHE_MOUNT_NS";
/// In which processor time is counted, in microseconds.
const CPU_PERIOD: u32 = 100_000;
/// What the engine gives back as the id of an image.
const IMAGE_ID: &str = "containerimage.digest";

/// A build that is to be made.
pub(in crate::engine) struct Solve<'a> {
    pub(in crate::engine) address: &'a Address,
    pub(in crate::engine) version: ClientVersion,
    pub(in crate::engine) order: &'a BuildOrder,
    /// What the engine is to call the image.
    pub(in crate::engine) name: &'a str,
    /// The network of build steps, `host` or `none`; `None` = the engine's default.
    pub(in crate::engine) network: Option<&'a str>,
    /// Whether every step is run, whatever the build cache has.
    pub(in crate::engine) no_cache: bool,
    pub(in crate::engine) files: Arc<Files>,
    pub(in crate::engine) shared_key: String,
    pub(in crate::engine) credentials: PullCredentials,
    /// What the build is told of proxies, in place of what it may say of them itself.
    pub(in crate::engine) proxies: BTreeMap<String, String>,
    /// What may be a source though it is not public.
    pub(in crate::engine) allowed: &'a Networks,
    /// What a step may hold, on engines that can bound it.
    pub(in crate::engine) memory: Option<Size>,
    /// How many processors a step may keep busy, on engines that can bound it.
    pub(in crate::engine) cpus: Option<f64>,
    /// Where steps run; `None` = where the engine has them.
    pub(in crate::engine) cgroup: Option<Cgroup>,
    pub(in crate::engine) tenancy: Tenancy,
    /// Keeps secrets from being guessed by what steps see.
    pub(in crate::engine) salt_key: &'a Secret,
    /// What the build may write to the log, in bytes.
    pub(in crate::engine) output_bytes: u64,
}

impl Solve<'_> {
    /// Builds the image, and returns the engine's id of it. Dropping the future stops the build.
    pub(in crate::engine) async fn run(self, progress: &BuildLog) -> Result<String, Fault> {
        if self.tenancy == Tenancy::Strict {
            tenancy::check_front_end(self.files.dockerfile())?;
        }
        let attributes = self.attributes(progress)?;
        let offer = Offer {
            files: Some(self.files.clone()),
            shared_key: self.shared_key.clone(),
            secrets: self.order.plan.secrets.clone(),
            credentials: self.credentials.clone(),
        };
        let session = Session::open(self.address, self.version, offer).await?;
        let control = Control::open(self.address, self.version).await?;
        let request = self.request(session.id.clone(), attributes);
        let mut follower = Follower::new(progress, self.output_bytes);
        let before = self.cgroup.as_ref().and_then(Cgroup::memory);
        let ended = follow(control, request, &mut follower).await;
        drop(session);
        // A tree that cannot be sent is the cause of whatever the engine says about half a context.
        if let Some(fault) = self.files.failure() {
            return Err(fault);
        }
        match ended {
            Ok(response) => response
                .exporter_response
                .get(IMAGE_ID)
                .cloned()
                .ok_or_else(|| faults::broke(&"it does not say which image it made")),
            Err(status) => {
                let fault = faults::of_build(
                    &status,
                    |digest| follower.failed(digest),
                    follower.reads_dockerfile(),
                );
                Err(self.of_memory(before, &status, fault))
            }
        }
    }

    /// The same fault, or the one that memory ran out, where the kernel says so.
    fn of_memory(&self, before: Option<Memory>, status: &Status, fault: Fault) -> Fault {
        let (Some(cgroup), Some(code)) = (&self.cgroup, faults::exit_code(status.message())) else {
            return fault;
        };
        if fault.reason == Reason::BuildFailed && ran_out(before, cgroup.memory(), code) {
            return faults::out_of_memory(fault, cgroup.limit());
        }
        fault
    }

    fn request(&self, session: String, attributes: HashMap<String, String>) -> SolveRequest {
        let name = ("name".to_owned(), self.name.to_owned());
        let host = self.network == Some("host");
        SolveRequest {
            r#ref: uuid::Uuid::new_v4().simple().to_string(),
            session,
            frontend: "dockerfile.v0".to_owned(),
            frontend_attrs: attributes,
            // Newer engines take these for the first of their `exporters`.
            exporter_deprecated: "moby".to_owned(),
            exporter_attrs_deprecated: HashMap::from([name]),
            entitlements: host.then(|| "network.host".to_owned()).into_iter().collect(),
            cache: Some(CacheOptions::default()),
            source_policy: (self.tenancy == Tenancy::Strict)
                .then(|| tenancy::source_policy(&self.order.reference, self.allowed)),
            ..SolveRequest::default()
        }
    }

    /// What the Dockerfile's front end is told.
    fn attributes(&self, progress: &BuildLog) -> Result<HashMap<String, String>, Fault> {
        let (plan, reference) = (&self.order.plan, &self.order.reference);
        let strict = self.tenancy == Tenancy::Strict;
        let mut attributes = HashMap::new();
        let mut set = |name: String, value: &str| attributes.insert(name, value.to_owned());
        set("filename".to_owned(), DOCKERFILE_NAME);
        for (name, value) in &plan.build_args {
            if strict && tenancy::is_reserved(name) {
                let left_out = "the build argument is the service's own to set, and is left out";
                progress.note(format!("{left_out}: {name}"));
                continue;
            }
            set(format!("build-arg:{name}"), value);
        }
        for (name, value) in &self.order.labels {
            set(format!("label:{name}"), value);
        }
        if let Some(target) = &plan.target {
            set("target".to_owned(), target);
        }
        if !plan.platforms.is_empty() {
            let platforms: Vec<_> = plan.platforms.iter().map(|one| one.as_str()).collect();
            set("platform".to_owned(), &platforms.join(","));
        }
        if let Some(network) = self.network {
            set("force-network-mode".to_owned(), network);
        }
        // After the request's own, which must not win.
        for (name, value) in &self.proxies {
            set(format!("build-arg:{name}"), value);
        }
        if let Some(Size(bytes)) = self.memory {
            set("memory".to_owned(), &bytes.to_string());
            // Together with swap.
            set("memswap".to_owned(), &bytes.to_string());
        }
        if let Some(cpus) = self.cpus {
            set("cpuperiod".to_owned(), &CPU_PERIOD.to_string());
            set("cpuquota".to_owned(), &format!("{:.0}", cpus * f64::from(CPU_PERIOD)));
        }
        if let Some(cgroup) = &self.cgroup {
            set("cgroup-parent".to_owned(), &cgroup.path);
        }
        set(CACHE_NAME_SPACE.to_owned(), &tenancy::cache_name_space(reference));
        set("add-hosts".to_owned(), &tenancy::extra_host(reference, plan, self.salt_key));
        if strict {
            // Tells the front end that it is the one that was asked for.
            set("cmdline".to_owned(), "");
        }
        if self.no_cache {
            set("no-cache".to_owned(), "");
        }
        let size: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size > LONGEST_REQUEST {
            let message = "The build arguments are too long for the container engine: pass large \
                           values as secrets or files.";
            return Err(Fault::new(StageName::Builder, Reason::InvalidPlan, message));
        }
        Ok(attributes)
    }
}

/// Has a build made, and follows it to its end.
async fn follow(
    mut control: Control,
    request: SolveRequest,
    follower: &mut Follower<'_>,
) -> Result<SolveResponse, Status> {
    let mut watcher = control.client.clone();
    let status = StatusRequest { r#ref: request.r#ref.clone() };
    // The engine waits for the build of which it is asked: so nothing of its beginning is missed.
    let mut opening = Box::pin(async move { watcher.status(status).await });
    let mut solving = Box::pin(control.client.solve(request));
    let mut news = None;
    let ended = loop {
        tokio::select! {
            biased;
            opened = &mut opening, if news.is_none() => news = Some(opened.map(Response::into_inner)),
            told = next(&mut news) => match told {
                Some(told) => follower.status(told),
                // The end of the news is soon followed by that of the build.
                None => break solving.await,
            },
            ended = &mut solving => break ended,
        }
    };
    if news.is_none() {
        news = tokio::time::timeout(LAST_NEWS, opening)
            .await
            .ok()
            .map(|opened| opened.map(Response::into_inner));
    }
    while let Ok(Some(told)) = tokio::time::timeout(LAST_NEWS, next(&mut news)).await {
        follower.status(told);
    }
    ended.map(Response::into_inner)
}

/// The next news, none where there will be no more. Waits for ever for a stream that is not open yet.
async fn next(
    news: &mut Option<Result<Streaming<StatusResponse>, Status>>,
) -> Option<StatusResponse> {
    match news {
        Some(Ok(stream)) => stream.message().await.ok().flatten(),
        Some(Err(_)) => None,
        None => std::future::pending().await,
    }
}
