//! Pusher: from an image on the engine to a digest in the registry.

use crate::delivery::artifacts::{Artifact, Images, Ready};
use crate::delivery::job::Job;
use crate::delivery::settlement::Settlement;
use crate::model::fault::{Fault, Reason, StageName};
use crate::pipeline::pool::Slot;
use crate::pipeline::stage::Stage;

/// What the pusher works with.
#[derive(Clone)]
pub struct Pusher {
    pub images: Images,
    pub settlement: Settlement,
}

impl Stage for Pusher {
    const NAME: StageName = StageName::Pusher;
    const FAILPOINTS: [&'static str; 3] = ["pusher::handle", "pusher::work", "pusher::pushed"];
    type In = Artifact;
    /// `None` = nothing was pushed: an outcome of the build is claimed already.
    type Out = Option<Ready>;

    async fn run(
        &self,
        job: &mut Job,
        _: &Slot,
        artifact: Artifact,
    ) -> Result<Option<Ready>, Fault> {
        let request = &job.request;
        if self.settlement.is_repeated(&job.lease, &request.identity(), &job.history).await {
            return Ok(None);
        }
        self.images.publish(request, artifact, &job.progress).await.map(Some)
    }

    async fn hand_over(&self, job: Job, pushed: Option<Ready>) {
        match pushed {
            Some(ready) => self.settlement.ready(job, ready).await,
            None => self.settlement.repeated(job.lease).await,
        }
    }

    fn out_of_time(&self, seconds: f32) -> Fault {
        let message = format!("The image could not be pushed within {seconds:.0} s.");
        Fault::new(StageName::Pusher, Reason::Timeout, message)
    }
}
