//! Builder: from a source tree to an image.

use std::pin::pin;
use std::sync::Arc;

use crate::delivery::artifacts::{Artifact, Images, labels};
use crate::delivery::job::Job;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::history::Planned;
use crate::model::image::{BuildKey, ImageLocation};
use crate::pipeline::pool::Slot;
use crate::pipeline::stage::{Stage, Work};
use crate::ports::{BuildOrder, FetchedSource, ImageBuilder, Planner};
use crate::scheduling::keyed_locks::KeyedLocks;
use crate::supervision::Mailbox;

/// What the builder works with.
#[derive(Clone)]
pub struct Builder {
    pub planner: Arc<dyn Planner>,
    pub engine: Arc<dyn ImageBuilder>,
    /// Asked for an image of the same inputs before anything is built.
    pub images: Images,
    /// Equal builds take turns: the first builds, those that waited, without a builder, find its image on the engine. A
    /// first one that fails costs nobody else anything: the next one builds. For one that neither waited
    /// nor was tried before nobody looks there.
    pub equal: KeyedLocks<BuildKey>,
    pub next: Mailbox<Work<Artifact>>,
}

impl Stage for Builder {
    const NAME: StageName = StageName::Builder;
    const FAILPOINTS: [&'static str; 3] = ["builder::handle", "builder::work", "builder::built"];
    type In = FetchedSource;
    type Out = Artifact;

    async fn run(
        &self,
        job: &mut Job,
        slot: &Slot,
        source: FetchedSource,
    ) -> Result<Artifact, Fault> {
        job.ticket.building();
        job.history.checkpoint.planned = None;
        let (planned, order) = self.plan(job, &source).await?;
        job.history.checkpoint.planned = Some(planned.clone());
        let build = self.build(job, slot, &order, &source.commit);
        let Found { location, reused, labelled } = telling_when_it_stores(job, build).await?;
        if let ImageLocation::OnEngine(image) = &location {
            job.history.checkpoint.image = Some(image.clone());
        }
        Ok(Artifact { commit: source.commit, planned, location, reused, labelled })
    }

    async fn hand_over(&self, job: Job, artifact: Artifact) {
        let seconds = job.timings.builder.as_millis() as f64 / 1000.0;
        tracing::info!(seconds, "image built");
        self.next.deliver(Work { job, input: artifact }).await;
    }

    fn out_of_time(&self, seconds: f32) -> Fault {
        let message = format!("The build took longer than {seconds:.0} s and was stopped.");
        Fault::new(StageName::Builder, Reason::BuildTimeout, message)
    }
}

impl Builder {
    /// What is to be built, and what the image will be known by.
    async fn plan(
        &self,
        job: &Job,
        source: &FetchedSource,
    ) -> Result<(Planned, BuildOrder), Fault> {
        let plan = self.planner.plan(source, &job.request, &job.progress).await?;
        let inputs = self.engine.inputs(&plan).await?;
        let seen = inputs.as_deref().unwrap_or(&source.commit);
        let key = BuildKey::of(&job.request, seen, &plan.fingerprint);
        tracing::info!(builder = plan.builder.as_str(), key = key.as_str(), "build planned");
        let planned = Planned { key: key.clone(), builder: plan.builder };
        let (build_id, labels) = (job.request.build_id.clone(), labels(source, &plan, &key));
        let reference = self.images.reference(&job.request, &source.commit);
        Ok((planned, BuildOrder { build_id, labels, plan, key, reference }))
    }

    /// Builds what is not there yet.
    async fn build(
        &self,
        job: &Job,
        slot: &Slot,
        order: &BuildOrder,
        commit: &str,
    ) -> Result<Found, Fault> {
        let built = |location| Found { location, reused: false, labelled: true };
        if !job.request.may_reuse() {
            return self.engine.build(order, &job.progress).await.map(built);
        }
        let turn = match self.equal.try_lock(order.key.clone()) {
            Ok(turn) => turn,
            Err(wait) => {
                job.progress.note("a build of the same inputs is under way: waiting for it");
                job.ticket.aside();
                let turn = slot.aside(async {
                    let turn = wait.turn().await;
                    job.ticket.enter(Self::NAME);
                    turn
                });
                let turn = turn.await;
                job.ticket.building();
                turn
            }
        };
        if let Some((image, built_of)) = self.images.of_key(&job.request, &order.key).await? {
            job.progress.note("the registry has an image of the same inputs: it is reused");
            let location = ImageLocation::InRegistry(image);
            let labelled = built_of.is_some_and(|built_of| built_of == commit);
            return Ok(Found { location, reused: true, labelled });
        }
        // An engine with thousands of images takes longer to look for one than to build from its cache.
        let may_be_there = turn.waited || !job.lease.is_first();
        if may_be_there && let Some(image) = self.engine.find(&order.key, &order.reference).await? {
            job.progress.note("the engine has an image of the same inputs: it is pushed");
            let location = ImageLocation::OnEngine(image);
            return Ok(Found { location, reused: false, labelled: false });
        }
        self.engine.build(order, &job.progress).await.map(built)
    }
}

/// Gives the job's builder to the next one, which is fetched meanwhile, as soon as only the image is left to be stored.
async fn telling_when_it_stores<T>(job: &Job, build: impl Future<Output = T>) -> T {
    let mut build = pin!(build);
    tokio::select! {
        biased;
        built = &mut build => built,
        () = job.progress.until_storing() => {
            job.ticket.storing();
            build.await
        }
    }
}

/// Where the image is, and how it came there.
struct Found {
    location: ImageLocation,
    /// Whether it stands in for a build.
    reused: bool,
    /// Whether its labels are known to name the commit.
    labelled: bool,
}
