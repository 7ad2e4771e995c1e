//! What the operating system asks of the program.

use std::io::IsTerminal;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, StartError};

/// SIGTERM and SIGINT, which mean the same: the first one asks for an orderly end, the second one
/// for an end at once.
///
/// So does SIGHUP where the log went to a terminal: the terminal is gone. Elsewhere it asks a daemon to read
/// its settings anew, which this one does when it is started: nothing happens.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    at_a_terminal: bool,
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
            hangup: listen(SignalKind::hangup())?,
            at_a_terminal: std::io::stderr().is_terminal(),
        })
    }

    /// Waits for the next one that asks for an end.
    pub async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    if self.at_a_terminal {
                        return;
                    }
                    tracing::info!("SIGHUP changes nothing: settings are read when the worker starts");
                }
            }
        }
    }
}
