//! Logs and [traces].
//!
//! A log is JSON lines with stable names, or text that a person likes to read on a terminal. Both
//! forms are flat: a line has the fields of its event and those of the job that it is about
//! (`build_id`, `application_id`, `stage`, `attempt`), wherever in the program it was written.

mod fields;
mod lines;
pub mod read;
pub mod stream;
mod terminal;
pub(crate) mod text;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::lines::{Form, Lines};
use self::stream::LogStream;
use self::terminal::Terminal;
use self::text::TextLines;
use crate::broker::rabbitmq::LOG_DIRECTIVE;

/// A filter, for errors.
const EXAMPLE: &str = "info,image_builder::output=off";

/// The form of log lines (`LOG_FORMAT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    /// The form that suits the standard error stream: text on a terminal, and JSON elsewhere.
    pub fn of_stream() -> Self {
        if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json }
    }
}

/// What is logged (`RUST_LOG`).
///
/// # Errors
///
/// What is wrong with the text.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    let filter = EnvFilter::try_new(text).map_err(|error| {
        format!("`{text}` is no filter: {error}; write it like info or {EXAMPLE}")
    })?;
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_ours = |part: &str| part.starts_with("image_builder") || part.starts_with('[');
    // To a filter a word alone is a target, and what it does not know is silent.
    if let Some(word) =
        parts().find(|part| !part.contains('=') && !is_level(part) && !is_ours(part))
    {
        let level = level_meant(word);
        return Err(format!(
            "`{word}` is none of off, error, warn, info, debug, trace; perhaps {level} is meant"
        ));
    }
    if !parts().any(|part| is_level(part) || is_ours(part)) {
        return Err(format!(
            "`{text}` logs nothing of image-builder; perhaps info,{text} is meant"
        ));
    }
    // Whatever is asked for: this library logs its own structures, messages and passwords. What goes wrong
    // is said by whoever called it.
    let quiet = LOG_DIRECTIVE.parse().map_err(|error| format!("{error}"))?;
    Ok(filter.add_directive(quiet))
}

/// The level that a word of other programs means.
fn level_meant(word: &str) -> &'static str {
    match word.to_ascii_lowercase().as_str() {
        "verbose" | "all" | "fine" => "debug",
        "silly" | "finest" => "trace",
        "warning" => "warn",
        "err" | "fatal" | "critical" | "panic" => "error",
        "none" | "quiet" | "silent" => "off",
        other => {
            let levels = ["off", "error", "warn", "info", "debug", "trace"];
            let slips = |level: &&str| strsim::osa_distance(level, other);
            levels.into_iter().min_by_key(slips).filter(|level| slips(level) <= 2).unwrap_or("info")
        }
    }
}

/// Starts logging to the standard error stream, for as long as what is returned is kept.
pub fn start(format: LogFormat, filter: EnvFilter) -> LogStream {
    let form = match format {
        LogFormat::Json => Form::Json,
        LogFormat::Text => Form::Text(TextLines::new(Terminal::of_stderr())),
    };
    let stream = LogStream::open();
    let lines = Lines::new(form, stream.writer()).with_filter(filter);
    tracing_subscriber::registry().with(lines).init();
    log_panics();
    stream
}

/// Panics are log lines like all others, in the form of all others.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let backtrace = std::backtrace::Backtrace::capture();
        let captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        tracing::error!(
            location = panic.location().map(ToString::to_string),
            thread = std::thread::current().name(),
            backtrace = captured.then(|| backtrace.to_string()),
            "panicked: {}",
            text.unwrap_or("unknown")
        );
    }));
}
