//! Where the worker is in its life: it works, it drains, it hands back.

use tokio::sync::watch;

/// A phase of the worker's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutdownPhase {
    Working,
    /// No new builds are taken; those in hand are finished.
    Draining,
    /// No builds are in hand any more; their outcomes are notified.
    Closing,
    /// What is still in hand is handed back to its queue.
    HandingBack,
}

/// The one place that knows the phase. Clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    phase: watch::Sender<ShutdownPhase>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { phase: watch::Sender::new(ShutdownPhase::Working) }
    }
}

impl Shutdown {
    /// Goes on to `phase`; never back.
    pub fn enter(&self, phase: ShutdownPhase) {
        self.phase.send_if_modified(|current| {
            let later = phase > *current;
            if later {
                *current = phase;
            }
            later
        });
    }

    pub fn phase(&self) -> ShutdownPhase {
        *self.phase.borrow()
    }

    /// Waits until the worker has come to `phase`.
    pub async fn reached(&self, phase: ShutdownPhase) {
        let mut receiver = self.phase.subscribe();
        // The sender is `self`, so it cannot be gone.
        let _ = receiver.wait_for(|current| *current >= phase).await;
    }
}
