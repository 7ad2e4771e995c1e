//! How the program ends: exit codes, as `sysexits.h` numbers them.

use std::fmt::Display;
use std::process::ExitCode;

use image_builder_actors::model::fault::{Kind, Reason};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    /// What was asked for could not be done, or not all of it.
    Failed = 1,
    /// The command line is wrong.
    Usage = 64,
    /// Something needed is not available.
    Unavailable = 69,
    /// A passing failure: start it again.
    Temporary = 75,
    /// The settings are wrong.
    Config = 78,
    /// Ctrl-C, as shells count it: 128 and the signal's number.
    Interrupted = 130,
    /// SIGTERM.
    Terminated = 143,
}

impl Exit {
    /// How a command ends whose build ended for this reason.
    pub fn of(reason: Reason) -> Self {
        match (reason.kind(), reason) {
            (Kind::User | Kind::Build | Kind::Withdrawn, _) => Exit::Failed,
            // Time alone mends it.
            (Kind::Capacity, Reason::RateLimited) => Exit::Temporary,
            (Kind::Capacity | Kind::Refused, _) => Exit::Unavailable,
            (Kind::Service | Kind::Crash, _) => Exit::Temporary,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why the worker could not start, in one line that says what to mend, and how the program ends.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct StartError {
    why: String,
    pub exit: Exit,
}

impl StartError {
    pub fn new(exit: Exit, why: impl Display) -> Self {
        Self { why: why.to_string(), exit }
    }

    /// Tells a person at a terminal, and returns how the program ends.
    pub fn told(&self) -> Exit {
        eprintln!("image-builder: {self}");
        self.exit
    }
}
