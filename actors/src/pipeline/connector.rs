//! Connector: from a ref to a commit, and to its source tree in a workspace.

use std::path::PathBuf;
use std::sync::Arc;

use crate::delivery::job::Job;
use crate::model::fault::{Fault, Kind, Reason, StageName};
use crate::model::workspace::Workspace;
use crate::pipeline::pool::Slot;
use crate::pipeline::stage::{Stage, Work};
use crate::ports::{Credentials, FetchedSource, SourceConnector};
use crate::scheduling::holds::Holds;
use crate::supervision::Mailbox;

/// What the connector works with.
#[derive(Clone)]
pub struct Connector {
    pub forge: Arc<dyn SourceConnector>,
    /// Asked for a token where a request names one.
    pub credentials: Arc<dyn Credentials>,
    /// Told when what was asked of the forge went well.
    pub holds: Holds,
    /// Where workspaces are made.
    pub workspaces: PathBuf,
    pub next: Mailbox<Work<FetchedSource>>,
}

impl Stage for Connector {
    const NAME: StageName = StageName::Connector;
    const FAILPOINTS: [&'static str; 3] =
        ["connector::handle", "connector::work", "connector::fetched"];
    type In = ();
    type Out = FetchedSource;

    async fn run(&self, job: &mut Job, _: &Slot, (): ()) -> Result<FetchedSource, Fault> {
        let workspace = Workspace::create(&self.workspaces).map_err(|error| {
            tracing::error!(path = %self.workspaces.display(), %error, "cannot make a workspace");
            let message = "The build service has no room to fetch the repository.";
            Fault::new(StageName::Connector, Reason::DiskLow, message)
        })?;
        if let Some(reference) = &job.request.token_ref {
            let token = self.credentials.token(&job.request, reference).await?;
            job.progress.keep_secret(token.clone());
            job.request.token = Some(token);
        }
        let pinned = job.history.checkpoint.commit.as_deref();
        let fetched = self.forge.fetch(&job.request, pinned, workspace, &job.progress).await;
        if !fetched.as_ref().is_err_and(|fault| fault.kind() == Kind::Capacity) {
            self.holds.release(&self.forge.scopes(&job.request, pinned));
        }
        let source = fetched?;
        job.history.checkpoint.commit = Some(source.commit.clone());
        Ok(source)
    }

    async fn hand_over(&self, job: Job, source: FetchedSource) {
        tracing::info!(
            commit = source.commit,
            version = source.version,
            seconds = job.timings.connector.as_millis() as f64 / 1000.0,
            "source fetched"
        );
        self.next.deliver(Work { job, input: source }).await;
    }

    fn out_of_time(&self, seconds: f32) -> Fault {
        let message = format!("The repository could not be fetched within {seconds:.0} s.");
        Fault::new(StageName::Connector, Reason::Timeout, message)
    }
}
