//! What the worker's actors do.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use image_builder_actors::telemetry::health::Health;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Api, json};

/// The workers that this one knows: itself.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Workers {
    workers: Vec<Worker>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Worker {
    /// As attempts name it.
    name: String,
    version: &'static str,
    /// Whether it takes work, and reaches all that it needs.
    ready: bool,
    /// Whether it takes no new work any more.
    draining: bool,
    actors: Vec<Actor>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Actor {
    /// `listener`, `connector`, `builder`, `pusher`, `notifier` or `retry`.
    name: &'static str,
    /// `starting`, `running`, `restarting` or `stopped`.
    state: &'static str,
    /// Jobs that it works on.
    in_hand: usize,
    /// Jobs that wait for it.
    waiting: usize,
    /// Jobs that it did well.
    done: u64,
    /// Jobs that failed with it.
    failed: u64,
    /// How often it died.
    restarts: u64,
    /// Its newest failure or death.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_fault: Option<String>,
    /// Age of its oldest job in hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_seconds: Option<f64>,
}

impl Actor {
    fn of(health: &Health) -> Self {
        let now = health.snapshot();
        Self {
            name: health.name().as_str(),
            state: now.state.as_str(),
            in_hand: now.in_hand,
            waiting: now.waiting,
            done: now.done,
            failed: now.failed.values().sum(),
            restarts: now.restarts(),
            last_fault: now.last_fault,
            oldest_seconds: now.oldest.map(|age| age.as_secs_f64()),
        }
    }
}

/// Show this worker
///
/// Its actors, and what each of them does.
#[utoipa::path(
    get, path = "/v1/workers", tag = "workers", operation_id = "listWorkers",
    responses((status = 200, description = "The worker that was asked.", body = Workers))
)]
pub(super) async fn list(State(api): State<Arc<Api>>) -> Response {
    let observed = &api.observed;
    let draining = observed.draining();
    let (ready, _) = observed.readiness.report(draining);
    let actors = observed.actors.iter().map(|health| Actor::of(health)).collect();
    let version = env!("CARGO_PKG_VERSION");
    let name = api.backend.worker.clone();
    json(
        StatusCode::OK,
        &Workers { workers: vec![Worker { name, version, ready, draining, actors }] },
    )
}
