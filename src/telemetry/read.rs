//! A log in JSON, read for a person.

use std::io::{self, BufRead, Write};

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::fields::Fields;
use super::terminal::Terminal;
use super::text::{Entry, TextLines};

/// What stands between the name of a container and its line.
const BAR: &str = "| ";

/// Turns JSON lines into those that a terminal shows.
pub struct LogReader(TextLines);

impl LogReader {
    /// For the standard output stream.
    pub fn to_stdout() -> Self {
        Self(TextLines::new(Terminal::of_stdout()))
    }

    /// Reads until there is no more.
    ///
    /// # Errors
    ///
    /// The log cannot be read, or what is made of it not be written.
    pub fn read(&self, mut log: impl BufRead, mut out: impl Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        while log.read_until(b'\n', &mut bytes)? > 0 {
            let line = String::from_utf8_lossy(&bytes);
            if let Some(line) = self.line(line.trim_end_matches(['\r', '\n'])) {
                writeln!(out, "{line}")?;
                out.flush()?;
            }
            bytes.clear();
        }
        Ok(())
    }

    /// What is shown of a line; `None` = nothing.
    fn line(&self, line: &str) -> Option<String> {
        let at = match line.split_once(BAR) {
            Some((name, _)) if !name.contains('{') => name.len() + BAR.len(),
            _ => 0,
        };
        let (prefix, json) = line.split_at(at);
        match serde_json::from_str(json).ok().and_then(entry) {
            Some(entry) => Some(format!("{prefix}{}", self.0.line(prefix, entry)?)),
            None => Some(line.to_owned()),
        }
    }
}

/// What a JSON line says; `None` = it is none of ours.
fn entry(mut line: Map<String, Value>) -> Option<Entry> {
    let mut text = |name: &str| match line.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let at = OffsetDateTime::parse(&text("timestamp")?, &Rfc3339).ok()?;
    let level = text("level")?.parse().ok()?;
    let (message, target) = (text("message")?, text("target")?);
    let mut fields = Fields::default();
    for (name, value) in line {
        fields.set(name, value);
    }
    Some(Entry { at, level, target, message, fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &str) -> String {
        let mut shown = Vec::new();
        let reader = LogReader(TextLines::new(Terminal::plain(None)));
        reader.read(log.as_bytes(), &mut shown).expect("a vector takes all");
        String::from_utf8(shown).expect("lines are UTF-8")
    }

    fn health(actor: &str) -> String {
        format!(
            r#"{{"timestamp":"2026-03-04T05:06:08.1Z","level":"INFO","message":"health","target":"h","actor":"{actor}","state":"running","in_hand":0,"waiting":0,"done":0,"failed":0,"restarts":0}}"#
        )
    }

    #[test]
    fn json_is_shown_as_text_and_all_else_as_it_is() {
        let log = concat!(
            r#"{"timestamp":"2026-03-04T05:06:07.891Z","level":"INFO","message":"image built","target":"t","#,
            r#""build_id":"b-1","stage":"builder","attempt":1,"application_id":"shop","seconds":4.64}"#,
            "\r\nno JSON | at all\n{\"level\":7}\n{\"timestamp\":",
        );
        let shown = "05:06:07 INFO  b-1      shop         built in 4.6 s\n\
                     no JSON | at all\n{\"level\":7}\n{\"timestamp\":\n";
        assert_eq!(read(log), shown);
    }

    #[test]
    fn workers_of_one_log_are_told_apart_and_each_is_idle_once() {
        let actors = ["listener", "connector", "builder", "pusher", "notifier", "retry"];
        let mut log = String::new();
        for _ in 0..3 {
            for actor in actors {
                log += &format!("worker-1  | {}\nworker-2  | {}\n", health(actor), health(actor));
            }
        }
        let idle = "05:06:08 INFO  worker                idle";
        assert_eq!(read(&log), format!("worker-1  | {idle}\nworker-2  | {idle}\n"));
    }
}
