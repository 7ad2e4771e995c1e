//! The command line.

use std::path::Path;
use std::process::ExitCode;

use actix_rt::System;
use clap::{Parser, Subcommand};
use image_builder::cli::dead_letters;
use image_builder::cli::serve;
use image_builder::config;
use image_builder::config::{Config, ConfigErrors, Environment};
use image_builder::exit::Exit;
use image_builder::memory;
use image_builder::planner;
use image_builder::telemetry;
use image_builder::wiring;

/// Builds container images from Git repositories: takes build requests from a RabbitMQ queue, clones,
/// builds on a container engine, pushes to a registry, and tells the platform.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the worker.
    ///
    /// Settings come from the environment and from config/.env; config/.env.example and the README list
    /// them all. The first SIGTERM or SIGINT drains: no new work is taken, what is in hand is finished
    /// until DRAIN_TIMEOUT, and the rest goes back to the queue. A second one leaves at once.
    ///
    /// Exit codes: 0 drained; 64 usage; 69 something needed is not available; 75 temporary failure,
    /// start it again; 78 bad settings.
    Serve,
    #[command(subcommand)]
    Dead(dead_letters::Command),
}

fn main() -> ExitCode {
    // Not a subcommand: nothing of it is for people.
    if let Some(code) = planner::child::run() {
        return code;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(help) => {
            // Clap knows which stream a text belongs to; only its exit code is not ours.
            let _ = help.print();
            return if help.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    match arguments.command {
        Command::Serve => serve(),
        Command::Dead(command) => dead(command),
    }
}

fn serve() -> ExitCode {
    memory::set_up();
    // The points that a test names in FAILPOINTS, until the program ends.
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    #[cfg(feature = "failpoints")]
    image_builder::kill_points::prepare();
    let config = match settings() {
        Ok(config) => config,
        Err(errors) => return refuse(&errors),
    };
    choose_tls();
    let system = System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("the system gives threads to a program that starts")
    });
    system.block_on(serve::serve(config)).into()
}

/// The commands print for people: they log nothing.
fn dead(command: dead_letters::Command) -> ExitCode {
    let config =
        Environment::read(Path::new(config::ENV_FILE)).and_then(|environment| environment.config());
    let broker = match config {
        Ok(config) => wiring::broker(&config),
        Err(errors) => return refuse(&errors),
    };
    choose_tls();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the system gives threads to a program that starts");
    runtime.block_on(dead_letters::run(command, &broker)).into()
}

fn refuse(errors: &ConfigErrors) -> ExitCode {
    for line in &errors.0 {
        eprintln!("image-builder: {line}");
    }
    Exit::Config.into()
}

/// Two providers end up in the tree; which one speaks TLS is not left to chance.
fn choose_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The settings, with logging started as they say.
fn settings() -> Result<Config, ConfigErrors> {
    let config = Environment::read(Path::new(config::ENV_FILE))?.config()?;
    telemetry::start(config.telemetry.format, config.telemetry.filter.clone());
    Ok(config)
}
