//! Log lines for people.
//!
//! ```text
//! 14:03:07 INFO  7b0c86d2 shop         [2/3] RUN make  4.1 s
//! ```
//!
//! The time of day (UTC), the level, whom it is about (the build and its application, or the part of
//! the worker that says it), and what happened, with the fields that are not in the sentence. What a
//! person has no use for is left out: it stands in the JSON form.

mod health;
mod plain;
mod wording;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use image_builder_actors::model::build_log::{NOTE_TARGET, OUTPUT_TARGET};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::Level;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use self::health::Health;
pub(crate) use self::plain::plain;
use self::plain::{short_id, shorten_hashes, without_error_numbers};
use self::wording::{Weight, Wording, duration, say};
use super::fields::Fields;
use super::terminal::Terminal;

const TIME_OF_DAY: &[BorrowedFormatItem<'_>] = format_description!("[hour]:[minute]:[second]");

/// Columns of the application's name.
const APPLICATION: usize = 12;
/// Columns of whom a line is about: a build and its application.
const SUBJECT: usize = SHORT_ID + 1 + APPLICATION;
/// Columns of a build's short id.
const SHORT_ID: usize = 8;
/// Columns before what happened: time, level, subject and what is between them.
const INDENT: usize = 8 + 1 + 5 + 1 + SUBJECT + 1;
/// Where a step's name is cut if the width is not known.
const USUAL_WIDTH: usize = 110;
/// On a narrower terminal lines are left for the terminal to wrap.
const NARROWEST: usize = INDENT + 30;

/// Something to be written, whichever way it came here.
pub(super) struct Entry {
    pub(super) at: OffsetDateTime,
    pub(super) level: Level,
    pub(super) target: String,
    pub(super) message: String,
    /// The event's, and those of the job that it is about.
    pub(super) fields: Fields,
}

/// Makes lines. Knows what each worker's actors were doing when it last said so.
pub(super) struct TextLines {
    terminal: Terminal,
    /// By worker: several logs may come through one reader.
    workers: Mutex<HashMap<String, Health>>,
}

impl TextLines {
    pub(super) fn new(terminal: Terminal) -> Self {
        Self { terminal, workers: Mutex::default() }
    }

    /// The line of an event of this worker, without an end; `None` = nothing that a person needs.
    pub(super) fn line(&self, worker: &str, mut entry: Entry) -> Option<String> {
        let wording = {
            let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            if !workers.contains_key(worker) {
                workers.insert(worker.to_owned(), Health::default());
            }
            let health = workers.get_mut(worker)?;
            match entry.fields.text("actor") {
                Some(_) if entry.message == "health" => {
                    Wording::of(health.report(&mut entry.fields)?)
                }
                Some(_) if entry.message.starts_with("actor is ") => {
                    Wording::of(health.change(&mut entry.fields)?)
                }
                _ if entry.target == OUTPUT_TARGET => Wording::output(&entry.message),
                _ if entry.target == NOTE_TARGET && entry.fields.get("step").is_none() => {
                    Wording::note(&entry.message)
                }
                _ => say(&entry.message, &mut entry.fields)?,
            }
        };
        Some(self.lay_out(worker, entry, wording))
    }

    fn lay_out(&self, worker: &str, mut entry: Entry, wording: Wording) -> String {
        let paint = |code: &str, text: &str| match self.terminal.colours && !text.is_empty() {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        };
        let (level, level_code) = match entry.level {
            Level::ERROR => ("ERROR", "1;31"),
            Level::WARN => ("WARN ", "33"),
            Level::INFO => ("INFO ", "32"),
            Level::DEBUG => ("DEBUG", "34"),
            Level::TRACE => ("TRACE", "35"),
        };
        let subject = subject(&mut entry.fields);
        // Of a warning somebody may need all of it.
        let cuttable = entry.level == Level::INFO;
        let clean = |text: &str| match (wording.verbatim, cuttable) {
            (true, _) => plain(text),
            (false, true) => shorten_hashes(&without_error_numbers(&plain(text))),
            (false, false) => without_error_numbers(&plain(text)),
        };
        let mut text = clean(&wording.text);
        let mut rest = wording.rest.map(|rest| format!("  {}", plain(&rest))).unwrap_or_default();
        for (name, value) in entry.fields.iter() {
            let _ = match (name.strip_suffix("_seconds"), value.as_f64()) {
                (Some(name), Some(seconds)) => write!(rest, "  {name}={}", duration(seconds)),
                _ => write!(rest, "  {name}={}", clean(&shown(value))),
            };
        }
        // The prefix of a reader of several logs.
        let room = self.terminal.width().map(|width| width.saturating_sub(worker.width()));
        if wording.one_line {
            let width = room.unwrap_or(USUAL_WIDTH).max(NARROWEST);
            text = cut(&text, width - INDENT - rest.width().min(width - INDENT - 1));
        }
        let (text, rest) = match room.filter(|room| *room >= NARROWEST) {
            Some(room) => wrap(&text, &rest, room - INDENT, worker.width() + INDENT),
            None => (text, rest),
        };
        let text = match (entry.level, wording.weight) {
            (Level::ERROR, _) => paint("1;31", &text),
            (Level::WARN, Weight::Outcome) => paint("1;33", &text),
            (Level::WARN, _) => paint("33", &text),
            (_, Weight::Outcome) => paint("1;32", &text),
            (_, Weight::Progress) => paint("2", &text),
            (_, Weight::Event) => text,
        };
        format!(
            "{} {} {} {text}{}",
            paint("2", &entry.at.format(TIME_OF_DAY).unwrap_or_default()),
            paint(level_code, level),
            paint(&subject.code, &subject.text),
            paint("2", &rest),
        )
    }
}

/// Whom a line is about, as wide as its column.
struct Subject {
    text: String,
    code: String,
}

fn subject(fields: &mut Fields) -> Subject {
    let application = fields.take_text("application_id");
    let stage = fields.take_text("stage");
    fields.take("attempt");
    let actor = fields.take_text("actor");
    let Some(build_id) = fields.take_text("build_id") else {
        let place = actor.or(stage).unwrap_or_else(|| "worker".to_owned());
        return Subject { text: fit(&plain(&place), SUBJECT), code: "2".to_owned() };
    };
    let application = application.unwrap_or_default();
    let text = format!(
        "{} {}",
        fit(&short_id(&build_id), SHORT_ID),
        fit(&plain(&application), APPLICATION)
    );
    // One of the colours that are no level's, so that two builds at once are told apart.
    let sum = build_id.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31) + usize::from(byte));
    let code = ["36", "35", "34", "96", "95", "94"][sum % 6].to_owned();
    Subject { text, code }
}

/// A value as it stands behind its name.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains([' ', '\t', '\n', '"']) => {
            text.clone()
        }
        other => other.to_string(),
    }
}

/// `text` in so many columns.
pub(crate) fn fit(text: &str, columns: usize) -> String {
    let mut text = cut(text, columns);
    text.extend(std::iter::repeat_n(' ', columns.saturating_sub(text.width())));
    text
}

/// `text`, cut to so many columns; a cut is marked.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut left = columns.saturating_sub(1);
    let fits = |c: &char| {
        let width = c.width().unwrap_or(0);
        let fits = width <= left;
        left = left.saturating_sub(width);
        fits
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    cut.push('…');
    cut
}

/// `text` and what follows it on lines of at most so many columns, the later ones that far indented. A
/// word that is longer than a line is left for the terminal to wrap.
fn wrap(text: &str, rest: &str, columns: usize, indent: usize) -> (String, String) {
    let mut column = 0;
    let mut wrapped = |text: &str| {
        let mut lines = String::with_capacity(text.len());
        for word in text.split_inclusive(' ') {
            if column > 0 && column + word.trim_end().width() > columns {
                lines.truncate(lines.trim_end().len());
                let _ = write!(lines, "\n{:indent$}", "");
                column = 0;
            }
            // What stood between two lines is not needed at the beginning of one.
            if column > 0 || !word.trim().is_empty() {
                lines.push_str(word);
                column += word.width();
            }
        }
        lines
    };
    (wrapped(text), wrapped(rest))
}

#[cfg(test)]
mod tests;
