//! Stand-ins for the platform's two managers: HTTP servers that check what they are sent, as the
//! Standard Webhooks say, and hand it on.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedSender;

/// How old a signed notification may be.
const TOLERANCE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manager {
    Container,
    Connector,
}

impl Manager {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Manager::Container => "container manager",
            Manager::Connector => "connector manager",
        }
    }
}

/// A notification whose signature holds.
#[derive(Debug)]
pub(crate) struct Notice {
    pub(crate) to: Manager,
    pub(crate) webhook_id: String,
    pub(crate) body: Value,
}

/// The key that both sides know, made for this run.
#[derive(Clone)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    pub(crate) fn new() -> Self {
        let halves = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
        Self(halves.iter().flat_map(|half| *half.as_bytes()).collect())
    }

    /// In the form of `NOTIFIER_SECRET`.
    pub(crate) fn to_setting(&self) -> String {
        format!("whsec_{}", STANDARD.encode(&self.0))
    }
}

/// Starts a stand-in and returns its URL. Good notices and the reasons of bad ones go to `told`.
pub(crate) async fn start(
    manager: Manager,
    key: Key,
    told: UnboundedSender<Result<Notice>>,
) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("a port for a stand-in")?;
    let url = format!("http://{}/notifications", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (key, told) = (key.clone(), told.clone());
            let service = service_fn(move |request| {
                let (key, told) = (key.clone(), told.clone());
                async move { Ok::<_, Infallible>(receive(manager, request, &key, &told).await) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Ok(url)
}

async fn receive(
    manager: Manager,
    request: Request<Incoming>,
    key: &Key,
    told: &UnboundedSender<Result<Notice>>,
) -> Response<Empty<Bytes>> {
    let notice = read(manager, request, key).await;
    let status = if notice.is_ok() { StatusCode::NO_CONTENT } else { StatusCode::UNAUTHORIZED };
    let notice = notice.with_context(|| format!("what the {} was sent", manager.name()));
    // Nobody listens any more once the demo is over.
    let _ = told.send(notice);
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}

async fn read(to: Manager, request: Request<Incoming>, key: &Key) -> Result<Notice> {
    let header = |name: &str| -> Result<String> {
        let value = request.headers().get(name).with_context(|| format!("there is no {name}"))?;
        Ok(value.to_str()?.to_owned())
    };
    let webhook_id = header("webhook-id")?;
    let timestamp = header("webhook-timestamp")?;
    let signatures = header("webhook-signature")?;
    let body = request.into_body().collect().await?.to_bytes();

    let sent = Duration::from_secs(timestamp.parse().context("webhook-timestamp")?);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    ensure!(now.abs_diff(sent) < TOLERANCE, "webhook-timestamp is not of now: {timestamp}");
    let signed = [webhook_id.as_bytes(), timestamp.as_bytes(), &body].join(&b'.');
    let good = signatures
        .split(' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .any(|signature| {
            Hmac::<Sha256>::new_from_slice(&key.0)
                .is_ok_and(|mac| mac.chain_update(&signed).verify_slice(&signature).is_ok())
        });
    if !good {
        bail!("webhook-signature does not fit: {signatures}");
    }
    Ok(Notice { to, webhook_id, body: serde_json::from_slice(&body)? })
}
