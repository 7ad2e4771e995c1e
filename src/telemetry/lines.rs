//! From events to lines.
//!
//! `tracing-subscriber` has a JSON form too. It puts the job's fields into an object of their own, in which
//! whoever reads the log would have to look for `build_id`; here a line is flat.

use std::fmt::Write as _;
use std::io::Write;

use image_builder_actors::model::build_log::OUTPUT_TARGET;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;

const MOMENT: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
const TIME_OF_DAY: &[BorrowedFormatItem<'_>] =
    format_description!("[hour]:[minute]:[second].[subsecond digits:3]");

/// What every JSON line has; a field with such a name is written with an underscore after it.
const OWN_NAMES: [&str; 4] = ["timestamp", "level", "message", "target"];

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Text { colours: bool },
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
        let mut around = Fields::default();
        for span in ctx.event_scope(event).into_iter().flatten().collect::<Vec<_>>().iter().rev() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                around.set_all(fields);
            }
        }
        let now = OffsetDateTime::now_utc();
        let mut line = match self.form {
            Form::Json => json_line(now, event.metadata(), own, around),
            Form::Text { colours } => text_line(now, event.metadata(), own, around, colours),
        };
        line.push('\n');
        // Whole lines only. Nobody can be shown that writing the log fails.
        let _ = (self.out)().write_all(line.as_bytes());
    }
}

fn message(own: &mut Fields) -> String {
    match own.take("message") {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// One object: `timestamp`, `level`, `message`, `target`, then the job's fields, then the event's.
fn json_line(
    now: OffsetDateTime,
    metadata: &Metadata<'_>,
    mut own: Fields,
    mut fields: Fields,
) -> String {
    let message = message(&mut own);
    // What the event itself says is more exact than what is said around it.
    fields.set_all(&own);
    let mut line = String::with_capacity(256);
    let timestamp = now.format(MOMENT).unwrap_or_default();
    let _ = write!(
        line,
        "{{\"timestamp\":\"{timestamp}\",\"level\":\"{}\",\"message\":{},\"target\":{}",
        metadata.level(),
        json!(message),
        json!(metadata.target()),
    );
    for (name, value) in fields.iter() {
        let clash = if OWN_NAMES.contains(name) { "_" } else { "" };
        let _ = write!(line, ",{}:{value}", json!(format!("{name}{clash}")));
    }
    line.push('}');
    line
}

/// The time of day, the level, who says it, what it says, and the fields, the job's last.
fn text_line(
    now: OffsetDateTime,
    metadata: &Metadata<'_>,
    mut own: Fields,
    mut around: Fields,
    colours: bool,
) -> String {
    let paint = |code: &str, text: &str| match colours && !text.is_empty() {
        true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        false => text.to_owned(),
    };
    let message = plain(&message(&mut own));
    let place = own.take("actor").or_else(|| own.take("stage")).or_else(|| around.take("stage"));
    around.take("stage");
    let place = place.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
    let (level, level_code) = match *metadata.level() {
        Level::ERROR => ("ERROR", "1;31"),
        Level::WARN => ("WARN ", "33"),
        Level::INFO => ("INFO ", "32"),
        Level::DEBUG => ("DEBUG", "34"),
        Level::TRACE => ("TRACE", "35"),
    };
    let message = match metadata.target() {
        OUTPUT_TARGET => format!("| {message}"),
        _ => message,
    };
    let mut fields = String::new();
    for (name, _) in own.iter() {
        around.take(name);
    }
    for (name, value) in own.iter().chain(around.iter()) {
        let value = match value {
            Value::String(text) if is_one_word(text) => text.clone(),
            Value::String(text) => format!("{text:?}"),
            other => other.to_string(),
        };
        let _ = write!(fields, " {name}={value}");
    }
    format!(
        "{} {} {} {message}{}",
        paint("2", &now.format(TIME_OF_DAY).unwrap_or_default()),
        paint(level_code, level),
        paint("36", &format!("{place:<9}")),
        paint("2", &fields),
    )
}

/// Whether it reads the same without quotes: it has nothing that would have to be escaped in them.
fn is_one_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace) && text.escape_debug().eq(text.chars())
}

/// One line, in which nothing moves a terminal's cursor.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\t' => plain.push(c),
            '\n' => plain.push_str(" / "),
            c if c.is_control() => plain.extend(c.escape_default()),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use image_builder_actors::model::build_log::{BuildEvent, BuildLog};
    use image_builder_actors::model::fault::StageName;
    use image_builder_actors::model::secret::Redactor;
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

    /// The lines that `work` writes.
    fn lines(form: Form, filter: &str, work: impl FnOnce()) -> Vec<String> {
        let kept = Kept::default();
        let out = kept.clone();
        let layer = Lines::new(form, move || out.clone()).with_filter(EnvFilter::new(filter));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        let bytes = kept.0.lock().expect("no test panics with it").clone();
        let text = String::from_utf8(bytes).expect("lines are UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    fn job() -> BuildLog {
        let mut progress = BuildLog::new("b-1", Redactor::default());
        progress.enter(StageName::Builder, 2);
        progress
    }

    #[test]
    fn a_json_line_is_flat_and_has_the_jobs_fields() {
        let lines = lines(Form::Json, "info", || {
            job().tell(BuildEvent::StepFinished { name: "RUN \"a\"".to_owned(), cached: true });
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
                "attempt": 2, "step": "RUN \"a\"", "cached": true,
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

    #[test]
    fn a_text_line_says_who_and_what_first_and_has_colours_only_where_wanted() {
        let work = || {
            let built = || tracing::info!(seconds = 1.5, step = "RUN a", attempt = 3, "built");
            job().span().in_scope(built);
        };
        let line = &lines(Form::Text { colours: false }, "info", work)[0];
        let expected = "INFO  builder   built seconds=1.5 step=\"RUN a\" attempt=3 build_id=b-1";
        assert_eq!(line.split_once(' ').map(|(_, rest)| rest), Some(expected));
        assert!(lines(Form::Text { colours: true }, "info", work)[0].contains("\u{1b}["));
    }

    #[test]
    fn nothing_in_a_text_line_moves_the_cursor() {
        let work = || tracing::error!(field = "\u{1b}[2J\n", "a\r\u{1b}[1Am\nb");
        let text = lines(Form::Text { colours: false }, "info", work);
        assert_eq!(text.len(), 1);
        assert!(!text[0].contains(char::is_control), "{}", text[0]);
    }
}
