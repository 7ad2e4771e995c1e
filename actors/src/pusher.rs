//! Pusher: from an image on the engine to a digest in the registry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler};

use crate::desk::{Desk, Ready};
use crate::fault::{Fault, Stage};
use crate::job::Job;
use crate::messages::{Built, ImageBuilt};
use crate::pool::{Ended, Pool};
use crate::ports::Registry;
use crate::reference::ImageReference;

/// What the pusher works with. Cheap to clone.
#[derive(Clone)]
pub struct Pusher {
    pub pool: Pool,
    pub desk: Desk,
    pub registry: Arc<dyn Registry>,
    /// The registry's name in references.
    pub registry_name: String,
    pub timeout: Duration,
}

impl Actor for Pusher {
    type Context = Context<Self>;
}

crate::stoppable!(Pusher);

impl Handler<ImageBuilt> for Pusher {
    type Result = ();

    fn handle(&mut self, message: ImageBuilt, _: &mut Self::Context) {
        fail::fail_point!("pusher::handle");
        let ImageBuilt { mut job, commit, built } = message;
        job.progress.enter(Stage::Pusher, job.attempt());
        let span = job.progress.span();
        self.pool.run(span, self.clone().work(job, commit, built));
    }
}

impl Pusher {
    async fn work(self, mut job: Job, commit: String, built: Built) {
        let slot = match self.pool.slot(Some(job.patience(self.timeout))).await {
            Ok(slot) => slot,
            Err(ended) => return self.desk.end(job, ended).await,
        };
        job.lease.working(Stage::Pusher);
        fail::fail_point!("pusher::work");
        let started = Instant::now();
        let push = self.push(&job, commit, built);
        let pushed = slot.limit(Stage::Pusher, self.timeout, job.deadline, push).await;
        job.timings.pusher += started.elapsed();
        match pushed {
            Ok(ready) => {
                slot.done();
                self.desk.ready(job, ready).await;
            }
            Err(ended) => {
                if let Ended::Fault(fault) = &ended {
                    slot.failed(fault.reason);
                }
                self.desk.end(job, ended).await;
            }
        }
    }

    async fn push(&self, job: &Job, commit: String, built: Built) -> Result<Ready, Fault> {
        let reference = ImageReference::for_build(
            &self.registry_name,
            &job.request.user_id,
            &job.request.application_id,
            &commit,
        );
        let (image, builder, reused) = match built {
            Built::Here(built) => {
                let tags = [built.key.tag()];
                let image = self.registry.push(&built, &reference, &tags, &job.progress).await?;
                (image, built.builder, false)
            }
            Built::Reused { image, builder } => {
                self.registry.tag(&reference, &image).await?;
                (image, builder, true)
            }
        };
        Ok(Ready { image, reference, commit, builder, reused })
    }
}
