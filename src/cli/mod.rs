//! The commands, one module each, and what they share.

pub mod build;
pub mod completions;
pub mod config;
pub mod dead_letters;
pub mod doctor;
mod faults;
pub mod health;
pub mod plan;
mod progress;
pub mod queue;
pub mod read_log;
pub mod serve;
mod stop;
mod wanted;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use tempfile::TempDir;

use crate::config::{ConfigErrors, ENV_FILE, Environment};
use crate::exit::{Exit, StartError};
use crate::wiring;

/// How a command ended. Bad settings are all told at once, for every command in the same way.
pub fn ended(exit: Result<Exit, ConfigErrors>) -> ExitCode {
    let exit = exit.unwrap_or_else(|errors| {
        for line in &errors.0 {
            eprintln!("image-builder: {line}");
        }
        Exit::Config
    });
    exit.into()
}

/// `image-builder dead`.
///
/// # Errors
///
/// Bad settings.
pub fn dead(command: dead_letters::Command) -> Result<Exit, ConfigErrors> {
    let letters = wiring::dead_letters(&environment()?.config()?);
    Ok(wait_for(dead_letters::run(command, &letters)))
}

/// Where settings come from.
fn environment() -> Result<Environment, ConfigErrors> {
    Environment::read(Path::new(ENV_FILE))
}

/// A folder for what a command fetches; it goes with the value.
fn temporary_folder() -> Result<TempDir, StartError> {
    let folder = tempfile::Builder::new().prefix("image-builder-").tempdir();
    folder.map_err(|error| {
        let place = std::env::temp_dir();
        let why = format!("cannot make a folder in {} (TMPDIR): {error}", place.display());
        StartError::new(Exit::Unavailable, why)
    })
}

/// Does the work of a command that prints for people, and logs nothing.
fn wait_for<T>(work: impl Future<Output = T>) -> T {
    choose_tls();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the system gives threads to a program that starts");
    runtime.block_on(work)
}

/// Two providers end up in the tree; which one speaks TLS is not left to chance.
fn choose_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Writes to the standard output stream.
fn print(text: &str) -> Exit {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Exit::Ok,
        // Whoever read us has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => {
            eprintln!("image-builder: cannot write: {error}");
            Exit::Failed
        }
    }
}
