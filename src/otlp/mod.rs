//! Traces to an OpenTelemetry collector: OTLP over HTTP, in protobuf.
//!
//! The few messages that are needed stand in [`proto`]; OpenTelemetry's own exporter would bring more
//! than a dozen crates for them. What the protocol and its variables mean is OpenTelemetry's.
//!
//! No build ever waits for the collector: spans go through a bounded queue, and are dropped where
//! the collector is down or too slow.

mod proto;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use image_builder_actors::model::secret::Secret;
use image_builder_actors::telemetry::trace::{Finished, Sink, Tracer};
use prost::Message;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::net::http::{USER_AGENT, causes};

/// Spans that wait to be sent; further ones are dropped.
const QUEUE: usize = 2048;
/// Spans of one request.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_millis(500);
/// Longest duration of one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for what is left when the worker ends.
const LAST: Duration = Duration::from_secs(2);

/// Where traces go, and as whose (`OTEL_…`).
#[derive(Clone)]
pub struct TraceSettings {
    /// The address that spans are posted to, its path included. May hold a credential.
    pub url: Url,
    /// Further headers of each request, such as the collector's credential.
    pub headers: Vec<(String, Secret)>,
    /// The resource's attributes, `service.name` among them.
    pub resource: Vec<(String, String)>,
}

impl fmt::Debug for TraceSettings {
    /// Without what the address holds: that may be a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceSettings")
            .field("host", &self.url.host_str())
            .field("headers", &self.headers)
            .field("resource", &self.resource)
            .finish()
    }
}

/// Sends spans until it is closed.
pub struct Exporter {
    tracer: Tracer,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Exporter {
    /// Starts exporting, where it is set. Opens no connection before there is a span.
    ///
    /// # Errors
    ///
    /// A header that none can be, or system certificates that cannot be loaded.
    pub fn start(settings: Option<TraceSettings>) -> anyhow::Result<Self> {
        let Some(settings) = settings else {
            return Ok(Self { tracer: Tracer::default(), running: None });
        };
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .timeout(TIMEOUT)
            .redirect(Policy::none())
            .default_headers(headers(&settings.headers)?)
            .build()?;
        let (sender, spans) = mpsc::channel(QUEUE);
        let (close, closed) = oneshot::channel();
        let queue = Arc::new(Queue { sender, lost: AtomicU64::new(0) });
        let sending = Sending {
            client,
            url: settings.url,
            resource: settings.resource,
            spans,
            queue: queue.clone(),
            down: false,
        };
        let task = tokio::spawn(sending.run(closed));
        Ok(Self { tracer: Tracer::new(queue), running: Some((close, task)) })
    }

    /// Begins the spans that are exported here.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Sends what is left, for two seconds at the most.
    pub async fn close(self) {
        let Some((close, mut task)) = self.running else { return };
        let _ = close.send(());
        if tokio::time::timeout(LAST, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("the last spans could not be delivered in time");
        }
    }
}

fn headers(settings: &[(String, Secret)]) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    for (name, value) in settings {
        let wrong = || anyhow::anyhow!("the header `{name}` is none that HTTP has");
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

/// What spans wait in.
struct Queue {
    sender: mpsc::Sender<Finished>,
    lost: AtomicU64,
}

impl Sink for Queue {
    fn ended(&self, span: Finished) {
        if self.sender.try_send(span).is_err() {
            self.lose(1);
        }
    }
}

impl Queue {
    fn lose(&self, spans: usize) {
        self.lost.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

struct Sending {
    client: Client,
    url: Url,
    resource: Vec<(String, String)>,
    spans: mpsc::Receiver<Finished>,
    queue: Arc<Queue>,
    /// Whether the last batch could not be delivered.
    down: bool,
}

impl Sending {
    async fn run(mut self, mut closed: oneshot::Receiver<()>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                _ = &mut closed => break,
                () = self.fill(&mut batch) => {}
            }
            self.send(std::mem::take(&mut batch)).await;
        }
        self.spans.close();
        loop {
            while batch.len() < BATCH
                && let Ok(span) = self.spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    /// Waits for a span, and a little longer for others. What was taken when it is dropped is in
    /// `batch`.
    async fn fill(&mut self, batch: &mut Vec<Finished>) {
        self.spans.recv_many(batch, BATCH).await;
        let linger = tokio::time::sleep(LINGER);
        tokio::pin!(linger);
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                () = &mut linger => return,
                _ = self.spans.recv_many(batch, room) => {}
            }
        }
    }

    async fn send(&mut self, batch: Vec<Finished>) {
        let spans = batch.len();
        let body = proto::request(&self.resource, batch).encode_to_vec();
        match self.post(body).await {
            Ok(()) => {
                let lost = self.queue.lost.swap(0, Ordering::Relaxed);
                if self.down || lost > 0 {
                    tracing::info!(lost, "traces are delivered again; some spans were dropped");
                }
                self.down = false;
            }
            Err(error) => {
                self.queue.lose(spans);
                if !self.down {
                    tracing::warn!(
                        error,
                        "traces cannot be delivered: spans are dropped until they can; see OTEL_EXPORTER_OTLP_ENDPOINT"
                    );
                }
                self.down = true;
            }
        }
    }

    async fn post(&self, body: Vec<u8>) -> Result<(), String> {
        let response =
            self.client.post(self.url.clone()).body(body).send().await.map_err(causes)?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("the collector answered {status}")),
        }
    }
}
