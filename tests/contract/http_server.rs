//! An HTTP server inside the test, for answers that no real service gives when asked to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub(crate) type Answer = Response<Full<Bytes>>;

/// A request as it came in, whole.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Request {
    /// A header's text; empty where it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Listens on a port of its own until it is dropped, and remembers what it was asked.
pub(crate) struct HttpServer {
    pub(crate) address: SocketAddr,
    requests: watch::Sender<Vec<Request>>,
    task: JoinHandle<()>,
}

impl HttpServer {
    pub(crate) async fn start<H>(handler: H) -> Self
    where
        H: Fn(Request) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let requests = watch::Sender::new(Vec::new());
        let task = tokio::spawn(serve(listener, requests.clone(), Arc::new(handler)));
        Self { address, requests, task }
    }

    /// A server whose answers need no waiting.
    pub(crate) async fn answering<H>(handler: H) -> Self
    where
        H: Fn(&Request) -> Answer + Send + Sync + 'static,
    {
        Self::start(move |request| {
            let answer = handler(&request);
            Box::pin(async move { answer })
        })
        .await
    }

    /// A server that takes requests and never answers.
    pub(crate) async fn silent() -> Self {
        Self::start(|_| Box::pin(std::future::pending())).await
    }

    /// A server that gives these answers, one after the other.
    pub(crate) async fn with_answers(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.reverse();
        let answers = Mutex::new(answers);
        Self::answering(move |_| {
            answers.lock().expect("no panic inside").pop().expect("an answer is left")
        })
        .await
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Every request so far, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.borrow().clone()
    }

    /// Waits for a request like this.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(&Request) -> bool) {
        let mut requests = self.requests.subscribe();
        let seen = requests.wait_for(|requests| requests.iter().any(&wanted));
        tokio::time::timeout(Duration::from_secs(20), seen)
            .await
            .expect("the request comes within 20 s")
            .expect("the server runs");
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<H>(listener: TcpListener, requests: watch::Sender<Vec<Request>>, handler: Arc<H>)
where
    H: Fn(Request) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
{
    // Connections end with the server: dropping the set aborts them.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (requests, handler) = (requests.clone(), Arc::clone(&handler));
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (requests, handler) = (requests.clone(), Arc::clone(&handler));
            async move {
                let (parts, body) = request.into_parts();
                let request = Request {
                    method: parts.method,
                    path: parts.uri.path().to_owned(),
                    query: parts.uri.query().unwrap_or_default().to_owned(),
                    headers: parts.headers,
                    body: body.collect().await.map(|body| body.to_bytes()).unwrap_or_default(),
                };
                requests.send_modify(|seen| seen.push(request.clone()));
                Ok::<_, Infallible>(handler(request).await)
            }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        while connections.try_join_next().is_some() {}
    }
}

/// An answer with headers and a body.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
    for (name, value) in headers {
        answer = answer.header(*name, *value);
    }
    answer.body(Full::new(body.into())).expect("a good answer")
}
