//! Room to work: when there is none the listener pauses, somebody looks whether there is again, and
//! the listener resumes. No try is counted meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::model::fault::Reason;
use crate::model::shutdown::{Shutdown, ShutdownPhase};
use crate::ports::Probe;

/// Pause before the first look, by default; doubles up to the longest.
pub const FIRST_LOOK: Duration = Duration::from_millis(500);
const LONGEST_LOOK: Duration = Duration::from_secs(15);
/// A service that asks for more patience than this is looked at all the same.
const LONGEST_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// Whether there is room to work. Clones share it.
#[derive(Debug, Clone)]
pub struct Capacity {
    lacking: Arc<watch::Sender<Option<Lack>>>,
}

/// What there is no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    pub reason: Reason,
    /// How long the service asked to be left alone.
    pub retry_after: Option<Duration>,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { lacking: Arc::new(watch::Sender::new(None)) }
    }
}

impl Capacity {
    /// Says that there is no room. The first reason stands until it is found gone.
    pub fn lacks(&self, reason: Reason, retry_after: Option<Duration>) {
        let begins = self.lacking.send_if_modified(|lacking| {
            let begins = lacking.is_none();
            lacking.get_or_insert(Lack { reason, retry_after });
            begins
        });
        if begins {
            tracing::warn!(reason = reason.as_str(), "no room to work: the listener pauses");
        }
    }

    /// What is lacking at the moment.
    pub fn lacking(&self) -> Option<Lack> {
        *self.lacking.borrow()
    }

    /// Waits until something is lacking.
    pub async fn lost(&self) {
        // The sender is `self`, so it cannot be gone.
        let _ = self.lacking.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until nothing is lacking.
    pub async fn found(&self) {
        let _ = self.lacking.subscribe().wait_for(Option::is_none).await;
    }

    /// Looks after every loss until there is room again, for as long as the worker works; first after
    /// this pause, which then doubles.
    pub async fn watch(self, probe: Arc<dyn Probe>, first_look: Duration, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.reached(ShutdownPhase::Draining) => {}
            () = self.look(probe, first_look) => {}
        }
    }

    async fn look(&self, probe: Arc<dyn Probe>, first_look: Duration) {
        loop {
            self.lost().await;
            let Some(lack) = self.lacking() else { continue };
            let mut pause =
                lack.retry_after.map_or(first_look, |asked| asked.min(LONGEST_PATIENCE));
            loop {
                tokio::time::sleep(pause).await;
                match probe.probe(lack.reason).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::info!(
                            reason = lack.reason.as_str(),
                            error,
                            "still no room to work"
                        );
                    }
                }
                pause = (pause * 2).clamp(first_look, LONGEST_LOOK);
            }
            tracing::info!(
                reason = lack.reason.as_str(),
                "there is room to work again: the listener resumes"
            );
            self.lacking.send_replace(None);
        }
    }
}
