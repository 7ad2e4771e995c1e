//! Pusher: from an image on the engine to a digest in the registry.

use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler};

use crate::delivery::artifacts::{Images, Ready};
use crate::delivery::job::Job;
use crate::delivery::lease::Phase;
use crate::delivery::settlement::Settlement;
use crate::model::fault::{Fault, StageName};
use crate::pipeline::messages::{Built, ImageBuilt};
use crate::pipeline::pool::Pool;

/// What the pusher works with. Cheap to clone.
#[derive(Clone)]
pub struct Pusher {
    pub pool: Pool,
    pub settlement: Settlement,
    pub images: Images,
    pub timeout: Duration,
}

impl Actor for Pusher {
    type Context = Context<Self>;
}

crate::supervised!(Pusher);

impl Handler<ImageBuilt> for Pusher {
    type Result = ();

    fn handle(&mut self, message: ImageBuilt, _: &mut Self::Context) {
        fail::fail_point!("pusher::handle");
        let ImageBuilt { mut job, commit, built } = message;
        job.lease.set_phase(Phase::Waiting);
        job.progress.enter(StageName::Pusher, job.attempt());
        let span = job.progress.span();
        self.pool.run(span, self.clone().work(job, commit, built));
    }
}

impl Pusher {
    async fn work(self, mut job: Job, commit: String, built: Built) {
        let slot = match self.pool.slot_for(&job, StageName::Pusher, self.timeout).await {
            Ok(slot) => slot,
            Err(ended) => return self.settlement.end(job, ended).await,
        };
        job.lease.set_phase(Phase::Working(StageName::Pusher));
        fail::fail_point!("pusher::work");
        if self.settlement.is_repeated(&job.lease, &job.request.build_id, &job.history).await {
            slot.done();
            return self.settlement.repeated(job.lease).await;
        }
        let started = Instant::now();
        let push = self.push(&job, commit, built);
        let pushed = slot.limit(&job, StageName::Pusher, self.timeout, push).await;
        job.timings.pusher += started.elapsed();
        match pushed {
            Ok(ready) => {
                fail::fail_point!("pusher::pushed");
                slot.done();
                self.settlement.ready(job, ready).await;
            }
            Err(ended) => {
                slot.ended(&ended);
                self.settlement.end(job, ended).await;
            }
        }
    }

    async fn push(&self, job: &Job, commit: String, built: Built) -> Result<Ready, Fault> {
        let request = &job.request;
        match built {
            Built::Here(built) => self.images.push(request, commit, built, &job.progress).await,
            Built::Reused { image, builder } => {
                self.images.reuse(request, commit, image, builder).await
            }
        }
    }
}
