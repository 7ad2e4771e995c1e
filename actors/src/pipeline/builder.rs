//! Builder: from a source tree to an image.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler};
use tokio::sync::OwnedMutexGuard;

use crate::delivery::artifacts::{Artifact, Images, labels};
use crate::delivery::job::Job;
use crate::delivery::lease::Phase;
use crate::delivery::settlement::Settlement;
use crate::model::fault::{Fault, StageName};
use crate::model::history::Planned;
use crate::model::image::{BuildKey, ImageLocation};
use crate::pipeline::messages::{ImageBuilt, SourceFetched};
use crate::pipeline::pool::Pool;
use crate::pipeline::pusher::Pusher;
use crate::ports::{BuildOrder, FetchedSource, ImageBuilder, Planner};
use crate::supervision::Mailbox;

/// What the builder works with. Cheap to clone.
#[derive(Clone)]
pub struct Builder {
    pub pool: Pool,
    pub settlement: Settlement,
    pub planner: Arc<dyn Planner>,
    pub engine: Arc<dyn ImageBuilder>,
    /// Asked for an image of the same inputs before anything is built.
    pub images: Images,
    pub timeout: Duration,
    /// Equal builds on this worker take turns.
    pub turns: KeyedLocks,
    pub next: Mailbox<Pusher>,
}

/// Builds of the same key, one at a time: the first builds, and those that waited find its image on
/// the engine. A first one that fails costs nobody else anything: the next one builds.
#[derive(Clone, Default)]
pub struct KeyedLocks(Arc<Mutex<HashMap<BuildKey, Weak<tokio::sync::Mutex<()>>>>>);

impl KeyedLocks {
    async fn take(&self, key: &BuildKey) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.get(key).and_then(Weak::upgrade).unwrap_or_default();
            turns.insert(key.clone(), Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }
}

impl Actor for Builder {
    type Context = Context<Self>;
}

crate::supervised!(Builder);

impl Handler<SourceFetched> for Builder {
    type Result = ();

    fn handle(&mut self, SourceFetched { mut job, source }: SourceFetched, _: &mut Self::Context) {
        fail::fail_point!("builder::handle");
        job.lease.set_phase(Phase::Waiting);
        job.progress.enter(StageName::Builder, job.attempt());
        let span = job.progress.span();
        self.pool.run(span, self.clone().work(job, source));
    }
}

impl Builder {
    async fn work(self, mut job: Job, source: FetchedSource) {
        let slot = match self.pool.slot_for(&job, StageName::Builder, self.timeout).await {
            Ok(slot) => slot,
            Err(ended) => return self.settlement.end(job, ended).await,
        };
        job.lease.set_phase(Phase::Working(StageName::Builder));
        job.ticket.building();
        fail::fail_point!("builder::work");
        let started = Instant::now();
        let planned = OnceLock::new();
        let build = self.build(&job, &source, &planned);
        let built = slot.limit(&job, StageName::Builder, self.timeout, build).await;
        job.timings.builder += started.elapsed();
        job.history.checkpoint.planned = planned.into_inner();
        match built {
            Ok(artifact) => {
                fail::fail_point!("builder::built");
                if let ImageLocation::OnEngine(image) = &artifact.location {
                    job.history.checkpoint.image = Some(image.clone());
                }
                tracing::info!(
                    seconds = started.elapsed().as_millis() as f64 / 1000.0,
                    "image built"
                );
                slot.done();
                job.lease.set_phase(Phase::InMailbox);
                drop(source);
                self.next.deliver(ImageBuilt { job, artifact }).await;
            }
            Err(ended) => {
                slot.ended(&ended);
                self.settlement.end(job, ended).await;
            }
        }
    }

    /// Plans, and builds what is not there yet.
    async fn build(
        &self,
        job: &Job,
        source: &FetchedSource,
        planned: &OnceLock<Planned>,
    ) -> Result<Artifact, Fault> {
        let plan = self.planner.plan(source, &job.request, &job.progress).await?;
        let key = BuildKey::of(&job.request, &source.commit, &plan.fingerprint);
        let kept = Planned { key: key.clone(), builder: plan.builder };
        let _ = planned.set(kept.clone());
        tracing::info!(builder = plan.builder.as_str(), key = key.as_str(), "build planned");
        let order = BuildOrder {
            build_id: job.request.build_id.clone(),
            labels: labels(source, &plan, &key),
            plan,
            key,
        };
        let artifact = |location, reused| {
            let commit = source.commit.clone();
            Artifact { commit, planned: kept, location, reused }
        };
        if !job.request.may_reuse() {
            return Ok(artifact(self.engine.build(&order, &job.progress).await?, false));
        }
        let _turn = self.turns.take(&order.key).await;
        if let Some(image) = self.images.of_key(&job.request, &order.key).await? {
            job.progress.note("the registry has an image of the same inputs: it is reused");
            return Ok(artifact(ImageLocation::InRegistry(image), true));
        }
        if let Some(image) = self.engine.find(&order.key).await? {
            job.progress.note("the engine has an image of the same inputs: it is pushed");
            return Ok(artifact(ImageLocation::OnEngine(image), false));
        }
        Ok(artifact(self.engine.build(&order, &job.progress).await?, false))
    }
}
