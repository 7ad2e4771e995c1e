//! A stand-in for an HTTP server that the tests cannot have, such as GitHub's API: it answers what
//! the test tells it to, and keeps what it was asked.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_LENGTH;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A request that the stand-in was sent.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Asked {
    /// A header's text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Path and query apart.
    pub fn target(&self) -> (&str, &str) {
        self.path.split_once('?').unwrap_or((&self.path, ""))
    }
}

/// What the stand-in answers.
pub enum Answer {
    Text {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// Sends the first piece once, and the other one for ever.
    Endless {
        headers: Vec<(String, String)>,
        first: Vec<u8>,
        piece: Vec<u8>,
    },
    /// Passes the request on to this server, and its answer back.
    From(String),
    /// Answers this, once it is there.
    Later(BoxFuture<'static, Answer>),
    /// Closes the connection.
    HangUp,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Answer::Text { status, headers: Vec::new(), body: Vec::new() }
    }

    pub fn json(body: &serde_json::Value) -> Self {
        Answer::bytes(body.to_string())
    }

    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Answer::Text { status: 200, headers: Vec::new(), body: body.into() }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        if let Answer::Text { headers, .. } | Answer::Endless { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

/// A running stand-in; dropping it ends it.
pub struct StandIn {
    pub address: SocketAddr,
    asked: watch::Sender<Vec<Asked>>,
    task: JoinHandle<()>,
}

impl StandIn {
    pub async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a local port is free");
        let address = listener.local_addr().expect("the port is known");
        let asked = watch::Sender::new(Vec::new());
        let (record, answer) = (asked.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (record, answer) = (record.clone(), answer.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (record, answer) = (record.clone(), answer.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.map(|body| body.to_bytes());
                        let asked = Asked {
                            method: parts.method,
                            path: parts.uri.to_string(),
                            headers: parts.headers,
                            body: body.unwrap_or_default(),
                        };
                        record.send_modify(|all| all.push(asked.clone()));
                        respond(answer(&asked), asked).await
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, asked, task }
    }

    /// The address, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.borrow().clone()
    }

    /// Waits until it was asked for anything.
    pub async fn wait_until_asked(&self) {
        let mut asked = self.asked.subscribe();
        let asked = asked.wait_for(|all| !all.is_empty());
        tokio::time::timeout(Duration::from_secs(20), asked)
            .await
            .expect("the request comes within 20 s")
            .expect("the server runs");
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Every kind of manifest that the tests push.
const MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";

/// What a registry with immutable tags answers, with the real one behind it: `refusal` where a tag that is
/// there is stored again, be it for the same image.
pub fn with_immutable_tags(
    asked: &Asked,
    real: &str,
    refusal: impl FnOnce() -> Answer + Send + 'static,
) -> Answer {
    let real = real.to_owned();
    let stores_a_tag = asked.method == Method::PUT
        && asked.path.contains("/manifests/")
        && !asked.path.contains("/manifests/sha256:");
    if !stores_a_tag {
        return Answer::From(real);
    }
    let look = client()
        .head(format!("{real}{}", asked.path))
        .header("accept", MANIFESTS)
        .header("authorization", asked.header("authorization"));
    Answer::Later(Box::pin(async move {
        let found = look.send().await.expect("the server behind is up");
        if found.status().is_success() { refusal() } else { Answer::From(real) }
    }))
}

type Body = BoxBody<Bytes, Infallible>;

async fn respond(answer: Answer, asked: Asked) -> io::Result<Response<Body>> {
    let (status, headers, body): (u16, Vec<(String, String)>, Body) = match answer {
        Answer::Text { status, headers, body } => (status, headers, Full::from(body).boxed()),
        Answer::Endless { headers, first, piece } => {
            let pieces = std::iter::once(Bytes::from(first)).chain(std::iter::repeat(piece.into()));
            let frames = futures_util::stream::iter(pieces);
            let frames = frames.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
            (200, headers, BodyExt::boxed(StreamBody::new(frames)))
        }
        Answer::From(server) => pass_on(&server, asked).await,
        Answer::Later(answer) => return Box::pin(respond(answer.await, asked)).await,
        Answer::HangUp => return Err(io::ErrorKind::ConnectionAborted.into()),
    };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    Ok(response.body(body).unwrap_or_else(|_| Response::new(Empty::new().boxed())))
}

/// Headers that are not passed on.
const OF_ONE_CONNECTION: [&str; 4] =
    ["connection", "content-length", "keep-alive", "transfer-encoding"];

/// Of a server without TLS, as it answers.
fn client() -> reqwest::Client {
    let redirects = reqwest::redirect::Policy::none();
    let client = reqwest::Client::builder().tls_certs_only([]).redirect(redirects).build();
    client.expect("a client can be made")
}

async fn pass_on(server: &str, asked: Asked) -> (u16, Vec<(String, String)>, Body) {
    let is_head = asked.method == Method::HEAD;
    let mut headers = asked.headers;
    OF_ONE_CONNECTION.iter().for_each(|name| drop(headers.remove(*name)));
    let request =
        client().request(asked.method, format!("{server}{}", asked.path)).headers(headers);
    let response = request.body(asked.body).send().await.expect("the server behind is up");
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .filter(|(name, _)| {
            // An answer to HEAD tells the length of what it does not have.
            (is_head && *name == CONTENT_LENGTH) || !OF_ONE_CONNECTION.contains(&name.as_str())
        })
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
        .collect();
    let body = response.bytes().await.expect("the server behind answers in full");
    (status, headers, Full::new(body).boxed())
}
