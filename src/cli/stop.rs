//! Ctrl-C: who asks a command to end that works for a person.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, StartError};

/// SIGINT and SIGTERM: the first one stops the work in order, and a second one leaves at once.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// From now on these signals do not end the program by themselves.
    ///
    /// # Errors
    ///
    /// The operating system refuses.
    pub(super) fn listen() -> Result<Self, StartError> {
        let listen = |kind| {
            let refused = |error| format!("cannot listen for signals: {error}");
            signal(kind).map_err(|error| StartError::new(Exit::Unavailable, refused(error)))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one, and says how the program ends because of it.
    pub(super) async fn asked(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
        }
    }
}
