//! Traces to an OpenTelemetry collector: OTLP over HTTP, in protobuf.
//!
//! No build ever waits for the collector: finished spans go through a bounded queue to a thread of
//! their own, and are dropped where the collector is down or too slow.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image_builder_actors::telemetry::trace::NewTrace;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::noop::NoopTracer;
use opentelemetry::trace::{SpanId, TraceId, TracerProvider};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider};
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use tokio::runtime::Handle;

use crate::blocking::blocking;
use crate::net::http::{causes, client, read_at_most};

/// Longest duration of one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for what is left when the worker ends.
const LAST: Duration = Duration::from_secs(2);
/// A collector that has more to say is not listened to, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Where traces go, and as whose (`OTEL_…`).
#[derive(Clone)]
pub struct TraceSettings {
    /// The address that spans are posted to, its path included. May hold a credential.
    pub url: Url,
    /// Further headers of each request, such as the collector's credential: each is marked as sensitive.
    pub headers: HeaderMap,
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

/// Exports spans until it is closed; without settings there are none.
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Starts exporting, where it is set. Opens no connection before there is a span. Must be called on
    /// the runtime that is to send them.
    ///
    /// # Errors
    ///
    /// An address that none can be, or system certificates that cannot be loaded.
    pub fn start(settings: Option<TraceSettings>) -> anyhow::Result<Self> {
        let Some(settings) = settings else { return Ok(Self(None)) };
        let client = client()?
            .timeout(TIMEOUT)
            .redirect(Policy::none())
            .default_headers(settings.headers)
            .build()?;
        let collector =
            Collector { client, runtime: Handle::current(), down: AtomicBool::new(false) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(settings.url)
            .with_http_client(collector)
            .build()?;
        let attributes =
            settings.resource.into_iter().map(|(key, value)| KeyValue::new(key, value));
        let provider = SdkTracerProvider::builder()
            .with_id_generator(Ids::default())
            .with_resource(Resource::builder().with_attributes(attributes).build())
            .with_batch_exporter(exporter)
            .build();
        Ok(Self(Some(provider)))
    }

    /// Begins the spans that are exported here.
    pub fn tracer(&self) -> BoxedTracer {
        let Some(provider) = &self.0 else { return BoxedTracer::new(Box::new(NoopTracer::new())) };
        let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        BoxedTracer::new(Box::new(provider.tracer_with_scope(scope)))
    }

    /// Sends what is left, for two seconds at the most.
    pub async fn close(self) {
        let Some(provider) = self.0 else { return };
        if blocking(move || provider.shutdown_with_timeout(LAST)).await.is_err() {
            tracing::warn!("the last spans could not be delivered");
        }
    }
}

/// Random ids, but that the trace of a build is named after the build.
#[derive(Debug, Default)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        let named = Context::map_current(|current| current.get::<NewTrace>().copied());
        named.map_or_else(|| self.0.new_trace_id(), |NewTrace(trace_id)| trace_id)
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

/// Posts spans, and says once that it cannot and once that it can again.
#[derive(Debug)]
struct Collector {
    client: Client,
    /// The exporter's thread has none.
    runtime: Handle,
    /// Whether the last request failed.
    down: AtomicBool,
}

#[tonic::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let request = self.client.post(head.uri.to_string()).headers(head.headers).body(body);
        let answer = self.runtime.spawn(async move {
            let mut answer = request.send().await?;
            let (body, _) = read_at_most(&mut answer, LONGEST_ANSWER).await?;
            let mut response = Response::new(Bytes::from(body));
            *response.status_mut() = answer.status();
            *response.headers_mut() = std::mem::take(answer.headers_mut());
            Ok(response)
        });
        let answer = answer.await?.map_err(causes);
        self.watch(&answer);
        Ok(answer?)
    }
}

impl Collector {
    fn watch(&self, answer: &Result<Response<Bytes>, String>) {
        let failure = match answer {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the collector answered {}", response.status())),
            Err(error) => Some(error.clone()),
        };
        let was_down = self.down.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(error) if !was_down => tracing::warn!(
                error,
                "traces cannot be delivered: spans are dropped until they can; see OTEL_EXPORTER_OTLP_ENDPOINT"
            ),
            None if was_down => {
                tracing::info!("traces are delivered again; some spans were dropped");
            }
            _ => {}
        }
    }
}
