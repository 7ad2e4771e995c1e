//! One build: its context, its place among the builds of its repository, and the solve.

use std::sync::Arc;

use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::image::{REVISION_LABEL, SOURCE_LABEL};
use image_builder_actors::ports::BuildOrder;

use super::context::Context;
use super::control::Endpoint;
use super::misses::LastBuilds;
use super::revisions::Revisions;
use super::session::Files;
use super::solve::{Known, Output, Solve};
use super::tenancy::user;
use super::times::FileTimes;
use crate::blocking::blocking;
use crate::engine::cgroups::Cgroup;
use crate::engine::settings::BuildSettings;

/// The builds on one engine.
pub(in crate::engine) struct Builds {
    pub(in crate::engine) settings: BuildSettings,
    /// What is remembered of contexts.
    pub(in crate::engine) times: Arc<FileTimes>,
    revisions: Revisions,
    last_builds: LastBuilds,
}

impl Builds {
    /// `times` may be those of other engines too: what is sent to one is no more than another one was sent.
    pub(in crate::engine) fn new(settings: BuildSettings, times: Arc<FileTimes>) -> Self {
        Self {
            settings,
            times,
            revisions: Revisions::default(),
            last_builds: LastBuilds::default(),
        }
    }

    /// Builds an image, and returns the digest that the engine gives as its own.
    pub(in crate::engine) async fn build(
        &self,
        endpoint: &Endpoint,
        known: &Known<'_>,
        order: &BuildOrder,
        output: &Output,
        progress: &BuildLog,
    ) -> Result<String, Fault> {
        let plan = order.plan.clone();
        let limits = self.settings.limits.clone();
        let times = self.times.clone();
        let context = blocking(move || {
            #[cfg(feature = "failpoints")]
            fail::fail_point!("builder::opening");
            let mut context = Context::open(&plan, &limits)?;
            context.know(&times.read);
            Ok(context)
        })
        .await?;

        let mounts_caches = context.mounts_caches;
        let source = source(order).filter(|_| mounts_caches);
        let goes_back = source
            .as_ref()
            .is_some_and(|(repository, commit)| self.revisions.begin(repository, commit));
        if goes_back {
            progress.note(
                "another commit was built since this one was: no layers are taken from the cache, since \
                 they are older than what that build left in cache mounts",
            );
        }
        let shared_key = self.times.shared_key(&order.reference);
        let times = Arc::new(self.times.begin(&shared_key, known.now, mounts_caches));
        let solve = Solve {
            endpoint,
            settings: &self.settings,
            order,
            output,
            no_cache: goes_back || self.settings.no_cache,
            cgroup: Cgroup::of(&self.settings.cgroups, user(&order.reference)),
            files: Arc::new(Files::new(context, times.clone())),
            shared_key: shared_key.clone(),
            last_builds: &self.last_builds,
            known,
        };
        progress.note("the engine fetches what it needs of the build context");
        let built = solve.run(progress).await;
        self.times.end(&shared_key, &times);
        let digest = built?;
        if let Some((repository, commit)) = source {
            self.revisions.succeeded(&repository, commit);
        }
        Ok(digest)
    }
}

/// The repository and the commit that are built, of one user: cache mounts are no two users'.
fn source(order: &BuildOrder) -> Option<(String, &str)> {
    let label = |name: &str| order.labels.get(name).map(String::as_str);
    let (repository, commit) = label(SOURCE_LABEL).zip(label(REVISION_LABEL))?;
    Some((format!("{} {repository}", user(&order.reference)), commit))
}
