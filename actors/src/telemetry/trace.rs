//! A build's place in a trace, and how it travels: as `traceparent`, the header of W3C Trace Context.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};

use crate::model::identity::BuildIdentity;

/// The header that names the place.
pub const TRACEPARENT: &str = "traceparent";

/// The trace that a span without a parent begins. It stands in the current context while the span
/// begins, for whoever makes the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewTrace(pub TraceId);

impl NewTrace {
    /// The trace of a build whose request brought none: all its tries, on whichever worker, are in it.
    fn of(build: &BuildIdentity) -> Self {
        Self(TraceId::from_bytes(build.hash("trace", [""; 0]).bytes()))
    }
}

/// Where a span of this build belongs: below the span that `traceparent` names, or at the root of the
/// build's own trace where there is none, or one that cannot be read.
pub(super) fn place(build: &BuildIdentity, traceparent: Option<&str>) -> Context {
    match traceparent.and_then(read) {
        Some(parent) => Context::new().with_remote_span_context(parent),
        None => Context::new().with_value(NewTrace::of(build)),
    }
}

/// Reads the value of `traceparent`; `None` where it breaks the recommendation's rules.
fn read(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.trim().split('-');
    let mut hex = |length| {
        let lower_case = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        parts.next().filter(|part| part.len() == length && part.bytes().all(lower_case))
    };
    let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    // Later versions may add parts, version 0 has none.
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace_id).ok()?,
        SpanId::from_hex(span_id).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// The value of `traceparent` that names this span; `None` = there is no trace.
pub(super) fn write(context: &SpanContext) -> Option<String> {
    let (trace_id, span_id) = (context.trace_id(), context.span_id());
    context.is_valid().then(|| format!("00-{trace_id}-{span_id}-{:02x}", context.trace_flags()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_place_in_a_trace_reads_back_as_it_was_written() {
        for flags in ["01", "00"] {
            let traceparent = PARENT.replace("-01", &format!("-{flags}"));
            let context = read(&traceparent).expect("good");
            assert_eq!(context.is_sampled(), flags == "01");
            assert_eq!(write(&context), Some(traceparent));
        }
        assert_eq!(write(&SpanContext::NONE), None);
    }

    #[test]
    fn only_contexts_by_the_recommendations_rules_are_taken() {
        let later = PARENT.replacen("00-", "01-", 1) + "-more";
        assert!(read(&later).is_some());
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
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn all_tries_of_a_build_without_a_trace_begin_the_same_one() {
        let begun = |user, build_id, traceparent| {
            let build = BuildIdentity::new(Some(user), build_id);
            place(&build, traceparent).get::<NewTrace>().copied()
        };
        assert!(begun("u", "b1", None).is_some());
        assert_eq!(begun("u", "b1", None), begun("u", "b1", Some("nonsense")));
        assert_ne!(begun("u", "b1", None), begun("u", "b2", None));
        assert_ne!(begun("u", "b1", None), begun("v", "b1", None));
        assert_eq!(begun("u", "b1", Some(PARENT)), None);
    }
}
