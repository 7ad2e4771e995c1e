//! Letters as people and programs read them.

use std::fmt::Display;
use std::io::{self, Write};

use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::notification::Culprit;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::arguments::Choice;
use crate::dead_letters::letter::Found;
use crate::text::{ascii, distance, plain, relative, shorten, when};

/// Longest message in a list, in characters.
const MESSAGE: usize = 100;

/// What stands above the lines of a list.
pub(super) fn heading() -> String {
    columns([
        "ID",
        "DIED",
        "AGO",
        "USER",
        "APPLICATION (REPOSITORY)",
        "STAGE",
        "REASON",
        "TRIES",
        "MESSAGE",
    ])
}

fn columns(texts: [&str; 9]) -> String {
    let [id, died, ago, user, subject, stage, reason, tries, message] = texts;
    let line = format!(
        "{id:<36}  {died:<20}  {ago:>4}  {user:<16}  {subject:<32}  {stage:<9}  {reason:<20}  {tries:>5}  {message}"
    );
    line.trim_end().to_owned()
}

/// One letter on one line.
pub(super) fn line(found: &Found) -> String {
    let Some(letter) = &found.letter else {
        let (id, bytes) = (plain(&found.id), found.body.len());
        return format!("{id:<36}  not a letter of this version ({bytes} bytes)");
    };
    let user = found.text("userID").map_or_else(|| "-".to_owned(), plain);
    columns([
        &plain(&letter.build_id),
        &when(letter.died_at),
        &distance(letter.died_at - OffsetDateTime::now_utc()),
        &shorten(&user, 40),
        &shorten(&subject(found), 64),
        letter.stage.as_str(),
        letter.reason.as_str(),
        &letter.history.counted().to_string(),
        &shorten(&plain(&letter.message), MESSAGE),
    ])
}

/// One letter as one line of JSON.
pub(super) fn json(found: &Found) -> String {
    let value = match serde_json::from_slice(&found.body) {
        Ok(value @ Value::Object(_)) => value,
        _ => json!({"buildID": found.id, "bytes": found.body.len()}),
    };
    ascii(&value)
}

/// What was dropped, or would be.
pub(super) fn dropped(id: &str, choice: &Choice) -> String {
    if choice.json {
        return ascii(&json!({"buildID": id, "dropped": !choice.dry_run}));
    }
    let would = if choice.dry_run { "would drop" } else { "dropped" };
    format!("{would} {}", plain(id))
}

/// What was asked for again, or would be.
pub(super) fn redriven(id: &str, new_id: &str, choice: &Choice) -> String {
    if choice.json {
        return ascii(&json!({"buildID": id, "newBuildID": new_id, "redriven": !choice.dry_run}));
    }
    let would = if choice.dry_run { "would redrive " } else { "" };
    format!("{would}{} -> {new_id}", plain(id))
}

/// One letter in full.
pub(super) fn whole(out: &mut impl Write, found: &Found) -> io::Result<()> {
    let Some(letter) = &found.letter else {
        field(out, "build", &found.id)?;
        return field(out, "letter", format!("none of this version ({} bytes)", found.body.len()));
    };
    field(out, "build", &letter.build_id)?;
    if let Some(old) = found.text("redriveOf") {
        field(out, "redrive of", old)?;
    }
    for (title, name) in [("user", "userID"), ("application", "applicationID")] {
        if let Some(text) = found.text(name) {
            field(out, title, text)?;
        }
    }
    if let Some(repo) = found.text("repo") {
        field(out, "repository", format!("{repo}{}", target(found)))?;
    }
    if let Some(commit) = &letter.history.checkpoint.commit {
        field(out, "commit", commit)?;
    }
    field(out, "requested", relative(letter.history.requested_at))?;
    field(out, "died", relative(letter.died_at))?;
    if let Some(until) = found.kept_until {
        field(out, "kept until", relative(until))?;
    }
    let culprit = Culprit::of(letter.reason);
    let culprit = culprit.map_or(String::new(), |culprit| format!(" ({})", culprit.as_str()));
    let (reason, stage) = (letter.reason, letter.stage);
    field(out, "reason", format!("{reason}{culprit} in the {stage}"))?;
    field(out, "message", &letter.message)?;
    if !letter.holds_the_request() {
        field(out, "redrive", "not possible: the request was not kept")?;
    } else if !letter.removed.is_empty() {
        field(out, "redrive", format!("needs {}", letter.removed.join(", ")))?;
    }
    attempts(out, letter)?;
    if !letter.history.log.is_empty() {
        writeln!(out, "\nlog, its last lines")?;
        for line in &letter.history.log {
            writeln!(out, "  {}", plain(line))?;
        }
    }
    writeln!(out, "\nrequest, without credentials")?;
    let request = serde_json::to_string_pretty(&letter.request).unwrap_or_default();
    for line in request.lines() {
        writeln!(out, "  {}", plain(line))?;
    }
    Ok(())
}

fn attempts(out: &mut impl Write, letter: &DeadLetter) -> io::Result<()> {
    writeln!(out, "\ntries")?;
    let mut number = 0;
    for attempt in &letter.history.attempts {
        number += u32::from(attempt.counted);
        let count = if attempt.counted { format!("{number}.") } else { "not counted".to_owned() };
        writeln!(
            out,
            "  {count:<11}  {}  {:<9}  {:<20}  {}",
            when(attempt.at),
            attempt.stage.as_str(),
            attempt.reason.as_str(),
            plain(&attempt.message),
        )?;
        if let Some(step) = &attempt.step {
            writeln!(out, "               at step {}", plain(step))?;
        }
    }
    Ok(())
}

fn field(out: &mut impl Write, title: &str, value: impl Display) -> io::Result<()> {
    writeln!(out, "{title:<12} {}", plain(&value.to_string()))
}

/// What was to be built, for a person.
fn target(found: &Found) -> String {
    let named = |name| found.text(name).filter(|text| !text.is_empty());
    let kind = match named("type") {
        Some(kind @ ("branch" | "tag" | "release" | "commit")) => vec![kind],
        // The older shape has no type.
        None => vec!["branch", "commit"],
        Some(_) => Vec::new(),
    };
    kind.into_iter().filter_map(|kind| Some(format!(", {kind} {}", named(kind)?))).collect()
}

fn subject(found: &Found) -> String {
    let repo = found.text("repo").map(plain);
    match (found.text("applicationID").map(plain), repo) {
        (Some(application), Some(repo)) => format!("{application} ({repo})"),
        (Some(application), None) => application,
        (None, Some(repo)) => format!("({repo})"),
        (None, None) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::is_unsafe;

    fn found(body: &Value) -> Found {
        let body = body.to_string().into_bytes();
        let letter = serde_json::from_slice(&body).ok();
        Found { id: "id".to_owned(), tag: 1, body, letter, kept_until: None }
    }

    fn hostile() -> Found {
        found(&json!({
            "buildID": "id", "diedAt": "2026-01-02T03:04:05.678Z", "stage": "builder",
            "reason": "build_failed", "message": "a\u{1b}[31m\nb\u{202e}c\u{9b}d",
            "history": {"requestedAt": "2026-01-02T03:04:05Z", "attempts": [
                {"at": "2026-01-02T03:04:05Z", "stage": "builder", "reason": "build_failed",
                 "message": "m\u{1b}", "counted": true, "step": "RUN \u{7}"},
            ], "log": ["l\u{1b}]0;x\u{7}"]},
            "request": {"userID": "u\n", "repo": "o/n\u{1b}c", "applicationID": "é"},
            "removed": ["token"],
        }))
    }

    fn has_controls(text: &str) -> bool {
        text.chars().any(|c| (c.is_control() && c != '\n') || is_unsafe(c))
    }

    #[test]
    fn nothing_that_a_terminal_acts_upon_is_printed() {
        let found = hostile();
        let line = line(&found);
        assert!(!has_controls(&line) && !line.contains('\n'), "{line:?}");
        let mut whole = Vec::new();
        super::whole(&mut whole, &found).expect("memory can be written");
        let whole = String::from_utf8(whole).expect("text");
        assert!(!has_controls(&whole), "{whole:?}");
        assert!(whole.contains("needs token") && whole.contains("at step RUN"), "{whole}");
        assert!(whole.contains("a\\u{1b}[31m\\nb\\u{202e}c\\u{9b}d"), "{whole}");
        assert!(whole.contains("2026-01-02T03:04:05Z ("), "{whole}");
    }

    #[test]
    fn json_is_safe_on_a_terminal_and_means_the_same() {
        let found = hostile();
        let json = json(&found);
        assert!(!has_controls(&json) && !json.contains('\n'), "{json:?}");
        let read: Value = serde_json::from_str(&json).expect("JSON");
        let original: Value = serde_json::from_slice(&found.body).expect("JSON");
        assert_eq!(read, original);
    }

    #[test]
    fn a_line_tells_who_what_why_and_how_often() {
        let mut found = hostile();
        let letter = found.letter.as_mut().expect("a letter");
        letter.message = "x".repeat(1000);
        letter.request = json!({"userID": "u", "repo": "o/n", "applicationID": "a"})
            .as_object()
            .cloned()
            .expect("an object");
        let line = line(&found);
        let words: Vec<_> = line.split_whitespace().collect();
        assert!(words[2].ends_with(['s', 'm', 'h', 'd']), "{line}");
        assert_eq!(
            [&words[..2], &words[3..9]].concat(),
            ["id", "2026-01-02T03:04:05Z", "u", "a", "(o/n)", "builder", "build_failed", "1"]
        );
        assert_eq!(words[9].chars().count(), MESSAGE);
    }

    #[test]
    fn what_is_no_letter_is_listed_as_that() {
        let found = found(&json!([1]));
        assert!(line(&found).contains("not a letter"));
        assert_eq!(json(&found), r#"{"buildID":"id","bytes":3}"#);
    }
}
