//! One delivery's way through this worker, as an operator sees it: a span for the whole, a span and a
//! duration for each stage. The lease carries it, so it ends with the delivery, whatever happens.
//!
//! These are OpenTelemetry's spans and not `tracing`'s: a span of the log lives for as long as anything
//! holds it, and a stuck job would keep the trace open.

use std::sync::Arc;
use std::time::Instant;

use opentelemetry::global::{BoxedSpan, BoxedTracer};
use opentelemetry::trace::noop::NoopTracer;
use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};

use crate::model::build_log::cut;
use crate::model::fault::{Fault, StageName};
use crate::model::history::History;
use crate::model::identity::BuildIdentity;
use crate::model::request::BuildRequest;
use crate::ports::Message;
use crate::telemetry::history::Recorder;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::statuses::StatusReporter;
use crate::telemetry::trace;

/// Longest text in a span, in bytes.
const LONGEST_TEXT: usize = 1024;

/// Sees what happens to deliveries. Clones share the figures.
#[derive(Debug, Clone)]
pub struct Observer {
    pub metrics: Metrics,
    /// Begins the spans.
    pub tracer: Arc<BoxedTracer>,
    /// Keeps what happens to builds for whoever asks.
    pub history: Recorder,
    /// Has forges show how builds stand.
    pub statuses: StatusReporter,
}

impl Default for Observer {
    /// Counts, and traces nothing.
    fn default() -> Self {
        Self::new(Metrics::new(), BoxedTracer::new(Box::new(NoopTracer::new())))
    }
}

impl Observer {
    pub fn new(metrics: Metrics, tracer: BoxedTracer) -> Self {
        Self {
            metrics,
            tracer: Arc::new(tracer),
            history: Recorder::default(),
            statuses: StatusReporter::default(),
        }
    }

    /// The same one, which keeps what happens to builds.
    pub fn with_history(self, history: Recorder) -> Self {
        Self { history, ..self }
    }

    /// The same one, which has forges show how builds stand.
    pub fn with_statuses(self, statuses: StatusReporter) -> Self {
        Self { statuses, ..self }
    }

    /// A request begins a try on this worker.
    pub fn build(
        &self,
        build: &BuildIdentity,
        message: &Message,
        history: &History,
    ) -> DeliverySpan {
        // Without a timestamp nobody knows how long it waited.
        if history.attempts.is_empty() && message.timestamp.is_some() {
            self.metrics.delivered(history.requested_at);
        }
        let mut delivery = self.begin("build", SpanKind::Consumer, build, message);
        delivery.set("build.attempt", i64::from(history.counted() + 1));
        delivery
    }

    /// A failed try is decided on.
    pub fn retry(&self, build: &BuildIdentity, message: &Message) -> DeliverySpan {
        self.begin("retry", SpanKind::Consumer, build, message)
    }

    /// A manager is notified of a build.
    pub fn notification(&self, build: &BuildIdentity, message: &Message) -> DeliverySpan {
        self.begin("notifier", SpanKind::Client, build, message)
    }

    fn begin(
        &self,
        name: &'static str,
        kind: SpanKind,
        build: &BuildIdentity,
        message: &Message,
    ) -> DeliverySpan {
        let place = trace::place(build, message.traceparent.as_deref());
        // For whoever makes the id of a new trace.
        let _current = place.clone().attach();
        let span = self.tracer.span_builder(name).with_kind(kind);
        let span = span.start_with_context(&*self.tracer, &place);
        let under_way =
            UnderWay { observer: self.clone(), whole: span, stage: None, failed: false };
        let mut delivery = DeliverySpan(Some(Box::new(under_way)));
        delivery.set("build.id", text(&build.build_id));
        delivery
    }
}

/// See the module. The default one is seen by nobody.
#[derive(Debug, Default)]
pub struct DeliverySpan(Option<Box<UnderWay>>);

#[derive(Debug)]
struct UnderWay {
    observer: Observer,
    whole: BoxedSpan,
    stage: Option<InStage>,
    failed: bool,
}

#[derive(Debug)]
struct InStage {
    stage: StageName,
    since: Instant,
    span: BoxedSpan,
}

impl DeliverySpan {
    /// A stage takes the job in hand.
    pub fn enter(&mut self, stage: StageName) {
        self.leave();
        if let Some(UnderWay { observer, whole, stage: entered, .. }) = self.0.as_deref_mut() {
            let place = Context::new().with_remote_span_context(whole.span_context().clone());
            let span = observer.tracer.start_with_context(stage.as_str(), &place);
            *entered = Some(InStage { stage, since: Instant::now(), span });
        }
    }

    /// The stage has done with the job.
    pub fn leave(&mut self) -> &mut Self {
        if let Some(under_way) = &mut self.0
            && let Some(InStage { stage, since, span }) = under_way.stage.take()
        {
            under_way.observer.metrics.stage(stage, since.elapsed());
            drop(span);
        }
        self
    }

    /// Says whose build it is. Once, as all that is said of a span: what is said twice is there twice.
    pub fn about(&mut self, request: &BuildRequest) -> &mut Self {
        self.set("build.user", text(&request.user_id));
        self.set("build.application", text(&request.application_id));
        self.set("build.repo", text(&request.repo.to_string()));
        self
    }

    /// Says how it ended.
    pub fn result(&mut self, result: &'static str) -> &mut Self {
        self.set("build.result", result);
        self
    }

    /// The try failed. The fault's message must be free of secrets.
    pub fn fail(&mut self, fault: &Fault) -> &mut Self {
        self.failed(&fault.message, Some(fault.reason.as_str()))
    }

    /// Something that is no fault of the build ended it.
    pub fn broke_off(&mut self, why: &str) -> &mut Self {
        self.failed(why, None)
    }

    /// What went wrong first is why it failed.
    fn failed(&mut self, why: &str, reason: Option<&'static str>) -> &mut Self {
        let Some(under_way) = self.0.as_deref_mut().filter(|under_way| !under_way.failed) else {
            return self;
        };
        under_way.failed = true;
        let stage = under_way.stage.as_mut().map(|stage| &mut stage.span);
        for span in [Some(&mut under_way.whole), stage].into_iter().flatten() {
            span.set_attributes(reason.map(|reason| KeyValue::new("build.reason", reason)));
            span.set_status(Status::error(text(why)));
        }
        self
    }

    fn set(&mut self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(under_way) = &mut self.0 {
            under_way.whole.set_attribute(KeyValue::new(name, value));
        }
    }

    /// The whole's place in its trace, as `traceparent` says it; `None` = there is no trace.
    pub fn traceparent(&self) -> Option<String> {
        trace::write(self.0.as_ref()?.whole.span_context())
    }
}

impl Drop for DeliverySpan {
    fn drop(&mut self) {
        self.leave();
    }
}

fn text(text: &str) -> String {
    cut(text.to_owned(), LONGEST_TEXT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
    use time::OffsetDateTime;

    use super::*;
    use crate::model::fault::Reason;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// An observer, and where its spans go.
    fn traced() -> (Observer, InMemorySpanExporter) {
        let kept = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
        let tracer = BoxedTracer::new(Box::new(provider.tracer("test")));
        (Observer::new(Metrics::new(), tracer), kept)
    }

    fn spans(kept: &InMemorySpanExporter) -> Vec<SpanData> {
        kept.get_finished_spans().expect("no test panics with it")
    }

    fn build() -> BuildIdentity {
        BuildIdentity::new(Some("u"), "b")
    }

    fn request(traceparent: &str) -> Message {
        Message { traceparent: Some(traceparent.to_owned()), ..Message::default() }
    }

    fn history() -> History {
        History::new(OffsetDateTime::now_utc())
    }

    fn count(observer: &Observer, family: &str) -> u64 {
        let families = observer.metrics.gather();
        let family = families.iter().find(|found| found.name() == family).expect("it is there");
        family.get_metric().iter().map(|m| m.get_histogram().get_sample_count()).sum()
    }

    #[test]
    fn what_breaks_off_in_a_stage_ends_that_stage_and_the_whole() {
        let (observer, kept) = traced();
        let mut delivery = observer.build(&build(), &Message::default(), &history());
        delivery.enter(StageName::Listener);
        delivery.enter(StageName::Builder);
        delivery.broke_off("crashed");
        drop(delivery);
        let spans = spans(&kept);
        let ended: Vec<_> = spans.iter().map(|span| (&*span.name, span.status.clone())).collect();
        let crashed = Status::error("crashed");
        let expected =
            [("listener", Status::Unset), ("builder", crashed.clone()), ("build", crashed)];
        assert_eq!(ended, expected);
        assert_eq!(count(&observer, "image_builder_stage_duration_seconds"), 2);
    }

    #[test]
    fn a_span_is_part_of_the_trace_that_the_request_brings() {
        let (observer, kept) = traced();
        let mut delivery = observer.build(&build(), &request(PARENT), &history());
        delivery.enter(StageName::Builder);
        drop(delivery);
        let spans = spans(&kept);
        let [stage, whole] = &spans[..] else { panic!("{spans:?}") };
        for span in [stage, whole] {
            assert_eq!(span.span_context.trace_id().to_string(), PARENT[3..35]);
        }
        assert_eq!(whole.parent_span_id.to_string(), PARENT[36..52]);
        assert_eq!(stage.parent_span_id, whole.span_context.span_id());
        assert!(whole.start_time <= stage.start_time && stage.end_time <= whole.end_time);
    }

    #[test]
    fn a_trace_that_is_not_recorded_is_only_handed_on() {
        let (observer, kept) = traced();
        let delivery =
            observer.build(&build(), &request(&PARENT.replace("-01", "-00")), &history());
        let handed_on = delivery.traceparent().expect("there is a trace");
        assert!(handed_on.starts_with(&PARENT[..36]) && handed_on.ends_with("-00"), "{handed_on}");
        drop(delivery);
        assert_eq!(spans(&kept), []);
    }

    #[test]
    fn what_went_wrong_first_is_said_once() {
        let (observer, kept) = traced();
        let mut delivery = observer.retry(&build(), &Message::default());
        let fault = Fault::new(StageName::Builder, Reason::EngineFailed, "no answer");
        delivery.fail(&fault).fail(&fault).broke_off("given back");
        drop(delivery);
        let span = spans(&kept).remove(0);
        assert_eq!(span.status, Status::error("no answer"));
        let reasons = span.attributes.iter().filter(|a| a.key.as_str() == "build.reason");
        assert_eq!(reasons.count(), 1);
    }

    #[test]
    fn only_a_first_try_with_a_known_time_tells_how_long_it_waited() {
        let observer = Observer::default();
        let now = OffsetDateTime::now_utc();
        let (mut message, mut history) = (Message::default(), History::new(now));
        drop(observer.build(&build(), &message, &history));
        assert_eq!(count(&observer, "image_builder_queue_wait_seconds"), 0);
        message.timestamp = Some(now - Duration::from_secs(60));
        drop(observer.build(&build(), &message, &history));
        history.record(&Fault::new(StageName::Builder, Reason::EngineFailed, ""), true);
        drop(observer.build(&build(), &message, &history));
        assert_eq!(count(&observer, "image_builder_queue_wait_seconds"), 1);
    }
}
