//! The worker's life: what it needs is put together, it works, it drains, it ends.

use std::io::ErrorKind;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use image_builder_actors::model::shutdown::{Shutdown, ShutdownPhase};
use image_builder_actors::parse::Rules;
use image_builder_actors::pipeline;
use image_builder_actors::pipeline::{Pipeline, PipelineSettings, StageSettings};
use image_builder_actors::ports::Route;
use image_builder_actors::scheduling::admission::Admission;
use image_builder_actors::telemetry::delivery_span::Observer;
use image_builder_actors::telemetry::metrics::Metrics;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::api;
use crate::api::Observed;
use crate::api::readiness::Readiness;
use crate::broker::rabbitmq::{ConnectError, ConnectionState, RabbitMq};
use crate::config::{Config, StageConfig};
use crate::data_dir::{DataDir, DataDirError};
use crate::engine::disk::inventory::Held;
use crate::exit::Exit;
use crate::memory;
use crate::telemetry::traces::Traces;
use crate::wiring;
use crate::wiring::Adapters;

/// What `/readyz` tells of.
const NEEDS: [&str; 4] = ["broker", "engine", "registry", "disk"];

/// How long handing back may take after the drain's time is up.
const HAND_BACK: Duration = Duration::from_secs(20);

/// Why the worker could not start. The message names what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("HTTP_ADDR: cannot listen on {address}: {error}")]
    Listen { address: String, error: std::io::Error },
    /// No address that this machine could listen on.
    #[error("HTTP_ADDR: {address} cannot be used: {error}")]
    HttpAddr { address: String, error: std::io::Error },
    #[error("{variable}: {error}")]
    Broker { variable: String, error: ConnectError },
    /// A queue or the exchange is there already and is of another kind: no matter of the address.
    #[error(transparent)]
    Queues(ConnectError),
    /// The machine lacks what an adapter needs.
    #[error("{0:#}")]
    Adapter(anyhow::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

impl StartError {
    fn exit(&self) -> Exit {
        match self {
            StartError::DataDir(DataDirError::InUse(_)) => Exit::Temporary,
            StartError::DataDir(DataDirError::Io { .. })
            | StartError::HttpAddr { .. }
            | StartError::Broker { .. }
            | StartError::Queues(_)
            | StartError::Adapter(_) => Exit::Config,
            StartError::Listen { .. } | StartError::Signals(_) => Exit::Unavailable,
        }
    }
}

/// Works until a signal or an escalation ends it. Must be called where an actix `System` runs.
pub async fn serve(config: Config) -> Exit {
    let ended = match Traces::start(config.traces.clone()) {
        Ok(traces) => {
            let observer = Observer::new(Metrics::new(), traces.tracer());
            let ended = work(config, observer).await;
            traces.close().await;
            ended
        }
        Err(error) => {
            Err(StartError::Adapter(error.context("the client of the traces' collector")))
        }
    };
    match ended {
        Ok(exit) => exit,
        Err(error) => {
            // Whatever RUST_LOG silences, the reason of the exit code is told.
            if tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!("cannot start: {error}");
            } else {
                eprintln!("image-builder: {error}");
            }
            error.exit()
        }
    }
}

async fn work(config: Config, observer: Observer) -> Result<Exit, StartError> {
    let mut signals = Signals::listen().map_err(StartError::Signals)?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let readiness = Readiness::of(&NEEDS);
    let health = pipeline::health();
    let listener = listen(&config.http_addr).await?;
    // Not always what was asked for: port 0 means any that is free.
    let http_addr = listener.local_addr().map_or(config.http_addr.clone(), |at| at.to_string());
    let observed = Observed {
        readiness: readiness.clone(),
        actors: health.clone(),
        metrics: observer.metrics.clone(),
    };
    tokio::spawn(api::serve(listener, observed));
    tokio::spawn(memory::give_back());

    let adapters = Adapters::assemble(&config, &data_dir).map_err(StartError::Adapter)?;
    adapters.watch(&readiness);
    let connected = watch_broker(&readiness);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        http = http_addr,
        data_dir = %data_dir.path().display(),
        "starting"
    );
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let broker = tokio::select! {
        broker = RabbitMq::connect(wiring::broker(&config)) => {
            Arc::new(broker.map_err(|error| refused(&config, error))?)
        }
        () = signals.next() => {
            tracing::info!("stopped before the broker was reached");
            return Ok(Exit::Ok);
        }
    };
    let _ = connected.set(broker.connected());

    let shutdown = Shutdown::default();
    let settings = settings(&config, &data_dir, adapters.registry_name.clone());
    let disk = adapters.disk();
    tokio::spawn(show_caches(disk.held(), observer.metrics.clone()));
    let ports = adapters.ports(broker.clone());
    let mut pipeline = Pipeline::start(ports, settings, &health, observer, shutdown.clone());
    tokio::spawn(hear_cancellations(broker.cancellations(), pipeline.admission.clone()));
    tokio::spawn(disk.run(pipeline.capacity.clone(), shutdown.clone()));
    tracing::info!("at work");

    let exit = tokio::select! {
        () = signals.next() => Exit::Ok,
        cause = pipeline.escalated() => {
            tracing::error!(cause, "an actor cannot be kept alive");
            Exit::Temporary
        }
    };
    tracing::info!(
        limit_seconds = config.drain_timeout.as_secs_f64(),
        "draining: no new work is taken"
    );
    shutdown.enter(ShutdownPhase::Draining);
    let exit = tokio::select! {
        () = signals.next() => {
            tracing::warn!("leaving at once: what is in hand goes back to its queues");
            return Ok(Exit::Temporary);
        }
        () = drain(&mut pipeline, &shutdown, config.drain_timeout) => exit,
    };
    broker.close().await;
    tracing::info!("ended");
    Ok(exit)
}

/// Listens at `host:port`.
async fn listen(address: &str) -> Result<TcpListener, StartError> {
    let unusable = |error| StartError::HttpAddr { address: address.to_owned(), error };
    let found: Vec<_> = tokio::net::lookup_host(address).await.map_err(unusable)?.collect();
    TcpListener::bind(&found[..]).await.map_err(|error| match error.kind() {
        ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied => unusable(error),
        _ => StartError::Listen { address: address.to_owned(), error },
    })
}

/// The broker will not be used, and whose fault that is.
fn refused(config: &Config, error: ConnectError) -> StartError {
    match error {
        ConnectError::Topology { .. } => StartError::Queues(error),
        ConnectError::Address { .. } | ConnectError::Refused { .. } => {
            StartError::Broker { variable: config.broker.uri_variable.clone(), error }
        }
    }
}

/// Finishes what is in hand while there is time, and hands back the rest.
async fn drain(pipeline: &mut Pipeline, shutdown: &Shutdown, limit: Duration) {
    if tokio::time::timeout(limit, pipeline.settled()).await.is_ok() {
        shutdown.enter(ShutdownPhase::HandingBack);
        return;
    }
    tracing::warn!("the drain's time is up: what is in hand is handed back");
    shutdown.enter(ShutdownPhase::HandingBack);
    if tokio::time::timeout(HAND_BACK, pipeline.settled()).await.is_err() {
        tracing::warn!("not all could be handed back: the broker delivers the rest again");
    }
}

fn settings(config: &Config, data_dir: &DataDir, registry_name: String) -> PipelineSettings {
    let stage = |stage: &StageConfig| StageSettings {
        concurrency: stage.concurrency,
        timeout: stage.timeout,
    };
    PipelineSettings {
        rules: Rules { forge_url: config.forge.url.clone(), limits: config.limits.clone() },
        workspaces: data_dir.workspaces(),
        registry_name,
        prefetch: config.listener.concurrency,
        job_timeout: config.listener.job_timeout,
        connector: stage(&config.connector),
        builder: stage(&config.builder),
        pusher: stage(&config.pusher),
        notifier: stage(&config.notifier),
        retry_concurrency: config.retry_concurrency,
        builds_per_user: config.builds_per_user,
        supersede: config.listener.supersede,
        retry: config.retry.clone(),
        dead_ttl: config.broker.dead_ttl,
        results: config.broker.topology.routing_key(Route::Result).is_some(),
        intensity: config.supervisor.clone(),
    }
}

/// Watches the broker from before there is one: until it is put into the cell, it is not ready.
fn watch_broker(readiness: &Readiness) -> Arc<OnceLock<watch::Receiver<ConnectionState>>> {
    let cell: Arc<OnceLock<watch::Receiver<ConnectionState>>> = Arc::default();
    let state = cell.clone();
    readiness.watch("broker", move || {
        let connected = state.get().is_some_and(|state| state.borrow().connected());
        async move { if connected { Ok(()) } else { Err("not connected".to_owned()) } }
    });
    cell
}

/// Shows how much the caches hold, whenever that was counted.
async fn show_caches(mut held: watch::Receiver<Held>, metrics: Metrics) {
    while held.changed().await.is_ok() {
        let bytes = held.borrow_and_update().total();
        metrics.cache_bytes(bytes);
    }
}

/// Withdraws the builds that somebody wants to stop, for as long as the broker is there.
async fn hear_cancellations(mut bodies: mpsc::Receiver<Vec<u8>>, admission: Admission) {
    #[derive(Deserialize)]
    struct Cancellation {
        #[serde(rename = "buildID")]
        build_id: String,
    }

    while let Some(body) = bodies.recv().await {
        match serde_json::from_slice::<Cancellation>(&body) {
            Ok(Cancellation { build_id }) => {
                tracing::info!(build_id, "asked to cancel");
                admission.cancel(&build_id);
            }
            Err(error) => tracing::warn!(%error, "a cancellation cannot be read"),
        }
    }
}

/// SIGTERM and SIGINT, which mean the same.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
