//! One build: what is asked of BuildKit, and what comes of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{
    SolveRequest, SolveResponse, StatusRequest, StatusResponse,
};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{CREATED_LABEL, REVISION_LABEL, SOURCE_LABEL};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::ports::BuildOrder;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Response, Status, Streaming};

use super::abilities::Abilities;
use super::cache::RemoteCache;
use super::control::{Control, Endpoint};
use super::events::Follower;
use super::faults;
use super::hints;
use super::misses::LastBuilds;
use super::session::{DOCKERFILE_NAME, Files, Offer, Session};
use super::tenancy::{self, Tenancy};
use crate::engine::cgroups::{Cgroup, Memory, ran_out};
use crate::engine::credentials::PullCredentials;
use crate::engine::docker::disk::size::Size;
use crate::engine::settings::{BuildSettings, Compression, Provenance, PushedImages, StraightPush};

/// Most that the build arguments, labels and the like of a build hold together, in bytes.
const LONGEST_REQUEST: usize = 60 * 1024;
/// How often a build is asked for again that the engine lost among others.
const ASKED_AGAIN: usize = 2;
/// The same of one whose step failed while the engine told another build of it. Each time one of them is told.
const ASKED_FOR_OUTPUT: usize = 4;
/// How long the last news of a build that has ended may be under way.
const LAST_NEWS: Duration = Duration::from_secs(15);
/// The build argument that the front end takes for the name space of cache mounts.
const CACHE_NAME_SPACE: &str = "build-arg:BUILDKIT_CACHE_MOUNT_NS";
/// The build argument by which the front end dates an image.
const EPOCH: &str = "SOURCE_DATE_EPOCH";
/// In which processor time is counted, in microseconds.
const CPU_PERIOD: u32 = 100_000;
/// What the engine gives back as the id of an image.
const IMAGE_ID: &str = "containerimage.digest";

/// Where the image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) enum Output {
    /// Into the store of a Docker Engine, under this name.
    Engine { name: String },
    /// Into this repository of a registry, by its digest alone.
    Registry { repository: String, plain_http: bool },
}

impl Output {
    /// Straight to the registry.
    pub(in crate::engine) fn straight(order: &BuildOrder, push: StraightPush) -> Self {
        let ImageReference { registry, repository, .. } = &order.reference;
        let repository = format!("{registry}/{repository}");
        Output::Registry { repository, plain_http: push.plain_http }
    }

    /// Whether BuildKit pushes the image by itself.
    fn is_pushed(&self) -> bool {
        matches!(self, Output::Registry { .. })
    }

    /// The exporter, with its attributes. `epoch` = no file of the image is to be younger.
    fn exporter(
        &self,
        compression: Compression,
        epoch: Option<i64>,
    ) -> (&'static str, HashMap<String, String>) {
        let mut attributes = HashMap::new();
        let mut set =
            |name: &str, value: &str| attributes.insert(name.to_owned(), value.to_owned());
        match self {
            Output::Engine { name } => {
                set("name", name);
                ("moby", attributes)
            }
            Output::Registry { repository, plain_http } => {
                set("name", repository);
                set("push", "true");
                set("push-by-digest", "true");
                // An engine with an image store of its own would keep it as well.
                set("store", "false");
                if *plain_http {
                    set("registry.insecure", "true");
                }
                if compression == Compression::Zstd {
                    set("compression", "zstd");
                    // Docker's own kinds of manifests know no such layers.
                    set("oci-mediatypes", "true");
                }
                if epoch.is_some() {
                    set("rewrite-timestamp", "true");
                }
                ("image", attributes)
            }
        }
    }
}

/// What is known of an engine.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Known<'a> {
    /// What its clock says: files that build steps make have its time, which need not be the worker's.
    pub(in crate::engine) now: OffsetDateTime,
    /// What it is, with its version; `None` = nobody has asked.
    pub(in crate::engine) name: Option<&'a str>,
    /// Whether base images are taken from their registries alone: what it has itself is of another platform.
    pub(in crate::engine) has_other_bases: bool,
}

/// A build that is to be made.
pub(super) struct Solve<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) settings: &'a BuildSettings,
    pub(super) order: &'a BuildOrder,
    pub(super) output: &'a Output,
    /// Whether every step is run, whatever the build cache has.
    pub(super) no_cache: bool,
    /// Where steps run; `None` = where the engine has them.
    pub(super) cgroup: Option<Cgroup>,
    pub(super) files: Arc<Files>,
    pub(super) shared_key: String,
    /// Says why a step is not taken from the cache.
    pub(super) last_builds: &'a LastBuilds,
    pub(super) known: &'a Known<'a>,
}

/// Why the engine made no image.
enum Failure {
    /// It lost the place of a step among several builds.
    Lost,
    /// A step failed that it ran for several builds, and it told another one what the step wrote.
    Unheard(Fault),
    Fault(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::Fault(fault)
    }
}

impl Solve<'_> {
    /// Builds the image, and returns the engine's digest of it. Dropping the future stops the build.
    ///
    /// An engine does what several builds share once, and now and then loses its place when one of them is stopped
    /// (moby/buildkit#3635). What it had done until then is in its cache.
    pub(super) async fn run(&self, progress: &BuildLog) -> Result<String, Fault> {
        self.settings.tenancy.check_front_end(self.files.dockerfile())?;
        let (mut lost, mut unheard) = (0, 0);
        loop {
            match self.ask(progress).await {
                Ok(id) => return Ok(id),
                Err(Failure::Lost) if lost < ASKED_AGAIN => {
                    lost += 1;
                    progress.note(
                        "the engine lost a step that it shares with another build: it is asked again",
                    );
                }
                Err(Failure::Unheard(_)) if unheard < ASKED_FOR_OUTPUT => {
                    unheard += 1;
                    progress.note(
                        "a step failed that another build has as well, which was told what it wrote: the engine is \
                         asked again",
                    );
                }
                Err(Failure::Lost) => {
                    return Err(faults::broke(&"it loses steps that several builds share"));
                }
                Err(Failure::Unheard(fault) | Failure::Fault(fault)) => return Err(fault),
            }
        }
    }

    /// Builds the image, as far as the engine does.
    async fn ask(&self, progress: &BuildLog) -> Result<String, Failure> {
        let attributes = self.attributes(progress)?;
        let offer = Offer {
            files: Some(self.files.clone()),
            shared_key: self.shared_key.clone(),
            secrets: self.order.plan.secrets.clone(),
            credentials: self.credentials(),
        };
        let session = Session::open(self.endpoint, offer).await?;
        let control = Control::open(self.endpoint).await?;
        let request = self.request(session.id.clone(), attributes);
        let misses = self.last_builds.begin(&self.order.reference.repository, self.no_cache);
        let mut follower = Follower::new(progress, self.settings.limits.output_bytes, misses);
        let before = self.cgroup.as_ref().and_then(Cgroup::memory);
        let ended = follow(control, request, &mut follower).await;
        drop(session);
        // A tree that cannot be sent is the cause of whatever the engine says about half a context.
        if let Some(fault) = self.files.failure() {
            return Err(fault.into());
        }
        let ended = ended.map_err(|status| {
            let failed = |digest: Option<&str>| follower.failed(digest);
            if faults::is_lost(&status, failed) {
                return Failure::Lost;
            }
            let is_unheard = faults::is_unheard(&status, failed);
            let fault = faults::of_build(&status, failed, follower.reads_dockerfile());
            follower.has_failed(faults::failed_vertex(status.details()).as_deref());
            let fault = self.without_credential(self.of_memory(before, &status, fault));
            if is_unheard { Failure::Unheard(fault) } else { Failure::Fault(fault) }
        });
        self.last_builds.end(follower.into_misses(), ended.is_ok());
        let ended = match ended {
            Err(Failure::Fault(fault)) => Err(Failure::Fault(self.explained(fault).await)),
            ended => ended,
        };
        let id = ended?.exporter_response.remove(IMAGE_ID);
        id.ok_or_else(|| faults::broke(&"it does not say which image it made").into())
    }

    /// The same fault with what the engine does not say of its cause.
    async fn explained(&self, fault: Fault) -> Fault {
        let context = self.files.context();
        let Some(feature) = hints::newer_feature(&fault, &context.dockerfile) else {
            return hints::explained(fault, context, &self.order.plan.build_args);
        };
        let engine = match self.known.name {
            Some(engine) => engine.to_owned(),
            None => self.asked_for_its_name().await,
        };
        let remedy = match self.settings.tenancy {
            Tenancy::Strict => "do without, or have the operator use a newer one",
            Tenancy::Trusted => {
                "let the Dockerfile begin with the line `# syntax=docker/dockerfile:1`, which brings a newer front \
                 end, or do without"
            }
        };
        let hint =
            format!("The build service's engine, {engine}, is too old for {feature}: {remedy}.");
        hints::with(fault, Some(hint))
    }

    async fn asked_for_its_name(&self) -> String {
        let asked = async { Abilities::of(&mut Control::open(self.endpoint).await?).await };
        asked.await.map_or_else(|_: Fault| "BuildKit".to_owned(), |abilities| abilities.name())
    }

    /// A registry may repeat what it was sent.
    fn without_credential(&self, fault: Fault) -> Fault {
        let passwords = self.settings.push_auth.iter().map(|auth| auth.password.clone());
        let message = Redactor::new(passwords).redact(&fault.message);
        Fault { message, ..fault }
    }

    /// What the build may pull with, and what BuildKit may push the image with. The source policy keeps the
    /// second from all but the user's own images.
    fn credentials(&self) -> PullCredentials {
        let mut credentials = self.settings.pull_credentials(&self.order.plan);
        if self.output.is_pushed() {
            credentials.own.extend(self.settings.push_auth.as_deref().cloned());
        }
        credentials
    }

    /// Where the cache of the application is, where there is one and the engine can read and write it: those that
    /// push by themselves can.
    fn cache(&self) -> Option<RemoteCache> {
        let cache = self.settings.cache.as_ref()?;
        self.output.is_pushed().then(|| RemoteCache::of(cache, &self.order.reference))
    }

    /// What is asked to be attached to the image, with what it is to tell of the source.
    fn attestations(&self) -> Vec<(&'static str, String)> {
        let PushedImages { provenance, sbom_generator, .. } = &self.settings.pushed;
        if !self.output.is_pushed() {
            return Vec::new();
        }
        let mut attributes = Vec::new();
        if let Some(provenance) = provenance {
            let mode = match provenance {
                Provenance::Sources => "min",
                Provenance::All => "max",
            };
            attributes.push(("attest:provenance", format!("mode={mode}")));
            for (name, label) in [("vcs:source", SOURCE_LABEL), ("vcs:revision", REVISION_LABEL)] {
                attributes.extend(self.order.labels.get(label).map(|value| (name, value.clone())));
            }
        }
        let sbom = sbom_generator.iter().map(|it| ("attest:sbom", format!("generator={it}")));
        attributes.extend(sbom);
        attributes
    }

    /// The time of the commit, in seconds since 1970, where images are to be the same whenever they are built.
    fn epoch(&self) -> Option<i64> {
        if !self.settings.pushed.reproducible || !self.output.is_pushed() {
            return None;
        }
        let committed = OffsetDateTime::parse(self.order.labels.get(CREATED_LABEL)?, &Rfc3339);
        committed.ok().map(OffsetDateTime::unix_timestamp)
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
        let host = self.settings.network.as_deref() == Some("host");
        let (exporter, exporter_attributes) =
            self.output.exporter(self.settings.pushed.compression, self.epoch());
        SolveRequest {
            r#ref: uuid::Uuid::new_v4().simple().to_string(),
            session,
            frontend: "dockerfile.v0".to_owned(),
            frontend_attrs: attributes,
            // Newer engines take these for the first of their `exporters`.
            exporter_deprecated: exporter.to_owned(),
            exporter_attrs_deprecated: exporter_attributes,
            entitlements: host.then(|| "network.host".to_owned()).into_iter().collect(),
            cache: Some(self.cache().map(|cache| cache.options()).unwrap_or_default()),
            source_policy: (self.settings.tenancy == Tenancy::Strict).then(|| {
                let cache = self.settings.cache.as_ref().map(|cache| cache.name.as_str());
                let (networks, hosts) = (&self.settings.allowed, &self.settings.allowed_hosts);
                tenancy::source_policy(&self.order.reference, networks, hosts, cache)
            }),
            // Newer engines keep a record of other builds, with all that their steps wrote, as they wrote it.
            internal: true,
            ..SolveRequest::default()
        }
    }

    /// What the Dockerfile's front end is told.
    fn attributes(&self, progress: &BuildLog) -> Result<HashMap<String, String>, Fault> {
        let (plan, reference) = (&self.order.plan, &self.order.reference);
        let tenancy = self.settings.tenancy;
        let strict = tenancy == Tenancy::Strict;
        let mut attributes = HashMap::new();
        let mut set = |name: String, value: &str| attributes.insert(name, value.to_owned());
        set("filename".to_owned(), DOCKERFILE_NAME);
        for (name, value) in &plan.build_args {
            if tenancy.reserves(name) {
                progress.note(tenancy::left_out(name));
                continue;
            }
            set(format!("build-arg:{name}"), value);
        }
        if let Some(epoch) = self.epoch().filter(|_| !plan.build_args.contains_key(EPOCH)) {
            set(format!("build-arg:{EPOCH}"), &epoch.to_string());
        }
        if let Some(cache) = self.cache() {
            set("cache-imports".to_owned(), &cache.imports());
        }
        for (name, value) in &self.order.labels {
            set(format!("label:{name}"), value);
        }
        for (name, value) in self.attestations() {
            set(name.to_owned(), &value);
        }
        if let Some(target) = &plan.target {
            set("target".to_owned(), target);
        }
        if !plan.platforms.is_empty() {
            let platforms: Vec<_> = plan.platforms.iter().map(|one| one.as_str()).collect();
            set("platform".to_owned(), &platforms.join(","));
        }
        if let Some(network) = &self.settings.network {
            set("force-network-mode".to_owned(), network);
        }
        // After the request's own, which must not win.
        for (name, value) in self.settings.proxies.variables() {
            set(format!("build-arg:{name}"), &value);
        }
        if let Some(Size(bytes)) = self.settings.memory {
            set("memory".to_owned(), &bytes.to_string());
            // Together with swap.
            set("memswap".to_owned(), &bytes.to_string());
        }
        if let Some(cpus) = self.settings.cpus {
            set("cpuperiod".to_owned(), &CPU_PERIOD.to_string());
            set("cpuquota".to_owned(), &format!("{:.0}", cpus * f64::from(CPU_PERIOD)));
        }
        if let Some(cgroup) = &self.cgroup {
            set("cgroup-parent".to_owned(), &cgroup.path);
        }
        set(CACHE_NAME_SPACE.to_owned(), &tenancy::cache_name_space(reference));
        set("add-hosts".to_owned(), &tenancy::extra_host(reference, plan, &self.settings.salt_key));
        if strict {
            // Tells the front end that it is the one that was asked for.
            set("cmdline".to_owned(), "");
        }
        if self.known.has_other_bases {
            set("image-resolve-mode".to_owned(), "pull");
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
