//! The operator's HTTP endpoints: `/livez`, `/readyz`, `/metrics`.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use image_builder_actors::health::Health;
use tokio::net::TcpListener;

use crate::readiness::Readiness;

/// What the endpoints show.
#[derive(Clone)]
pub struct Observed {
    pub readiness: Readiness,
    pub actors: Arc<[Arc<Health>]>,
}

/// Serves until the program ends.
pub async fn serve(listener: TcpListener, observed: Observed) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: others will be closed.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let observed = observed.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = respond(&request, &observed);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP connection ended early");
            }
        });
    }
}

fn respond(request: &Request<Incoming>, observed: &Observed) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".into());
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "text/plain", "ok\n".into()),
        "/readyz" => {
            let (ready, body) = observed.readiness.report();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            text(status, "application/json", body)
        }
        "/metrics" => text(StatusCode::OK, "text/plain; version=0.0.4", metrics(&observed.actors)),
        _ => text(StatusCode::NOT_FOUND, "text/plain", "try /livez, /readyz or /metrics\n".into()),
    }
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

/// The actors' figures in the Prometheus text format.
fn metrics(actors: &[Arc<Health>]) -> String {
    let snapshots: Vec<_> =
        actors.iter().map(|actor| (actor.name().as_str(), actor.snapshot())).collect();
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, String)>| {
        let _ = writeln!(out, "# HELP image_builder_{name} {help}");
        let _ = writeln!(out, "# TYPE image_builder_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "image_builder_{name}{{{labels}}} {value}");
        }
    };
    let each = |value: &dyn Fn(&image_builder_actors::health::Snapshot) -> String| {
        snapshots
            .iter()
            .map(|(actor, now)| (format!("actor=\"{actor}\""), value(now)))
            .collect::<Vec<_>>()
    };
    family(
        "actor_in_hand",
        "gauge",
        "Jobs that the actor works on.",
        each(&|now| now.in_hand.to_string()),
    );
    family(
        "actor_waiting",
        "gauge",
        "Jobs that wait for a slot of the actor.",
        each(&|now| now.waiting.to_string()),
    );
    family(
        "actor_done_total",
        "counter",
        "Jobs that the actor did well.",
        each(&|now| now.done.to_string()),
    );
    family(
        "actor_restarts_total",
        "counter",
        "Deaths of the actor.",
        each(&|now| now.restarts.to_string()),
    );
    family(
        "actor_oldest_seconds",
        "gauge",
        "Age of the actor's oldest job in hand.",
        each(&|now| now.oldest.map_or(0.0, |age| age.as_secs_f64()).to_string()),
    );
    let failed = snapshots.iter().flat_map(|(actor, now)| {
        now.failed.iter().map(move |(reason, count)| {
            (format!("actor=\"{actor}\",reason=\"{reason}\""), count.to_string())
        })
    });
    family("actor_failed_total", "counter", "Jobs that failed with the actor.", failed.collect());
    out
}
