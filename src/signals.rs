//! What the operating system asks of the program.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, StartError};

/// SIGTERM and SIGINT, which mean the same: the first one asks for an orderly end, the second one
/// for an end at once.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on these signals do not end the program by themselves.
    ///
    /// # Errors
    ///
    /// The operating system refuses.
    pub fn listen() -> Result<Self, StartError> {
        let listen = |kind| {
            let refused = |error| format!("cannot listen for signals: {error}");
            signal(kind).map_err(|error| StartError::new(Exit::Unavailable, refused(error)))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
