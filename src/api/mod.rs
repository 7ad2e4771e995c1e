//! What the worker shows over HTTP: `/livez`, `/readyz`, `/metrics`, the API of builds, [`v1`], and the
//! page for people, `page/`.
//!
//! [`router`] is where a route is added.

mod listen;
mod metrics;
mod page;
pub mod plans;
mod rate;
pub mod readiness;
mod server;
mod session;
pub mod v1;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use image_builder_actors::model::shutdown::{Shutdown, ShutdownPhase};
use image_builder_actors::telemetry::health::Health;
use image_builder_actors::telemetry::metrics::Metrics;
use tokio::net::TcpListener;

pub use self::listen::listen;
pub use self::page::path_of;
use self::server::Bounds;
use self::v1::{Api, Backend};
use crate::api::readiness::Readiness;

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
fn router(observed: Observed, backend: Backend) -> Router {
    let api = Arc::new(Api::new(backend, observed.clone()));
    Router::new()
        .route("/livez", get("ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(only_reading)
        .fallback(nothing_here)
        .with_state(observed)
        .merge(v1::router(api.clone()))
        .merge(page::router(api))
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
    (StatusCode::NOT_FOUND, "try /, /livez, /readyz, /metrics or /v1/openapi.json\n")
}

/// Serves the hooks of forges alone, until the program ends.
pub async fn serve_hooks(listener: TcpListener, observed: Observed, backend: Backend) {
    server::serve(listener, v1::router_of_hooks(backend, observed), Bounds::default()).await;
}

/// Serves until the program ends.
pub async fn serve(listener: TcpListener, observed: Observed, backend: Backend) {
    server::serve(listener, router(observed, backend), Bounds::default()).await;
}
