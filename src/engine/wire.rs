//! One HTTP/1 connection to the engine, for what bollard has no call for.

use std::io;

use bollard::{API_DEFAULT_VERSION, BollardRequest, ClientVersion, Docker};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use image_builder_actors::model::fault::Fault;
use tokio::task::JoinSet;

use super::address::Address;
use super::faults;

/// A request's body.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The body of a request that has none.
pub(super) fn no_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// An open connection: dropping it closes it.
pub(super) struct Connection {
    sender: http1::SendRequest<Body>,
    _driver: JoinSet<()>,
}

impl Connection {
    /// Opens a connection; an engine that does not take it is [down](faults::engine_down).
    pub(super) async fn open(address: &Address) -> Result<Self, Fault> {
        let wire = address.open().await.map_err(|error| faults::engine_down(address, &error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(wire))
            .await
            .map_err(|error| faults::engine_down(address, &error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the engine ended with an error");
            }
        });
        Ok(Self { sender, _driver: driver })
    }

    /// Sends the connection's one request.
    pub(super) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> hyper::Result<Response<Incoming>> {
        self.sender.send_request(request).await
    }
}

/// A bollard client over connections of our own, one for each request. bollard's own want the
/// engine's socket to exist when the client is made.
pub(super) fn client(address: Address, timeout: u64) -> Docker {
    let host = address.host_header().to_owned();
    let transport = move |request: BollardRequest| {
        let address = address.clone();
        async move { exchange(&address, request).await }
    };
    Docker::connect_with_custom_transport(
        transport,
        Some(format!("http://{host}")),
        timeout,
        API_DEFAULT_VERSION,
    )
    .expect("a client over a transport of one's own cannot fail to be made")
}

async fn exchange(
    address: &Address,
    request: BollardRequest,
) -> Result<Response<Incoming>, bollard::errors::Error> {
    let (mut parts, body) = request.into_parts();
    // A server wants the path alone in the request's line, and the host in a header.
    parts.uri = match parts.uri.path_and_query() {
        Some(path) => Uri::from(path.clone()),
        None => Uri::from_static("/"),
    };
    if let Ok(host) = HeaderValue::from_str(address.host_header()) {
        parts.headers.insert(HOST, host);
    }
    let wire = address.open().await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(wire)).await?;
    // The connection ends with its one answer.
    tokio::spawn(connection.with_upgrades());
    Ok(sender.send_request(Request::from_parts(parts, body)).await?)
}

/// The start of a request for the engine's `path_and_query`.
pub(super) fn request(
    method: Method,
    address: &Address,
    version: ClientVersion,
    path_and_query: &str,
) -> hyper::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("/v{version}{path_and_query}"))
        .header(HOST, address.host_header())
}

/// What the engine says in an answer that is an error: `{"message": …}`.
pub(super) async fn error_message(response: Response<Incoming>) -> String {
    #[derive(serde::Deserialize)]
    struct Answer {
        message: String,
    }
    const LONGEST: usize = 64 * 1024;
    let status = response.status();
    let Ok(body) = Limited::new(response.into_body(), LONGEST).collect().await else {
        return format!("status {status}");
    };
    match serde_json::from_slice::<Answer>(&body.to_bytes()) {
        Ok(answer) => answer.message,
        Err(_) => format!("status {status}"),
    }
}

/// A query string of `parameters`, percent-encoded.
pub(super) fn query(parameters: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (name, value) in parameters {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(name);
        query.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    query.push(char::from(byte));
                }
                _ => query.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_percent_encoded() {
        assert_eq!(query(&[("a", "x y&z=é"), ("b", "")]), "?a=x%20y%26z%3D%C3%A9&b=");
    }
}
