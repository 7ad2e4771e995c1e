//! Logs: JSON lines with stable names, or text that a person likes to read on a terminal.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::UtcTime;

use crate::rabbitmq::LOG_DIRECTIVE;

/// The form of log lines (`LOG_FORMAT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    /// The form that `text` names; by default text on a terminal and JSON elsewhere.
    ///
    /// # Errors
    ///
    /// One line that names the variable.
    pub fn read(text: Option<&str>) -> Result<Self, String> {
        match text.filter(|text| !text.is_empty()) {
            None if std::io::stderr().is_terminal() => Ok(LogFormat::Text),
            None => Ok(LogFormat::Json),
            Some("text") => Ok(LogFormat::Text),
            Some("json") => Ok(LogFormat::Json),
            Some(other) => Err(format!("LOG_FORMAT: `{other}` is not one of text, json")),
        }
    }
}

/// What is logged (`RUST_LOG`), `info` by default; libraries only from `warn` on unless named.
///
/// # Errors
///
/// One line that names the variable.
pub fn filter(text: Option<&str>) -> Result<EnvFilter, String> {
    let text = text.filter(|text| !text.is_empty()).unwrap_or("info");
    let filter = EnvFilter::try_new(text);
    let filter = filter.map_err(|error| format!("RUST_LOG: `{text}`: {error}"))?;
    // Whatever is asked for: what this library logs below that holds messages and passwords.
    let quiet = LOG_DIRECTIVE.parse().map_err(|error| format!("RUST_LOG: {error}"))?;
    Ok(filter.add_directive(quiet))
}

/// Starts logging to the standard error stream.
pub fn start(format: LogFormat, filter: EnvFilter) {
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => subscriber
            .with_timer(UtcTime::new(time::macros::format_description!(
                "[hour]:[minute]:[second].[subsecond digits:3]"
            )))
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init(),
        LogFormat::Json => subscriber
            .with_timer(UtcTime::rfc_3339())
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .init(),
    }
}
