//! BuildKit's control API, gRPC: of a BuildKit of its own on the connection itself, of a Docker Engine's on one
//! that `POST /grpc` upgraded.

use std::task::{Context, Poll};

use bollard::ClientVersion;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::rt::{Read, Write};
use hyper::upgrade::Upgraded;
use hyper::{Method, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use image_builder_actors::model::fault::Fault;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};

use crate::engine::address::Address;
use crate::engine::faults::{self, ANSWER_TIMEOUT};
use crate::engine::wire::{self, Connection};

/// Longest message that is taken, in bytes: what BuildKit itself allows.
const LONGEST_MESSAGE: usize = 16 << 20;

/// Longest error that is taken, with its details, in bytes.
const LONGEST_ERROR: u32 = 1 << 20;

/// A BuildKit, and how it is spoken to.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Endpoint {
    pub(in crate::engine) address: Address,
    pub(in crate::engine) door: Door,
}

/// What stands before a BuildKit.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) enum Door {
    /// A Docker Engine whose API is spoken in this version.
    Docker(ClientVersion),
    /// Nothing: `buildkitd`.
    Open,
}

/// An open connection: dropping it closes it, and the engine stops what it was asked for there.
pub(in crate::engine) struct Control {
    pub(in crate::engine) client: ControlClient<Channel>,
    _driver: JoinSet<()>,
}

impl Control {
    pub(in crate::engine) async fn open(endpoint: &Endpoint) -> Result<Self, Fault> {
        let what = "opening its control API";
        let address = &endpoint.address;
        match endpoint.door {
            Door::Docker(version) => {
                let upgrade = Upgrade { path: "/grpc", headers: &[], what };
                let stream = self::upgrade(address, version, upgrade).await?;
                Self::over(stream, what).await
            }
            Door::Open => {
                let wire = address.open().await;
                let wire = wire.map_err(|error| faults::engine_down(address, &error))?;
                Self::over(TokioIo::new(wire), what).await
            }
        }
    }

    async fn over(
        stream: impl Read + Write + Send + Unpin + 'static,
        what: &str,
    ) -> Result<Self, Fault> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .adaptive_window(true)
            .max_header_list_size(LONGEST_ERROR)
            .handshake(stream)
            .await
            .map_err(|error| faults::engine_broke(what, &error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the engine ended with an error");
            }
        });
        let origin = Uri::from_static("http://buildkit");
        let client = ControlClient::with_origin(Channel(sender), origin)
            .max_decoding_message_size(LONGEST_MESSAGE);
        Ok(Self { client, _driver: driver })
    }
}

/// The calls' way to the engine.
#[derive(Clone)]
pub(in crate::engine) struct Channel(http2::SendRequest<Body>);

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, hyper::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A connection that is to carry HTTP/2.
pub(super) struct Upgrade<'a> {
    pub(super) path: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
    /// For whoever reads that it failed.
    pub(super) what: &'a str,
}

/// Has the engine upgrade a new connection. Dropping the stream closes it.
pub(super) async fn upgrade(
    address: &Address,
    version: ClientVersion,
    Upgrade { path, headers, what }: Upgrade<'_>,
) -> Result<Upgraded, Fault> {
    let broke = |error: &dyn std::fmt::Display| faults::engine_broke(what, error);
    let mut connection = Connection::open(address).await?;
    let mut request = wire::request(Method::POST, address, version, path)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "h2c");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(wire::no_body()).map_err(|error| broke(&error))?;
    let response = faults::in_time(ANSWER_TIMEOUT, what, connection.send(request))
        .await?
        .map_err(|error| broke(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(broke(&wire::error_message(response).await));
    }
    // The connection's own task ends with the upgrade.
    hyper::upgrade::on(response).await.map_err(|error| broke(&error))
}
