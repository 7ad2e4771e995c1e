//! What the actors tell each other: named for the state that the thing has reached. Each owns its
//! job, so whoever holds the message is responsible for the delivery and for the workspace.

use actix::Message;

use crate::delivery::artifacts::Artifact;
use crate::delivery::job::Job;
use crate::delivery::lease::{Lease, Leased};
use crate::ports::FetchedSource;

/// A request was read and found good.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct JobAccepted {
    pub job: Job,
}

/// A job's source tree is in its workspace.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct SourceFetched {
    pub job: Job,
    pub source: FetchedSource,
}

/// A job's image is there to be pushed, or already in the registry.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ImageBuilt {
    pub job: Job,
    pub artifact: Artifact,
}

macro_rules! leased {
    ($($message:ty)*) => {
        $(impl Leased for $message {
            fn lease(&self) -> &Lease {
                &self.job.lease
            }
        })*
    };
}

leased!(JobAccepted SourceFetched ImageBuilt);
