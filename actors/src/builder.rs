//! Builder: from a source tree to an image.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler};
use time::format_description::well_known::Rfc3339;

use crate::desk::Desk;
use crate::fault::{Fault, Stage};
use crate::job::{BuildKey, Job};
use crate::messages::{Built, ImageBuilt, SourceFetched};
use crate::pool::{Ended, Pool};
use crate::ports::{BuildOrder, FetchedSource, ImageBuilder, Plan, Planner, Registry};
use crate::pusher::Pusher;
use crate::reference::ImageReference;
use crate::supervisor::Mailbox;

/// What the builder works with. Cheap to clone.
#[derive(Clone)]
pub struct Builder {
    pub pool: Pool,
    pub desk: Desk,
    pub planner: Arc<dyn Planner>,
    pub engine: Arc<dyn ImageBuilder>,
    /// Asked for an image of the same inputs before anything is built.
    pub registry: Arc<dyn Registry>,
    /// The registry's name in references.
    pub registry_name: String,
    pub timeout: Duration,
    pub next: Mailbox<Pusher>,
}

impl Actor for Builder {
    type Context = Context<Self>;
}

crate::stoppable!(Builder);

impl Handler<SourceFetched> for Builder {
    type Result = ();

    fn handle(&mut self, SourceFetched { mut job, source }: SourceFetched, _: &mut Self::Context) {
        fail::fail_point!("builder::handle");
        job.progress.enter(Stage::Builder, job.attempt());
        let span = job.progress.span();
        self.pool.run(span, self.clone().work(job, source));
    }
}

impl Builder {
    async fn work(self, mut job: Job, source: FetchedSource) {
        let slot = match self.pool.slot(Some(job.deadline)).await {
            Ok(slot) => slot,
            Err(ended) => return self.desk.end(job, ended).await,
        };
        job.lease.working(Stage::Builder);
        fail::fail_point!("builder::work");
        let started = Instant::now();
        let build = self.build(&job, &source);
        let built = slot.limit(Stage::Builder, self.timeout, job.deadline, build).await;
        job.timings.builder += started.elapsed();
        match built {
            Ok(built) => {
                if let Built::Here(image) = &built {
                    job.history.checkpoint.image = Some(image.clone());
                }
                tracing::info!(
                    seconds = started.elapsed().as_millis() as f64 / 1000.0,
                    "image built"
                );
                slot.done();
                job.lease.waiting();
                let FetchedSource { commit, workspace, .. } = source;
                drop(workspace);
                self.next.deliver(ImageBuilt { job, commit, built }).await;
            }
            Err(ended) => {
                if let Ended::Fault(fault) = &ended {
                    slot.failed(fault.reason);
                }
                self.desk.end(job, ended).await;
            }
        }
    }

    async fn build(&self, job: &Job, source: &FetchedSource) -> Result<Built, Fault> {
        let plan = self.planner.plan(source, &job.request, &job.progress).await?;
        let key = BuildKey::of(&job.request, &source.commit, &plan.fingerprint);
        tracing::info!(builder = plan.builder.as_str(), key = key.as_str(), "build planned");
        if job.request.may_reuse() {
            let reference = ImageReference::for_build(
                &self.registry_name,
                &job.request.user_id,
                &job.request.application_id,
                &key.tag(),
            );
            if let Some(image) = self.registry.find(&reference).await? {
                job.progress.note("the registry has an image of the same inputs: it is reused");
                return Ok(Built::Reused { image, builder: plan.builder.as_str().to_owned() });
            }
        }
        let order = BuildOrder {
            build_id: job.request.build_id.clone(),
            labels: labels(source, &plan, &key),
            plan,
            key,
        };
        self.engine.build(&order, &job.progress).await.map(Built::Here)
    }
}

/// The image's labels: the OCI image specification's annotations, and two of our own. Nothing of
/// the single build (its id, its time) is in them, so that equal inputs give equal images.
fn labels(source: &FetchedSource, plan: &Plan, key: &BuildKey) -> BTreeMap<String, String> {
    let created = source.committed_at.format(&Rfc3339).unwrap_or_default();
    [
        ("org.opencontainers.image.source", source.url.as_str()),
        ("org.opencontainers.image.revision", source.commit.as_str()),
        ("org.opencontainers.image.created", created.as_str()),
        ("org.opencontainers.image.version", source.version.as_str()),
        ("image-builder.build-key", key.as_str()),
        ("image-builder.builder", plan.builder.as_str()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}
