//! `image-builder serve`: the worker's life, from its settings to its exit code.

use std::sync::Arc;
use std::time::Duration;

use actix_rt::System;
use clap::Args;
use image_builder_actors::model::shutdown::ShutdownPhase;
use image_builder_actors::telemetry::delivery_span::Observer;
use image_builder_actors::telemetry::health::Health;
use image_builder_actors::telemetry::metrics::Metrics;

use super::doctor::at_start;
use super::{choose_tls, environment};
use crate::api::readiness::Readiness;
use crate::config::{Config, ConfigErrors};
use crate::exit::{Exit, StartError};
use crate::memory;
use crate::signals::Signals;
use crate::telemetry;
use crate::telemetry::stream::{LogStream, tell_of_dropped_lines};
use crate::telemetry::traces::Traces;
use crate::wiring::{NETWORK, Worker};

/// How long handing back may take after the drain's time is up.
const HAND_BACK: Duration = Duration::from_secs(20);

/// How long the last that happened to builds may take to be stored.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Run the worker.
///
/// Settings come from the environment and from config/.env; `image-builder config --example` and
/// docs/settings.md list them all. None has to be set: without RABBITMQ_URI requests come over HTTP alone, and wait in
/// a queue in DATA_DIR.
///
/// The first SIGTERM or SIGINT drains: no new work is taken, what is in hand is finished until
/// DRAIN_TIMEOUT, and the rest goes back to the queue. A second one leaves at once. SIGHUP counts as one
/// where the log goes to a terminal, which is gone then; elsewhere it is ignored.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0   drained
  1   a fault of the program itself
  64  usage
  69  something needed is not available
  75  temporary failure: start it again
  78  bad settings, one line each

Examples:
  image-builder serve
  RABBITMQ_URI=amqp://guest:guest@localhost:5672/%2f image-builder serve

`image-builder config --example` lists the settings, and docs/settings.md explains them.")]
pub struct Arguments {}

/// # Errors
///
/// Bad settings.
pub fn run() -> Result<Exit, ConfigErrors> {
    memory::set_up();
    let environment = environment()?;
    // The points that a test names in FAILPOINTS, until the program ends.
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    #[cfg(feature = "failpoints")]
    crate::kill_points::prepare();

    let config = environment.config()?;
    let log = telemetry::start(config.telemetry.format, config.telemetry.filter.clone());
    choose_tls();
    let system = System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("the system gives threads to a program that starts")
    });
    Ok(system.block_on(serve(&config, &log)))
}

/// Works until a signal or an escalation ends it, and says why where it could not.
async fn serve(config: &Config, log: &LogStream) -> Exit {
    traced(config).await.unwrap_or_else(|error| {
        // Whatever RUST_LOG silences, the reason of the exit code is told.
        if tracing::enabled!(tracing::Level::ERROR) {
            tracing::error!("cannot start: {error}");
        } else {
            log.line(&format!("image-builder: {error}"));
        }
        error.exit
    })
}

/// The worker's life, with traces of it sent to their end.
async fn traced(config: &Config) -> Result<Exit, StartError> {
    let traces = Traces::start(config.telemetry.traces.clone()).map_err(|error| {
        StartError::new(Exit::Config, format!("the client of the traces' collector: {error:#}"))
    })?;
    let observer = Observer::new(Metrics::new(), traces.tracer());
    let ended = live(config, observer).await;
    traces.close().await;
    ended
}

/// Starts, works until it is told to end, and drains.
async fn live(config: &Config, observer: Observer) -> Result<Exit, StartError> {
    let mut signals = Signals::listen()?;
    tokio::spawn(memory::give_back());
    tokio::spawn(tell_of_dropped_lines());
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let mut worker = tokio::select! {
        worker = Worker::start(config, observer) => worker?,
        () = signals.next() => {
            tracing::info!("stopped before the broker was reached");
            return Ok(Exit::Ok);
        }
    };
    tracing::info!("at work");
    if config.keeps_network_apart() {
        watch_network(config.clone(), &worker.readiness);
    }

    let exit = tokio::select! {
        () = signals.next() => Exit::Ok,
        cause = worker.pipeline.escalated() => {
            tracing::error!(cause, "an actor cannot be kept alive");
            Exit::Temporary
        }
    };

    let limit = config.drain_timeout;
    tracing::info!(
        limit_seconds = limit.as_secs_f64(),
        in_hand = in_hand(&worker.health),
        "draining: no new work is taken, and what is in hand is finished; a second signal leaves at once"
    );
    tokio::select! {
        () = drain(&mut worker, limit) => {}
        () = signals.next() => {
            tracing::warn!("leaving at once: what is in hand goes back to its queues");
            return Ok(Exit::Temporary);
        }
    }
    worker.history.flush(LAST_WORDS).await;
    worker.broker.close().await;
    tracing::info!("ended");
    Ok(exit)
}

/// Looks once at what build steps reach, and tells of it for as long as the worker works.
fn watch_network(config: Config, readiness: &Readiness) {
    let readiness = readiness.clone();
    tokio::spawn(async move {
        let found = at_start::look(&config).await;
        readiness.watch(NETWORK, move || std::future::ready(found.clone()));
    });
}

/// What each actor works on, and what waits for it, in words.
fn in_hand(actors: &[Arc<Health>]) -> String {
    let busy = actors.iter().map(|actor| (actor.name(), actor.snapshot()));
    let busy = busy.filter(|(_, now)| now.in_hand + now.waiting > 0).map(|(name, now)| {
        let waiting =
            if now.waiting == 0 { String::new() } else { format!(" (+{} waiting)", now.waiting) };
        format!("{name} {}{waiting}", now.in_hand)
    });
    let busy = busy.collect::<Vec<_>>().join(", ");
    if busy.is_empty() { "nothing".to_owned() } else { busy }
}

/// Finishes what is in hand while there is time, and hands back the rest.
async fn drain(worker: &mut Worker, limit: Duration) {
    worker.shutdown.enter(ShutdownPhase::Draining);
    if tokio::time::timeout(limit, worker.pipeline.settled()).await.is_ok() {
        worker.shutdown.enter(ShutdownPhase::HandingBack);
        return;
    }
    tracing::warn!("the drain's time is up: what is in hand is handed back");
    worker.shutdown.enter(ShutdownPhase::HandingBack);
    if tokio::time::timeout(HAND_BACK, worker.pipeline.settled()).await.is_err() {
        tracing::warn!("not all could be handed back: the broker delivers the rest again");
    }
}
