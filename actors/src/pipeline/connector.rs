//! Connector: from a ref to a commit, and to its source tree in a workspace.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler};

use crate::delivery::job::Job;
use crate::delivery::job::StageError;
use crate::delivery::lease::Phase;
use crate::delivery::settlement::Settlement;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::workspace::Workspace;
use crate::pipeline::messages::{JobAccepted, SourceFetched};
use crate::pipeline::pool::{Pool, Slot};
use crate::ports::{FetchedSource, SourceConnector};
use crate::supervision::Mailbox;

/// What the connector works with. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    pub pool: Pool,
    pub settlement: Settlement,
    pub forge: Arc<dyn SourceConnector>,
    /// Where workspaces are made.
    pub workspaces: PathBuf,
    pub timeout: Duration,
    pub next: Mailbox<SourceFetched>,
}

impl Actor for Connector {
    type Context = Context<Self>;
}

impl Handler<JobAccepted> for Connector {
    type Result = ();

    fn handle(&mut self, JobAccepted { mut job }: JobAccepted, _: &mut Self::Context) {
        fail::fail_point!("connector::handle");
        job.lease.set_phase(Phase::Waiting);
        job.progress.enter(StageName::Connector, job.attempt());
        let span = job.progress.span();
        self.pool.run(span, self.clone().work(job));
    }
}

impl Connector {
    async fn work(self, mut job: Job) {
        let slot = match self.pool.slot_for(&job, StageName::Connector, self.timeout).await {
            Ok(slot) => slot,
            Err(ended) => return self.settlement.end(job, ended).await,
        };
        job.lease.set_phase(Phase::Working(StageName::Connector));
        fail::fail_point!("connector::work");
        let started = Instant::now();
        let fetched = self.fetch(&job, &slot).await;
        job.timings.connector += started.elapsed();
        match fetched {
            Ok(source) => {
                fail::fail_point!("connector::fetched");
                job.history.checkpoint.commit = Some(source.commit.clone());
                tracing::info!(
                    commit = source.commit,
                    version = source.version,
                    seconds = started.elapsed().as_millis() as f64 / 1000.0,
                    "source fetched"
                );
                slot.done();
                self.next.deliver(SourceFetched { job, source }).await;
            }
            Err(ended) => {
                slot.ended(&ended);
                self.settlement.end(job, ended).await;
            }
        }
    }

    async fn fetch(&self, job: &Job, slot: &Slot) -> Result<FetchedSource, StageError> {
        let workspace = Workspace::create(&self.workspaces).map_err(|error| {
            tracing::error!(path = %self.workspaces.display(), %error, "cannot make a workspace");
            let message = "The build service has no room to fetch the repository.";
            Fault::new(StageName::Connector, Reason::DiskLow, message)
        })?;
        let pinned = job.history.checkpoint.commit.as_deref();
        let fetch = self.forge.fetch(&job.request, pinned, workspace, &job.progress);
        slot.limit(job, StageName::Connector, self.timeout, fetch).await
    }
}
