//! One build: its context, its place among the builds of its repository, and the solve.

use std::sync::Arc;

use bollard::ClientVersion;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::image::{REVISION_LABEL, SOURCE_LABEL};
use image_builder_actors::ports::BuildOrder;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{DockerEngine, faults, local};
use crate::blocking::blocking;
use crate::engine::buildkit::context::Context;
use crate::engine::buildkit::session::Files;
use crate::engine::buildkit::solve::Solve;
use crate::engine::buildkit::tenancy::user;
use crate::engine::cgroups::Cgroup;

/// Builds an image and returns the engine's id of it.
pub(super) async fn build(
    engine: &DockerEngine,
    version: ClientVersion,
    order: &BuildOrder,
    progress: &BuildLog,
) -> Result<String, Fault> {
    let plan = order.plan.clone();
    let limits = engine.settings.limits.clone();
    let context = blocking(move || {
        #[cfg(feature = "failpoints")]
        fail::fail_point!("builder::opening");
        Context::open(&plan, &limits)
    })
    .await?;

    let mounts_caches = context.mounts_caches;
    let source = source(order).filter(|_| mounts_caches);
    let goes_back =
        source.is_some_and(|(repository, commit)| engine.revisions.begin(repository, commit));
    if goes_back {
        progress.note(
            "another commit was built since this one was: no layers are taken from the cache, since \
             they are older than what that build left in cache mounts",
        );
    }
    let shared_key = engine.file_times.shared_key(&order.reference);
    let times = engine.file_times.begin(&shared_key, time_of(engine).await?, mounts_caches);
    let times = Arc::new(times);
    let solve = Solve {
        address: &engine.address,
        version,
        order,
        name: &local::new_name(&order.reference),
        network: engine.settings.network.as_deref(),
        no_cache: goes_back || engine.settings.no_cache,
        files: Arc::new(Files::new(context, times.clone())),
        shared_key: shared_key.clone(),
        credentials: engine.settings.pull_credentials(&order.plan),
        proxies: engine.settings.proxies.variables(),
        allowed: &engine.settings.allowed,
        memory: engine.settings.memory,
        cpus: engine.settings.cpus,
        cgroup: Cgroup::of(&engine.settings.cgroups, user(&order.reference)),
        tenancy: engine.settings.tenancy,
        salt_key: &engine.settings.salt_key,
        output_bytes: engine.settings.limits.output_bytes,
    };
    progress.note("the engine fetches what it needs of the build context");
    let built = solve.run(progress).await;
    engine.file_times.end(&shared_key, &times);
    let image_id = built?;
    engine.keep_one_name(&image_id, &order.reference).await;
    if let Some((repository, commit)) = source {
        engine.revisions.succeeded(repository, commit);
    }
    Ok(image_id)
}

/// The repository and the commit that are built.
fn source(order: &BuildOrder) -> Option<(&str, &str)> {
    let label = |name: &str| order.labels.get(name).map(String::as_str);
    label(SOURCE_LABEL).zip(label(REVISION_LABEL))
}

/// What the engine's clock says: files that build steps make have its time, which need not be the
/// worker's.
async fn time_of(engine: &DockerEngine) -> Result<OffsetDateTime, Fault> {
    let what = "asking for its time";
    let info = faults::in_time(super::ANSWER_TIMEOUT, what, engine.docker().info())
        .await?
        .map_err(|error| faults::of_client(&engine.address, what, &error))?;
    let told = info.system_time.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok());
    Ok(told.unwrap_or_else(OffsetDateTime::now_utc))
}
