//! Pusher: from an image on the engine to a digest in the registry.

use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler};

use crate::delivery::artifacts::{Artifact, Images};
use crate::delivery::job::Job;
use crate::delivery::lease::Phase;
use crate::delivery::settlement::Settlement;
use crate::model::fault::StageName;
use crate::pipeline::messages::ImageBuilt;
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
        let ImageBuilt { mut job, artifact } = message;
        job.lease.set_phase(Phase::Waiting);
        job.progress.enter(StageName::Pusher, job.attempt());
        let span = job.progress.span();
        self.pool.run(span, self.clone().work(job, artifact));
    }
}

impl Pusher {
    async fn work(self, mut job: Job, artifact: Artifact) {
        let slot = match self.pool.slot_for(&job, StageName::Pusher, self.timeout).await {
            Ok(slot) => slot,
            Err(ended) => return self.settlement.end(job, ended).await,
        };
        job.lease.set_phase(Phase::Working(StageName::Pusher));
        fail::fail_point!("pusher::work");
        if self.settlement.is_repeated(&job.lease, &job.request.build_id, &job.history) {
            slot.done();
            return self.settlement.repeated(job.lease).await;
        }
        let started = Instant::now();
        let push = self.images.publish(&job.request, artifact, &job.progress);
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
}
