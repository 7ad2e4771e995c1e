//! One delivery's way through this worker, as an operator sees it: a span for the whole, a span and a
//! duration for each stage. The lease carries it, so it ends with the delivery, whatever happens.

use std::time::Instant;

use crate::model::fault::{Fault, StageName};
use crate::model::history::History;
use crate::model::notification::NotificationType;
use crate::model::request::BuildRequest;
use crate::ports::Message;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{Context, Span, SpanKind, Tracer};

/// Sees what happens to deliveries. Clones share the figures.
#[derive(Debug, Clone, Default)]
pub struct Observer {
    pub metrics: Metrics,
    pub tracer: Tracer,
}

impl Observer {
    /// A request begins a try on this worker.
    pub fn build(&self, build_id: &str, message: &Message, history: &History) -> DeliverySpan {
        // Without a timestamp nobody knows how long it waited.
        if history.attempts.is_empty() && message.timestamp.is_some() {
            self.metrics.delivered(history.requested_at);
        }
        let mut delivery = self.begin("build", SpanKind::Consumer, build_id, message);
        delivery.span.set("build.attempt", history.counted() + 1);
        delivery
    }

    /// A failed try is decided on.
    pub fn retry(&self, build_id: &str, message: &Message) -> DeliverySpan {
        self.begin("retry", SpanKind::Consumer, build_id, message)
    }

    /// A manager is told of a build.
    pub fn notification(&self, build_id: &str, message: &Message) -> DeliverySpan {
        self.begin("notifier", SpanKind::Client, build_id, message)
    }

    fn begin(
        &self,
        name: &'static str,
        kind: SpanKind,
        build_id: &str,
        message: &Message,
    ) -> DeliverySpan {
        let mut span = self.tracer.begin(name, kind, build_id, message.traceparent.as_deref());
        span.set("build.id", build_id);
        DeliverySpan { metrics: Some(self.metrics.clone()), span, stage: None }
    }
}

/// See the module. The default one is seen by nobody.
#[derive(Debug, Default)]
pub struct DeliverySpan {
    metrics: Option<Metrics>,
    span: Span,
    stage: Option<InStage>,
}

#[derive(Debug)]
struct InStage {
    stage: StageName,
    since: Instant,
    span: Span,
}

impl DeliverySpan {
    /// A stage takes the job in hand.
    pub fn enter(&mut self, stage: StageName) {
        self.leave();
        let span = self.span.child(stage.as_str());
        self.stage = Some(InStage { stage, since: Instant::now(), span });
    }

    /// The stage has done with the job.
    pub fn leave(&mut self) -> &mut Self {
        if let Some(InStage { stage, since, span }) = self.stage.take() {
            if let Some(metrics) = &self.metrics {
                metrics.stage(stage, since.elapsed());
            }
            drop(span);
        }
        self
    }

    /// Says whose build it is.
    pub fn about(&mut self, request: &BuildRequest) -> &mut Self {
        self.span.set("build.user", request.user_id.as_str());
        self.span.set("build.application", request.application_id.as_str());
        self.span.set("build.repo", request.repo.to_string().as_str());
        self
    }

    /// Says how it ended.
    pub fn result(&mut self, result: &'static str) -> &mut Self {
        self.span.set("build.result", result);
        self
    }

    /// The try failed. The fault's message must be free of secrets.
    pub fn fail(&mut self, fault: &Fault) -> &mut Self {
        self.span.set("build.reason", fault.reason.as_str());
        self.span.fail(&fault.message);
        if let Some(stage) = &mut self.stage {
            stage.span.set("build.reason", fault.reason.as_str());
            stage.span.fail(&fault.message);
        }
        self
    }

    /// Something that is no fault of the build ended it.
    pub fn broke_off(&mut self, why: &str) -> &mut Self {
        self.span.fail(why);
        if let Some(stage) = &mut self.stage {
            stage.span.fail(why);
        }
        self
    }

    /// The whole's place in its trace; `None` = there is no trace.
    pub fn context(&self) -> Option<Context> {
        self.span.context()
    }
}

impl Drop for DeliverySpan {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The build that a notification with this `webhook-id` is about.
pub fn build_of(webhook_id: &str) -> &str {
    NotificationType::ALL
        .iter()
        .find_map(|kind| webhook_id.strip_suffix(kind.as_str())?.strip_suffix('.'))
        .unwrap_or(webhook_id)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use time::OffsetDateTime;

    use super::*;
    use crate::model::fault::Reason;
    use crate::telemetry::trace::{Finished, Sink};

    #[derive(Default)]
    struct Kept(Mutex<Vec<Finished>>);

    impl Sink for Kept {
        fn ended(&self, span: Finished) {
            self.0.lock().expect("no test panics with it").push(span);
        }
    }

    fn count(observer: &Observer, family: &str) -> u64 {
        let families = observer.metrics.gather();
        let family = families.iter().find(|found| found.name() == family).expect("it is there");
        family.get_metric().iter().map(|m| m.get_histogram().get_sample_count()).sum()
    }

    #[test]
    fn what_breaks_off_in_a_stage_ends_that_stage_and_the_whole() {
        let kept = Arc::new(Kept::default());
        let observer = Observer { metrics: Metrics::new(), tracer: Tracer::new(kept.clone()) };
        let history = History::new(OffsetDateTime::now_utc());
        let mut delivery = observer.build("b", &Message::default(), &history);
        delivery.enter(StageName::Listener);
        delivery.enter(StageName::Builder);
        delivery.broke_off("crashed");
        drop(delivery);
        let spans = kept.0.lock().expect("no test panics with it");
        let ended: Vec<_> = spans.iter().map(|span| (span.name, span.failure.as_deref())).collect();
        let crashed = Some("crashed");
        assert_eq!(ended, [("listener", None), ("builder", crashed), ("build", crashed)]);
        assert_eq!(count(&observer, "image_builder_stage_duration_seconds"), 2);
    }

    #[test]
    fn only_a_first_try_with_a_known_time_tells_how_long_it_waited() {
        let observer = Observer::default();
        let now = OffsetDateTime::now_utc();
        let (mut message, mut history) = (Message::default(), History::new(now));
        drop(observer.build("b", &message, &history));
        assert_eq!(count(&observer, "image_builder_queue_wait_seconds"), 0);
        message.timestamp = Some(now - Duration::from_secs(60));
        drop(observer.build("b", &message, &history));
        history.record(&Fault::new(StageName::Builder, Reason::EngineFailed, ""), true);
        drop(observer.build("b", &message, &history));
        assert_eq!(count(&observer, "image_builder_queue_wait_seconds"), 1);
    }

    #[test]
    fn the_build_is_read_from_its_notifications_id() {
        assert_eq!(build_of("a.image.ready.image.ready"), "a.image.ready");
        assert_eq!(build_of("b.build.cancelled"), "b");
        assert_eq!(build_of("other"), "other");
    }
}
