//! The commands, one module each, and what they share.

mod api;
pub mod build;
pub mod build_network;
pub mod cancel;
pub mod completions;
pub mod config;
pub mod dead_letters;
pub mod doctor;
mod faults;
pub mod health;
pub mod logs;
pub mod plan;
mod progress;
pub mod queue;
pub mod read_log;
pub mod serve;
pub mod status;
mod stop;
pub mod submit;
mod wanted;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use tempfile::TempDir;

use self::api::client::Client;
use self::dead_letters::over_http::OverHttp;
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

/// `image-builder dead`: over the service that is set, or the one on this machine if it answers, else straight to
/// the broker.
///
/// # Errors
///
/// Bad settings.
pub fn dead(command: dead_letters::Command) -> Result<Exit, ConfigErrors> {
    let environment = environment()?;
    let api = environment.api()?;
    wait_for(async {
        let client = Client::new(&api);
        let service = match &api.url {
            Some(_) => Some(OverHttp::of(client)),
            None => OverHttp::find(client).await,
        };
        if let Some(service) = service {
            return Ok(dead_letters::run(command, &service).await);
        }
        Ok(match wiring::dead_letters(&environment.config()?).await {
            Ok(letters) => dead_letters::run(command, &*letters.store).await,
            Err(error) => error.told(),
        })
    })
}

/// Where settings come from. To be called before there are other threads.
#[allow(unsafe_code, reason = "the environment is the process's; it says why it is sound")]
fn environment() -> Result<Environment, ConfigErrors> {
    let environment = Environment::read(Path::new(ENV_FILE))?;
    // SAFETY: every command calls this first, before it starts a runtime.
    unsafe { environment.give_to_libraries() };
    Ok(environment)
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

/// Does it until somebody presses Ctrl-C.
async fn until_interrupted(work: impl Future<Output = Exit>) -> Exit {
    tokio::select! {
        exit = work => exit,
        // Where that cannot be heard, the system ends the program.
        Ok(()) = tokio::signal::ctrl_c() => Exit::Interrupted,
    }
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
