//! What would be built, told to people: by a worker, and by `image-builder plan`.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::request::BuildRequest;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::model::workspace::Workspace;
use image_builder_actors::ports::{Credentials, FetchedSource, SourceConnector};

use crate::api::plans::{Planning, ShownContext, ShownDockerfile, ShownPlan};
use crate::blocking::blocking;
use crate::engine::docker::Outlook;
use crate::engine::settings::BuildSettings;
use crate::planner::{ExplainedPlan, SourcePlanner};
use crate::source::GitConnector;

/// Plans a source that was fetched.
///
/// # Errors
/// What the build would fail of before its engine is asked.
pub async fn shown(
    planner: &SourcePlanner,
    builds: &BuildSettings,
    source: &FetchedSource,
    request: &BuildRequest,
    log: &BuildLog,
) -> Result<ShownPlan, Fault> {
    let explained = planner.explain(source, request, log).await?;
    let limits = builds.limits.clone();
    let (explained, read) = blocking(move || {
        let read = explained.dockerfile(&limits);
        (explained, read)
    })
    .await;
    let (text, base_images) = read?;
    let outlook = Outlook::of(&explained.plan, builds).await?;
    let ExplainedPlan { plan, because, nixpacks, left_out } = explained;
    let provider =
        nixpacks.as_ref().and_then(|plan| plan["variables"]["NIXPACKS_METADATA"].as_str());
    let provider = provider.map(str::to_owned);
    // Its variables have values, which may be anything.
    let nixpacks = nixpacks.map(|mut plan| {
        if let Some(plan) = plan.as_object_mut() {
            plan.remove("variables");
        }
        plan
    });
    Ok(ShownPlan {
        commit: Some(source.commit.clone()).filter(|commit| !commit.is_empty()),
        builder: plan.builder,
        because,
        provider,
        dockerfile: ShownDockerfile { path: plan.dockerfile, text },
        base_images,
        target: plan.target,
        root_directory: request.plan.root_directory.clone(),
        platforms: plan.platforms.iter().map(|platform| platform.as_str()).collect(),
        context: ShownContext { files: outlook.context.files, bytes: outlook.context.bytes },
        build_args: plan.build_args.into_keys().collect(),
        secrets: plan.secrets.into_keys().collect(),
        warnings: left_out.into_iter().chain(outlook.left_out).collect(),
        nixpacks,
    })
}

/// Makes plans with the adapters of a worker.
pub(super) struct WorkerPlans {
    pub(super) forge: Arc<GitConnector>,
    pub(super) credentials: Arc<dyn Credentials>,
    pub(super) planner: Arc<SourcePlanner>,
    pub(super) builds: BuildSettings,
    /// Where sources are fetched to.
    pub(super) workspaces: PathBuf,
    /// The service's own, which builds come to see.
    pub(super) service: Vec<Secret>,
}

impl Planning for WorkerPlans {
    fn plan(&self, mut request: BuildRequest) -> BoxFuture<'_, Result<ShownPlan, Fault>> {
        Box::pin(async move {
            let log = BuildLog::new(&request.build_id, request.redactor_with(&self.service));
            let mut log = log.of_application(&request.application_id);
            let workspace = Workspace::create(&self.workspaces).map_err(|error| {
            tracing::error!(path = %self.workspaces.display(), %error, "cannot make a workspace");
            let message = "The build service has no room to fetch the repository.";
            Fault::new(StageName::Connector, Reason::DiskLow, message)
        })?;
            if let Some(reference) = &request.token_ref {
                let token = self.credentials.token(&request, reference).await?;
                log.keep_secret(token.clone());
                request.token = Some(token);
            }
            let planned = async {
                let source = self.forge.fetch(&request, None, workspace, &log).await?;
                shown(&self.planner, &self.builds, &source, &request, &log).await
            };
            planned.await.map_err(|fault| Fault { message: log.redact(&fault.message), ..fault })
        })
    }
}
