//! Pusher: from an image on the engine to a digest in the registry.

use crate::delivery::artifacts::{Artifact, Images, Ready};
use crate::delivery::job::Job;
use crate::delivery::settlement::Settlement;
use crate::model::fault::{Fault, Reason, StageName};
use crate::pipeline::stage::Stage;

/// What the pusher works with.
#[derive(Clone)]
pub struct Pusher {
    pub images: Images,
    pub settlement: Settlement,
}

/// What became of a job at the pusher.
pub enum Pushed {
    Ready(Ready),
    /// Nothing: an outcome of its build is told already.
    Repeated,
}

impl Stage for Pusher {
    const NAME: StageName = StageName::Pusher;
    const FAILPOINTS: [&'static str; 3] = ["pusher::handle", "pusher::work", "pusher::pushed"];
    type In = Artifact;
    type Out = Pushed;

    async fn run(&self, job: &mut Job, artifact: Artifact) -> Result<Pushed, Fault> {
        let request = &job.request;
        if self.settlement.is_repeated(&job.lease, &request.build_id, &job.history).await {
            return Ok(Pushed::Repeated);
        }
        let ready = self.images.publish(request, artifact, &job.progress).await;
        ready.map(Pushed::Ready)
    }

    async fn hand_over(&self, job: Job, pushed: Pushed) {
        match pushed {
            Pushed::Ready(ready) => self.settlement.ready(job, ready).await,
            Pushed::Repeated => self.settlement.repeated(job.lease).await,
        }
    }

    fn out_of_time(&self, seconds: f32) -> Fault {
        let message = format!("The image could not be pushed within {seconds:.0} s.");
        Fault::new(StageName::Pusher, Reason::Timeout, message)
    }
}
