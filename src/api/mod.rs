//! What the worker shows over HTTP: `/livez`, `/readyz`, `/metrics`.
//!
//! [`router`] is where a route is added.

mod listen;
mod metrics;
pub mod readiness;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use image_builder_actors::model::shutdown::{Shutdown, ShutdownPhase};
use image_builder_actors::telemetry::health::Health;
use image_builder_actors::telemetry::metrics::Metrics;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

pub use self::listen::listen;
use crate::api::readiness::Readiness;

/// Connections at once; further ones wait to be accepted. Far more than clients that mean well have, so
/// that those that never finish asking keep nobody out before their time is up.
const MOST_CONNECTIONS: usize = 512;
/// How long a client may take to send a request's head, waiting for its next request included.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// A connection takes no further requests after this.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
/// How long the last answer of a connection may take to be read.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What the endpoints show.
#[derive(Clone)]
pub struct Observed {
    pub readiness: Readiness,
    pub actors: Arc<[Arc<Health>]>,
    pub metrics: Metrics,
    pub shutdown: Shutdown,
}

impl Observed {
    fn draining(&self) -> bool {
        self.shutdown.phase() > ShutdownPhase::Working
    }
}

/// Every route that there is.
fn router(observed: Observed) -> Router {
    Router::new()
        .route("/livez", get("ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(only_reading)
        .fallback(nothing_here)
        .with_state(observed)
}

async fn readyz(State(observed): State<Observed>) -> impl IntoResponse {
    let (ready, report) = observed.readiness.report(observed.draining());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(CONTENT_TYPE, "application/json")], report)
}

async fn metrics(State(observed): State<Observed>) -> impl IntoResponse {
    let page = metrics::page(&observed);
    page.map(|page| ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], page)).map_err(|error| {
        tracing::error!(%error, "cannot show the metrics");
        (StatusCode::INTERNAL_SERVER_ERROR, "see the log\n")
    })
}

async fn only_reading() -> impl IntoResponse {
    (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")], "only GET and HEAD\n")
}

async fn nothing_here() -> impl IntoResponse {
    (StatusCode::NOT_FOUND, "try /livez, /readyz or /metrics\n")
}

/// Serves until the program ends.
pub async fn serve(listener: TcpListener, observed: Observed) {
    let router = router(observed);
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(room) = connections.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: others will be closed.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            answer(stream, router).await;
            drop(room);
        });
    }
}

/// Answers the requests of one connection, which ends in bounded time however slow the client is.
/// `axum::serve` would wait for a request's head for ever.
async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => Ok(ended),
        () = tokio::time::sleep(CONNECTION_LIMIT) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_ANSWER_LIMIT, connection).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended early"),
        Err(_) => tracing::debug!("an HTTP client was too slow"),
    }
}
