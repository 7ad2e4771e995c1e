//! Traces, as W3C Trace Context and OpenTelemetry mean them: the worker's spans take part in the
//! trace that a request brings along, and hand it on to the notification.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::model::build_log::cut;
use crate::model::digest::hex;

/// The header that names the W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// Longest text in a span, in bytes.
const LONGEST_TEXT: usize = 1024;

/// A place in a trace: what `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    /// Whether the trace is recorded: whoever began it decides that for everybody.
    pub sampled: bool,
}

impl Context {
    /// Reads the value of `traceparent`; `None` where it breaks the recommendation's rules.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let [version] = bytes(parts.next()?)?;
        let trace_id = bytes(parts.next()?)?;
        let span_id = bytes(parts.next()?)?;
        let [flags] = bytes(parts.next()?)?;
        // Later versions may add parts, version 0 has none.
        let whole = version != 0xff && (version != 0 || parts.next().is_none());
        (whole && trace_id != [0; 16] && span_id != [0; 8]).then_some(Self {
            trace_id,
            span_id,
            sampled: flags & 1 == 1,
        })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", hex(&self.trace_id), hex(&self.span_id))
    }
}

/// Exactly `N` bytes in lower-case hex.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(bytes)
}

/// What a span's owner does, in OpenTelemetry's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    Internal,
    /// Calls somebody.
    Client,
    /// Works on a message of a queue.
    Consumer,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(cut(text.to_owned(), LONGEST_TEXT))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Value::Number(number.into())
    }
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub context: Context,
    /// The span that this one is a part of.
    pub parent: Option<[u8; 8]>,
    pub name: &'static str,
    pub kind: SpanKind,
    pub started: SystemTime,
    pub ended: SystemTime,
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong; `None` = nothing.
    pub failure: Option<String>,
}

/// Where spans go when they have ended. Must not block.
pub trait Sink: Send + Sync {
    fn ended(&self, span: Finished);
}

/// Begins spans. Clones send to the same sink; without one there are no spans.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<dyn Sink>>);

impl Tracer {
    pub fn new(sink: Arc<dyn Sink>) -> Self {
        Self(Some(sink))
    }

    /// Begins a span of this build, below the span that `traceparent` names. Where there is none, or
    /// one that cannot be read, the trace is named after the build: so all its tries, on whichever
    /// worker, are in one trace.
    pub fn begin(
        &self,
        name: &'static str,
        kind: SpanKind,
        build_id: &str,
        traceparent: Option<&str>,
    ) -> Span {
        let Some(sink) = &self.0 else { return Span::default() };
        let parent = traceparent.and_then(Context::parse);
        let context = Context {
            trace_id: parent.map_or_else(|| trace_of(build_id), |parent| parent.trace_id),
            span_id: new_span_id(),
            sampled: parent.is_none_or(|parent| parent.sampled),
        };
        Span::open(sink, context, parent.map(|parent| parent.span_id), name, kind)
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

/// A span that is under way. It ends when it is dropped. The default one is none at all.
#[derive(Default)]
pub struct Span(Option<Box<Open>>);

struct Open {
    sink: Arc<dyn Sink>,
    begun: Instant,
    span: Finished,
}

impl Span {
    fn open(
        sink: &Arc<dyn Sink>,
        context: Context,
        parent: Option<[u8; 8]>,
        name: &'static str,
        kind: SpanKind,
    ) -> Self {
        let now = SystemTime::now();
        let span = Finished {
            context,
            parent,
            name,
            kind,
            started: now,
            ended: now,
            attributes: Vec::new(),
            failure: None,
        };
        Self(Some(Box::new(Open { sink: sink.clone(), begun: Instant::now(), span })))
    }

    /// Begins a span that is a part of this one.
    pub fn child(&self, name: &'static str) -> Span {
        let Some(open) = &self.0 else { return Span::default() };
        let parent = open.span.context;
        let context = Context { span_id: new_span_id(), ..parent };
        Span::open(&open.sink, context, Some(parent.span_id), name, SpanKind::Internal)
    }

    /// This span's place in its trace.
    pub fn context(&self) -> Option<Context> {
        Some(self.0.as_ref()?.span.context)
    }

    /// Says something about what the span is about; what is said last stands. Nothing secret.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(open) = &mut self.0 {
            open.span.attributes.retain(|(known, _)| *known != name);
            open.span.attributes.push((name, value.into()));
        }
    }

    /// Says that what the span is about went wrong.
    pub fn fail(&mut self, message: &str) {
        if let Some(open) = &mut self.0 {
            open.span.failure = Some(cut(message.to_owned(), LONGEST_TEXT));
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let Open { sink, begun, mut span } = *open;
        // The clock may have been set meanwhile.
        span.ended = span.started + begun.elapsed();
        if span.context.sampled {
            sink.ended(span);
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.context() {
            Some(context) => write!(f, "Span({context})"),
            None => f.write_str("Span(none)"),
        }
    }
}

/// The trace of a build whose request brought none.
fn trace_of(build_id: &str) -> [u8; 16] {
    let mut trace_id = [0; 16];
    trace_id.copy_from_slice(&Sha256::digest(build_id)[..16]);
    trace_id
}

/// Random, and never all zeros: the second half of a random UUID has a bit that is always set.
fn new_span_id() -> [u8; 8] {
    (Uuid::new_v4().as_u64_pair().1).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[derive(Default)]
    struct Kept(Mutex<Vec<Finished>>);

    impl Sink for Kept {
        fn ended(&self, span: Finished) {
            self.0.lock().expect("no test panics with it").push(span);
        }
    }

    fn spans(traceparent: Option<&str>) -> (Option<Context>, Vec<Finished>) {
        let kept = Arc::new(Kept::default());
        let span = Tracer::new(kept.clone()).begin("build", SpanKind::Consumer, "b1", traceparent);
        drop(span.child("builder"));
        let context = span.context();
        drop(span);
        let spans = std::mem::take(&mut *kept.0.lock().expect("no test panics with it"));
        (context, spans)
    }

    #[test]
    fn a_trace_context_reads_back_as_it_was_written() {
        let context = Context::parse(PARENT).expect("good");
        assert!(context.sampled);
        assert_eq!(context.to_string(), PARENT);
    }

    #[test]
    fn only_contexts_by_the_recommendations_rules_are_taken() {
        let later = PARENT.replacen("00-", "01-", 1) + "-more";
        assert!(Context::parse(&later).is_some());
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_span_is_part_of_the_trace_that_the_request_brings() {
        let (_, spans) = spans(Some(PARENT));
        let [stage, job] = &spans[..] else { panic!("{spans:?}") };
        let parent = Context::parse(PARENT).expect("good");
        assert_eq!(job.context.trace_id, parent.trace_id);
        assert_eq!(job.parent, Some(parent.span_id));
        assert_eq!(stage.context.trace_id, parent.trace_id);
        assert_eq!(stage.parent, Some(job.context.span_id));
        assert!(job.started <= stage.started && stage.ended <= job.ended);
    }

    #[test]
    fn all_tries_of_a_build_without_a_trace_are_in_one() {
        let ((first, _), (second, _)) = (spans(None), spans(Some("nonsense")));
        let (first, second) = (first.expect("on"), second.expect("on"));
        assert_eq!(first.trace_id, second.trace_id);
        assert_ne!(first.span_id, second.span_id);
    }

    #[test]
    fn a_trace_that_is_not_recorded_is_only_handed_on() {
        let (context, spans) = spans(Some(&PARENT.replace("-01", "-00")));
        assert_eq!(spans, []);
        assert!(context.is_some_and(|context| context.to_string().ends_with("-00")));
    }
}
