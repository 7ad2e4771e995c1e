//! The HTTP server: connections that end in bounded time, however their clients behave.
//!
//! `axum::serve` would wait for a request's head for ever.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// The bounds of connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections at once; further ones wait to be accepted.
    pub(super) connections: usize,
    /// Longest head of a request, in bytes.
    pub(super) head_bytes: usize,
    /// How long a client may take to send a request's head, waiting for its next request included.
    pub(super) head: Duration,
    /// A connection takes no further requests after this.
    pub(super) connection: Duration,
    /// How long the last answer of a connection may take to be read, unless it is [held](Connection::hold).
    pub(super) last_answer: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub(super) unread: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            // Far more than clients that mean well have, so that those that never finish asking keep nobody
            // out before their time is up.
            connections: 512,
            head_bytes: 32 * 1024,
            head: Duration::from_secs(5),
            connection: Duration::from_secs(60),
            last_answer: Duration::from_secs(10),
            unread: Duration::from_secs(30),
        }
    }
}

/// The connection that a request came over: an extension of the request.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    /// How many answers hold it.
    held: watch::Sender<usize>,
}

/// Keeps a connection until it is dropped.
#[derive(Debug)]
pub(super) struct Hold(watch::Sender<usize>);

impl Connection {
    pub(super) fn of(peer: SocketAddr) -> Self {
        Self { peer, held: watch::Sender::new(0) }
    }

    /// For an answer that may take long: the connection does not end for its age while it is held. A client
    /// that takes nothing of what is sent is sent away nevertheless.
    pub(super) fn hold(&self) -> Hold {
        self.held.send_modify(|count| *count += 1);
        Hold(self.held.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Serves until the program ends.
pub(super) async fn serve(listener: TcpListener, router: Router, bounds: Bounds) {
    let connections = Arc::new(Semaphore::new(bounds.connections));
    loop {
        let Ok(room) = connections.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: others will be closed.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            match answer(stream, Connection::of(peer), router, bounds).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended early"),
                Err(TooSlow) => tracing::debug!("an HTTP client was too slow"),
            }
            drop(room);
        });
    }
}

/// The client did not take its last answer in time.
struct TooSlow;

/// Answers the requests of one connection.
async fn answer(
    stream: TcpStream,
    of: Connection,
    router: Router,
    bounds: Bounds,
) -> Result<hyper::Result<()>, TooSlow> {
    if let Err(error) = end_unread(&stream, bounds.unread) {
        tracing::debug!(%error, "a client that reads nothing will hold its connection for longer");
    }
    let mut held = of.held.subscribe();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(of.clone());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(bounds.head_bytes)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = &mut connection => return Ok(ended),
        () = tokio::time::sleep(bounds.connection) => connection.as_mut().graceful_shutdown(),
    }
    let overdue = async {
        // Its sender is gone with the connection alone.
        let _ = held.wait_for(|count| *count == 0).await;
        tokio::time::sleep(bounds.last_answer).await;
    };
    tokio::select! {
        ended = &mut connection => Ok(ended),
        () = overdue => Err(TooSlow),
    }
}

/// Has the system end the connection once its client has taken nothing for so long of what was sent to it.
fn end_unread(stream: &TcpStream, after: Duration) -> io::Result<()> {
    let after = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
    Ok(set_tcp_user_timeout(stream, after)?)
}
