//! `make demo`: the whole way of a build request, on real parts, for a person to watch.
//!
//! A worker process works on a queue of its own: the embedded one, or with `BROKER=rabbitmq` RabbitMQ's. Requests
//! go in over its API or over AMQP, as a platform would send them; what the two managers of that platform
//! get is received by stand-ins in this program. All else is real: the broker, the git server, the engine,
//! the registry.
//!
//! Every expectation that is not met ends the demo with exit code 1, and whatever it made is
//! cleared away in any case, Ctrl-C included.

mod containers;
mod managers;
mod repositories;
mod requests;
mod screen;
mod story;
mod watch;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::screen::{Colour, Screen};
use crate::story::Stage;

/// What the person or the Makefile asked for.
pub(crate) struct Wishes {
    /// A repository on GitHub in place of the demo's own ones.
    pub(crate) repository: Option<String>,
    /// Credential for it; goes into the request and nowhere else.
    pub(crate) token: Option<String>,
    /// Whether requests go over RabbitMQ, and not to the worker's own queue.
    pub(crate) rabbitmq: bool,
    /// The base image that stands in for the one of nixpacks, where that cannot be pulled.
    pub(crate) stand_in: Option<String>,
}

impl Wishes {
    fn of_environment() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            repository: set("REPO"),
            token: set("TOKEN"),
            rabbitmq: set("BROKER").is_some_and(|broker| broker == "rabbitmq"),
            stand_in: set("DEMO_STAND_IN"),
        }
    }
}

/// A directory of this run's own, below the target directory.
fn directory(run: &str) -> Result<PathBuf> {
    let program = std::env::current_exe().context("this program's own path")?;
    let target = program.ancestors().nth(3).unwrap_or(Path::new("target"));
    let directory = target.join("demo").join(run);
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

#[tokio::main]
async fn main() -> ExitCode {
    let screen = Screen::new();
    match demo(&screen).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.line(Colour::Red, &format!("✗ the demo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn demo(screen: &Screen) -> Result<()> {
    // Two providers end up in the tree; one has to be chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let started = Instant::now();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let run = format!("{:06x}", uuid::Uuid::new_v4().as_u128() & 0xff_ffff);
    let mut stage = Stage::new(screen, Wishes::of_environment(), &run, directory(&run)?);

    let played = tokio::select! {
        played = stage.play() => played,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    screen.line(Colour::Dim, "Stopping the worker, and clearing away what the demo made.");
    let cleared = stage.clear().await;

    screen.heading("Summary");
    for fact in stage.facts() {
        screen.line(Colour::Green, &format!("✓ {fact}"));
    }
    played?;
    cleared?;
    screen.line(Colour::Plain, &format!("All in {:.0} s.", started.elapsed().as_secs_f64()));
    Ok(())
}
