//! Room to work: when the worker itself lacks something that each build needs, the listener pauses,
//! somebody looks whether there is room again, and the listener resumes. No try is counted meanwhile.
//!
//! What only some builds lack is a hold ([`super::holds`]) and pauses nobody.
//!
//! A pause ends for a moment now and then, so that requests that have waited for too long come into
//! sight and their users are told; the others go straight back to the queue.

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
/// How long a pause is interrupted for, to look through what waits: long enough to subscribe.
const INTERRUPTION: Duration = Duration::from_millis(500);

/// Whether there is room to work. Clones share it.
#[derive(Debug, Clone)]
pub struct Capacity {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    lack: Option<Lack>,
    /// Whether the pause is interrupted.
    interrupted: bool,
}

impl State {
    fn pauses(&self) -> bool {
        self.lack.is_some() && !self.interrupted
    }
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
        Self { state: Arc::new(watch::Sender::new(State::default())) }
    }
}

impl Capacity {
    /// Says that there is no room. The first reason stands until it is found gone.
    pub fn lacks(&self, reason: Reason, retry_after: Option<Duration>) {
        let begins = self.state.send_if_modified(|state| {
            let begins = state.lack.is_none();
            state.lack.get_or_insert(Lack { reason, retry_after });
            begins
        });
        if begins {
            tracing::warn!(reason = reason.as_str(), "no room to work: the listener pauses");
        }
    }

    /// What is lacking at the moment.
    pub fn lacking(&self) -> Option<Lack> {
        self.state.borrow().lack
    }

    /// Waits until the listener has to pause.
    pub async fn lost(&self) {
        // The sender is `self`, so it cannot be gone.
        let _ = self.state.subscribe().wait_for(State::pauses).await;
    }

    /// Waits until the listener need not pause.
    pub async fn found(&self) {
        let _ = self.state.subscribe().wait_for(|state| !state.pauses()).await;
    }

    /// Interrupts each pause for a moment after every such time, for as long as the worker works.
    pub async fn interrupt(self, every: Duration, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.reached(ShutdownPhase::Draining) => {}
            () = self.keep_interrupting(every) => {}
        }
    }

    async fn keep_interrupting(&self, every: Duration) {
        loop {
            self.lost().await;
            tokio::select! {
                () = self.found() => continue,
                () = tokio::time::sleep(every) => {}
            }
            self.state.send_modify(|state| state.interrupted = true);
            tokio::time::sleep(INTERRUPTION).await;
            self.state.send_modify(|state| state.interrupted = false);
        }
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
            self.state.send_modify(|state| state.lack = None);
        }
    }
}
