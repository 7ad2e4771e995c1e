//! From events to lines.
//!
//! `tracing-subscriber` has a JSON form too. It puts the job's fields into an object of their own, in which
//! whoever reads the log would have to look for `build_id`; here a line is flat.

use std::fmt::Write as _;
use std::io::Write;

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;
use super::text::{Entry, TextLines};

const MOMENT: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// What every JSON line has; a field with such a name is written with an underscore after it.
const OWN_NAMES: [&str; 4] = ["timestamp", "level", "message", "target"];

/// How a line is written.
pub(super) enum Form {
    Json,
    Text(TextLines),
}

/// Writes each event as one line.
pub(super) struct Lines<W> {
    form: Form,
    /// Opens what is written to.
    out: W,
}

impl<W, O> Lines<W>
where
    W: Fn() -> O + 'static,
    O: Write,
{
    pub(super) fn new(form: Form, out: W) -> Self {
        Self { form, out }
    }
}

impl<S, W, O> Layer<S> for Lines<W>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    W: Fn() -> O + 'static,
    O: Write,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut own = Fields::default();
        event.record(&mut own);
        let message = own.take_text("message").unwrap_or_default();
        let mut fields = Fields::default();
        for span in ctx.event_scope(event).into_iter().flatten().collect::<Vec<_>>().iter().rev() {
            if let Some(around) = span.extensions().get::<Fields>() {
                fields.set_all(around);
            }
        }
        // What the event itself says is more exact than what is said around it.
        fields.set_all(&own);
        let entry = Entry {
            at: OffsetDateTime::now_utc(),
            level: *event.metadata().level(),
            target: event.metadata().target().to_owned(),
            message,
            fields,
        };
        let line = match &self.form {
            Form::Json => Some(json_line(&entry)),
            Form::Text(text) => text.line("", entry),
        };
        let Some(mut line) = line else { return };
        line.push('\n');
        // Whole lines only. Nobody can be shown that writing the log fails.
        let _ = (self.out)().write_all(line.as_bytes());
    }
}

/// One object: `timestamp`, `level`, `message`, `target`, then the job's fields, then the event's.
fn json_line(Entry { at, level, target, message, fields }: &Entry) -> String {
    let mut line = String::with_capacity(256);
    let timestamp = at.format(MOMENT).unwrap_or_default();
    let _ = write!(
        line,
        "{{\"timestamp\":\"{timestamp}\",\"level\":\"{level}\",\"message\":{},\"target\":{}",
        json!(message),
        json!(target),
    );
    for (name, value) in fields.iter() {
        let clash = if OWN_NAMES.contains(&name) { "_" } else { "" };
        let _ = write!(line, ",{}:{value}", json!(format!("{name}{clash}")));
    }
    line.push('}');
    line
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use image_builder_actors::model::build_log::{BuildEvent, BuildLog};
    use image_builder_actors::model::fault::StageName;
    use image_builder_actors::model::secret::Redactor;
    use serde_json::Value;
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no test panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines of this form that `work` writes.
    pub(in super::super) fn lines(form: Form, filter: &str, work: impl FnOnce()) -> Vec<String> {
        let kept = Kept::default();
        let out = kept.clone();
        let layer = Lines::new(form, move || out.clone()).with_filter(EnvFilter::new(filter));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        let bytes = kept.0.lock().expect("no test panics with it").clone();
        let text = String::from_utf8(bytes).expect("lines are UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    fn job() -> BuildLog {
        let mut progress = BuildLog::new("b-1", Redactor::default()).of_application("shop");
        progress.enter(StageName::Builder, 2);
        progress
    }

    #[test]
    fn a_json_line_is_flat_and_has_the_jobs_fields() {
        let lines = lines(Form::Json, "info", || {
            job().tell(BuildEvent::StepFinished {
                name: "RUN \"a\"".to_owned(),
                cached: true,
                took: Duration::from_millis(1500),
            });
        });
        let line: Value = serde_json::from_str(&lines[0]).expect("a line is JSON");
        let timestamp = line["timestamp"].as_str().expect("a text");
        let rfc3339 = &time::format_description::well_known::Rfc3339;
        assert!(OffsetDateTime::parse(timestamp, rfc3339).is_ok(), "{timestamp}");
        assert_eq!(
            line,
            json!({
                "timestamp": timestamp, "level": "INFO", "message": "step finished",
                "target": "image_builder_actors::model::build_log", "build_id": "b-1", "stage": "builder",
                "attempt": 2, "application_id": "shop", "step": "RUN \"a\"", "cached": true, "seconds": 1.5,
            })
        );
    }

    #[test]
    fn no_name_comes_twice_in_a_json_line() {
        let lines = lines(Form::Json, "info", || {
            job().span().in_scope(|| {
                tracing::info!(stage = "pusher", level = 3, "twice");
            });
        });
        assert_eq!(lines[0].matches("\"stage\":").count(), 1, "{}", lines[0]);
        let line: Value = serde_json::from_str(&lines[0]).expect("a line is JSON");
        assert_eq!(line["stage"], "pusher");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["level_"], 3);
    }

    #[test]
    fn a_filter_that_hides_most_lines_costs_the_others_nothing() {
        let lines = lines(Form::Json, "warn", || {
            job().note("hidden");
            job().span().in_scope(|| tracing::warn!("shown"));
        });
        assert_eq!(lines.len(), 1);
        let line: Value = serde_json::from_str(&lines[0]).expect("a line is JSON");
        assert_eq!((&line["message"], &line["build_id"]), (&json!("shown"), &json!("b-1")));
    }

    #[test]
    fn what_builds_write_is_filtered_by_its_own_target() {
        let work = || {
            job().tell(BuildEvent::Output("from the build".to_owned()));
            job().note("from the worker");
        };
        let all = lines(Form::Json, "info", work);
        let output: Value = serde_json::from_str(&all[0]).expect("a line is JSON");
        assert_eq!(output["target"], "image_builder::output");
        assert_eq!(output["build_id"], "b-1");
        let without = lines(Form::Json, "info,image_builder::output=off", work);
        assert_eq!(without.len(), 1);
        assert!(without[0].contains("from the worker"));
        let only = lines(Form::Json, "off,image_builder::output=info", work);
        assert_eq!(only.len(), 1);
        assert!(only[0].contains("from the build"));
    }
}
