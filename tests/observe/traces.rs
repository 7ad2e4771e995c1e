//! Traces, as a collector gets them: read with OpenTelemetry's own definitions.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use serde_json::Value;

use crate::hopeless;
use crate::support::stand_in::{Answer, Asked, StandIn};
use crate::support::world::{World, repository};
use crate::support::{runtime, unique, until};

/// What a collector was sent.
struct Collector(StandIn);

impl Collector {
    fn start() -> Self {
        Self(runtime().block_on(StandIn::start(|_| Answer::status(200))))
    }

    /// The world, with its workers' traces sent here.
    fn watch(&self, world: World) -> World {
        world
            .with("OTEL_EXPORTER_OTLP_ENDPOINT", &self.0.url())
            .with("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush-hush")
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let read = |asked: &Asked| {
            assert_eq!(asked.path, "/v1/traces");
            assert_eq!(asked.header("content-type"), "application/x-protobuf");
            assert_eq!(asked.header("authorization"), "Bearer hush-hush");
            ExportTraceServiceRequest::decode(asked.body.clone()).expect("the body is OTLP")
        };
        self.0.asked().iter().map(read).collect()
    }

    /// All spans, in the order in which they began.
    fn spans(&self) -> Vec<Span> {
        let resources = self.requests().into_iter().flat_map(|request| request.resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        let mut spans: Vec<Span> = scopes.flat_map(|scope| scope.spans).collect();
        spans.sort_by_key(|span| span.start_time_unix_nano);
        for span in &spans {
            assert!(span.start_time_unix_nano > 0);
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
            assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        }
        spans
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[track_caller]
fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    match &named(spans, name)[..] {
        [span] => span,
        others => panic!("{} spans are called {name}", others.len()),
    }
}

fn attribute(attributes: &[KeyValue], name: &str) -> Option<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()? {
        AnyValue { value: Some(Any::StringValue(text)) } => Some(text.as_str().into()),
        AnyValue { value: Some(Any::IntValue(number)) } => Some((*number).into()),
        other => panic!("{name}: {other:?}"),
    }
}

fn failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

/// The properties of a message that belongs to this trace.
fn traced(traceparent: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    let value = AMQPValue::LongString(LongString::from(traceparent));
    headers.insert("traceparent".into(), value);
    BasicProperties::default().with_headers(headers)
}

#[test]
fn one_trace_leads_from_the_request_through_the_stages_to_the_notification() {
    let trace_id = hex(uuid::Uuid::new_v4().as_bytes());
    let collector = Collector::start();
    let manager = runtime().block_on(StandIn::start(|_| Answer::status(204)));
    let world = collector.watch(World::new()).with("CONNECTOR_MANAGER_URL", &manager.url());
    let worker = world.worker();
    let request = hopeless(&world);
    let traceparent = format!("00-{trace_id}-00f067aa0ba902b7-01");
    world.publish_raw(request.to_string().as_bytes(), traced(&traceparent));
    let told = until("the manager is told", || manager.asked().into_iter().next());
    // What is left is sent at the worker's end.
    worker.stop();

    let spans = collector.spans();
    assert!(spans.iter().all(|span| hex(&span.trace_id) == trace_id), "{spans:?}");
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["build", "listener", "connector", "notifier"]);
    let build = one(&spans, "build");
    assert_eq!(hex(&build.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(build.kind(), SpanKind::Consumer);
    assert_eq!(attribute(&build.attributes, "build.id"), Some(request["uuid"].clone()));
    assert_eq!(attribute(&build.attributes, "build.repo"), Some(request["repo"].clone()));
    assert_eq!(attribute(&build.attributes, "build.attempt"), Some(1.into()));
    assert_eq!(attribute(&build.attributes, "build.result"), Some("failed".into()));
    let reason = Some("repository_not_found".into());
    assert_eq!(attribute(&build.attributes, "build.reason"), reason);
    for stage in ["listener", "connector"] {
        let stage = one(&spans, stage);
        assert_eq!(stage.parent_span_id, build.span_id);
        assert!(build.start_time_unix_nano <= stage.start_time_unix_nano);
        assert!(stage.end_time_unix_nano <= build.end_time_unix_nano);
    }
    assert!(failed(build) && failed(one(&spans, "connector")));
    assert!(!failed(one(&spans, "listener")));
    let notifier = one(&spans, "notifier");
    assert_eq!(notifier.parent_span_id, build.span_id);
    assert_eq!(notifier.kind(), SpanKind::Client);
    let handed_on = format!("00-{trace_id}-{}-01", hex(&notifier.span_id));
    assert_eq!(told.header("traceparent"), handed_on);
}

#[test]
fn a_build_without_a_trace_begins_one_with_a_span_for_each_stage() {
    let collector = Collector::start();
    let world = collector.watch(World::new()).with("OTEL_SERVICE_NAME", "builder-of-the-test");
    let worker = world.worker();
    let files = [("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", &*unique("traced"))];
    world.build(&world.request(&repository("traced", &files))).ready();
    world.finish(&[&worker]);

    let spans = collector.spans();
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["build", "listener", "connector", "builder", "pusher", "notifier"]);
    let build = one(&spans, "build");
    assert!(build.parent_span_id.is_empty(), "it is the trace's root");
    assert_eq!(attribute(&build.attributes, "build.result"), Some("ready".into()));
    for span in &spans {
        assert_eq!(span.trace_id, build.trace_id);
        assert!(!failed(span), "{span:?}");
        if span.name != "build" {
            assert_eq!(span.parent_span_id, build.span_id, "{}", span.name);
        }
    }
    let requests = collector.requests();
    let resource = requests[0].resource_spans[0].resource.as_ref().expect("a resource");
    let of_service = |name: &str| attribute(&resource.attributes, name);
    assert_eq!(of_service("service.name"), Some("builder-of-the-test".into()));
    assert_eq!(of_service("service.version"), Some(env!("CARGO_PKG_VERSION").into()));
}

#[test]
fn all_tries_of_a_build_are_in_one_trace() {
    let forge = runtime().block_on(StandIn::start(|_| Answer::status(500)));
    let parent = Some(format!("00-{}-00f067aa0ba902b7-01", hex(uuid::Uuid::new_v4().as_bytes())));
    for traceparent in [None, parent] {
        let collector = Collector::start();
        let world = World::new().with("GITHUB_URL", &forge.url()).with("RETRY_MAX_ATTEMPTS", "2");
        let world = collector.watch(world);
        let worker = world.worker();
        let request = hopeless(&world);
        let properties = traceparent.as_deref().map(traced).unwrap_or_default();
        world.publish_raw(request.to_string().as_bytes(), properties);
        world.outcome(request["uuid"].as_str().expect("an id")).failed("forge_failed");
        world.finish(&[&worker]);

        let spans = collector.spans();
        let trace_id = hex(&spans[0].trace_id);
        assert!(spans.iter().all(|span| hex(&span.trace_id) == trace_id), "{spans:?}");
        if let Some(traceparent) = &traceparent {
            assert_eq!(traceparent.split('-').nth(1), Some(trace_id.as_str()));
        }
        let tries = named(&spans, "build");
        let attempts: Vec<_> =
            tries.iter().filter_map(|span| attribute(&span.attributes, "build.attempt")).collect();
        assert_eq!(attempts, [1, 2]);
        assert!(tries.iter().all(|span| failed(span)));
        let decided = named(&spans, "retry");
        assert_eq!(decided.len(), 2);
        // The last decision gave up, and told so.
        assert_eq!(one(&spans, "notifier").parent_span_id, decided[1].span_id);
    }
}

#[test]
fn a_trace_that_nobody_records_is_handed_on_and_not_sent() {
    let trace_id = hex(uuid::Uuid::new_v4().as_bytes());
    let collector = Collector::start();
    let manager = runtime().block_on(StandIn::start(|_| Answer::status(204)));
    let world = collector.watch(World::new()).with("CONNECTOR_MANAGER_URL", &manager.url());
    let worker = world.worker();
    let traceparent = format!("00-{trace_id}-00f067aa0ba902b7-00");
    world.publish_raw(hopeless(&world).to_string().as_bytes(), traced(&traceparent));
    let told = until("the manager is told", || manager.asked().into_iter().next());
    worker.stop();
    let handed_on = told.header("traceparent");
    assert!(handed_on.starts_with(&format!("00-{trace_id}-")), "{handed_on}");
    assert!(handed_on.ends_with("-00"), "{handed_on}");
    assert_eq!(collector.spans(), []);
}

#[test]
fn without_a_collector_the_requests_own_trace_is_handed_on() {
    let manager = runtime().block_on(StandIn::start(|_| Answer::status(204)));
    let world = World::new().with("CONNECTOR_MANAGER_URL", &manager.url());
    let worker = world.worker();
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    world.publish_raw(hopeless(&world).to_string().as_bytes(), traced(traceparent));
    let told = until("the manager is told", || manager.asked().into_iter().next());
    assert_eq!(told.header("traceparent"), traceparent);
    worker.stop();
}

#[test]
fn a_collector_that_is_down_costs_one_warning_and_no_build() {
    let world = World::new().with("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    let worker = world.worker();
    let warning = "traces cannot be delivered";
    world.build(&hopeless(&world)).failed("repository_not_found");
    worker.wait_for_line(warning);
    world.build(&hopeless(&world)).failed("repository_not_found");
    world.finish(&[&worker]);
    let warned = worker.lines().iter().filter(|line| line.contains(warning)).count();
    assert_eq!(warned, 1);
}

#[test]
fn a_collector_that_never_answers_holds_up_neither_builds_nor_the_end() {
    // Connections are taken by the system, and nobody reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a local port is free");
    let url = format!("http://{}", silent.local_addr().expect("the port is known"));
    let world = World::new().with("OTEL_EXPORTER_OTLP_ENDPOINT", &url);
    let worker = world.worker();
    for _ in 0..3 {
        world.build(&hopeless(&world)).failed("repository_not_found");
    }
    let asked = Instant::now();
    worker.stop();
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
}
