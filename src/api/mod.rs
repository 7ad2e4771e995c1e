//! The operator's HTTP endpoints: `/livez`, `/readyz`, `/metrics`.

mod listen;
mod metrics;
pub mod readiness;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use image_builder_actors::telemetry::health::Health;
use image_builder_actors::telemetry::metrics::Metrics;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

pub use self::listen::listen;
use crate::api::readiness::Readiness;

/// Connections at once; further ones wait to be accepted.
const MOST_CONNECTIONS: usize = 64;
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
}

/// Serves until the program ends.
pub async fn serve(listener: TcpListener, observed: Observed) {
    let turns = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: others will be closed.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let observed = observed.clone();
        tokio::spawn(async move {
            answer(stream, &observed).await;
            drop(turn);
        });
    }
}

/// Answers the requests of one connection, which ends in bounded time however slow the client is.
async fn answer(stream: TcpStream, observed: &Observed) {
    let service = service_fn(|request| {
        let response = respond(&request, observed);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
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

fn respond(request: &Request<Incoming>, observed: &Observed) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/livez" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let (ready, body) = observed.readiness.report();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            text(status, "application/json", body)
        }
        "/metrics" => {
            match metrics::page(&observed.metrics, &observed.actors, &observed.readiness) {
                Ok(page) => text(StatusCode::OK, metrics::CONTENT_TYPE, page),
                Err(error) => {
                    tracing::error!(%error, "cannot show the metrics");
                    plain(StatusCode::INTERNAL_SERVER_ERROR, "see the log\n")
                }
            }
        }
        _ => plain(StatusCode::NOT_FOUND, "try /livez, /readyz or /metrics\n"),
    }
}

fn plain(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    text(status, "text/plain; charset=utf-8", body)
}

fn text(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
