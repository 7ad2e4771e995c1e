//! What happened, as a sentence. Events that are not here are shown as they are, with their fields.

use serde_json::Value;

use super::super::fields::Fields;
use super::plain::short_id;

/// The fields that stand in front of a line.
const IN_FRONT: [&str; 5] = ["build_id", "application_id", "stage", "attempt", "actor"];

/// How an event is worded.
#[derive(Debug, Default)]
pub(super) struct Wording {
    pub(super) text: String,
    /// What stands behind it, less visible.
    pub(super) rest: Option<String>,
    /// The text is cut rather than wrapped.
    pub(super) one_line: bool,
    /// The text is somebody else's.
    pub(super) verbatim: bool,
    /// What matters most, or least, or in between.
    pub(super) weight: Weight,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// How far something is.
    Progress,
    #[default]
    Event,
    /// What became of a build.
    Outcome,
}

impl Wording {
    pub(super) fn of(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A line that a build wrote.
    pub(super) fn output(line: &str) -> Self {
        Self { verbatim: true, ..Self::of(format!("| {line}")) }
    }

    /// What a stage is about to do, or how far it is.
    pub(super) fn note(text: &str) -> Self {
        Self { weight: Weight::Progress, ..Self::of(text) }
    }

    fn outcome(text: String) -> Self {
        Self { weight: Weight::Outcome, ..Self::of(text) }
    }
}

/// Words an event, and takes the fields that its sentence holds; `None` = it is not shown.
pub(super) fn say(message: &str, fields: &mut Fields) -> Option<Wording> {
    let wording = match message {
        "starting" => {
            let [version, http, data] = take(fields, ["version", "http", "data_dir"]);
            Wording::of(format!(
                "starting image-builder {version} on http://{http}, data in {data}"
            ))
        }
        "connected to the broker" => {
            let [broker, connection] = take(fields, ["broker", "connection"]);
            let side = connection.rsplit(' ').next().unwrap_or_default().to_owned();
            Wording { rest: Some(side), ..Wording::of(format!("connected to {broker}")) }
        }
        "job accepted" => accepted(fields),
        "source fetched" => {
            let [version, commit] = take(fields, ["version", "commit"]);
            Wording::of(format!("fetched {version} at {commit} in {}", seconds(fields)))
        }
        "step finished" => {
            let [step, cached] = take(fields, ["step", "cached"]);
            let time = fields.take("seconds").and_then(|time| time.as_f64());
            let time = time.filter(|seconds| *seconds >= 0.05).map(duration);
            let rest = if cached == "true" { Some("cached".to_owned()) } else { time };
            Wording { rest, one_line: true, ..Wording::of(step) }
        }
        "cannot reach the broker yet" | "lost the broker" => {
            let [broker, reason, connection] = take(fields, ["broker", "reason", "connection"]);
            let side = connection.rsplit(' ').next().unwrap_or_default().to_owned();
            let text = format!("{message}, {broker}: {reason}");
            Wording { rest: Some(side), ..Wording::of(text) }
        }
        "cannot notify: trying again later" => {
            let [error, delay, _id] = take(fields, ["error", "delay_seconds", "webhook_id"]);
            let delay = duration(delay.parse().unwrap_or_default());
            Wording::of(format!("not notified, again in {delay}: {error}"))
        }
        "image built" => Wording::of(format!("built in {}", seconds(fields))),
        "image is ready" => {
            let [reference, digest, reused] = take(fields, ["reference", "digest", "reused"]);
            let reused = if reused == "true" { ", reused" } else { "" };
            let name = reference.rsplit_once(':').map_or(&*reference, |(name, _)| name);
            Wording::outcome(format!("ready in {}{reused}: {name}@{digest}", seconds(fields)))
        }
        "to be tried again" => {
            let [delay, tries] = take(fields, ["delay_seconds", "attempts"]);
            let delay = duration(delay.parse().unwrap_or_default());
            let after =
                if tries == "0" { String::new() } else { format!(", after {}", counted(&tries)) };
            Wording::of(format!("tried again in {delay}{after}"))
        }
        "notified" => {
            let [receiver, _id] = take(fields, ["receiver", "webhook_id"]);
            fields.take("status");
            Wording::of(format!("notified {receiver}"))
        }
        "no address is set for the container manager: only logged" => {
            nobody("CONTAINER_MANAGER_URL", fields)
        }
        "no address is set for the connector manager: only logged" => {
            nobody("CONNECTOR_MANAGER_URL", fields)
        }
        // What they say is said when they end.
        "step started" | "build planned" => return None,
        _ => other(message, fields),
    };
    Some(wording)
}

fn accepted(fields: &mut Fields) -> Wording {
    let [repo, revision, user] = take(fields, ["repo", "revision", "user_id"]);
    if fields.get("redeliveries").and_then(Value::as_u64) == Some(0) {
        fields.take("redeliveries");
    }
    let revision = match &*revision {
        "the default branch" => String::new(),
        revision => format!(", {revision}"),
    };
    let attempt = fields.get("attempt").and_then(Value::as_u64).unwrap_or(1);
    // Once in full, for whoever looks elsewhere for the short one.
    let id = fields.text("build_id").filter(|id| attempt == 1 && id.chars().count() > 8);
    let id = id.map(str::to_owned);
    let attempt = if attempt > 1 { format!(", try {attempt}") } else { String::new() };
    let user = if user.chars().count() > 20 { short_id(&user) } else { user };
    let wording = Wording::of(format!("accepted {repo}{revision} for {user}{attempt}"));
    Wording { rest: id, ..wording }
}

/// An outcome that is only logged; the summary of the build says the rest.
fn nobody(variable: &str, fields: &mut Fields) -> Wording {
    let kind = fields.take_text("type").unwrap_or_default();
    fields.clear_but(&IN_FRONT);
    Wording::of(format!("{kind} goes to nobody: {variable} is not set"))
}

/// Any other event: its reason belongs to the sentence, its figures stand behind it.
fn other(message: &str, fields: &mut Fields) -> Wording {
    let given_up = message.strip_prefix("given up: ");
    let mut text = match given_up {
        Some(why) => {
            let [tries, _user] = take(fields, ["attempts", "user_id"]);
            format!("given up after {}: {why}", counted(&tries))
        }
        None => message.to_owned(),
    };
    // The message names it.
    fields.take("step");
    fields.take("need");
    for name in ["detail", "error", "fault", "reason"] {
        let Some(why) = fields.take_text(name) else { continue };
        let said = format!("the {text}: ");
        let why = why.strip_prefix(&said).map(str::to_owned).unwrap_or(why);
        // An error that the message has in it already.
        if text.contains(&why) {
            continue;
        }
        let is_word = why.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        text = if is_word { format!("{text} ({why})") } else { format!("{text}: {why}") };
    }
    let weight = if given_up.is_some() { Weight::Outcome } else { Weight::Event };
    Wording { weight, ..Wording::of(text) }
}

fn take<const N: usize>(fields: &mut Fields, names: [&str; N]) -> [String; N] {
    names.map(|name| fields.take_text(name).unwrap_or_default())
}

fn seconds(fields: &mut Fields) -> String {
    duration(fields.take("seconds").and_then(|time| time.as_f64()).unwrap_or_default())
}

fn counted(tries: &str) -> String {
    if tries == "1" { "1 try".to_owned() } else { format!("{tries} tries") }
}

/// A time in the unit in which it is said.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..10 => format!("{} s", (seconds * 10.0).round() / 10.0),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min", (whole + 30) / 60),
        _ => format!("{} h", (whole + 1800) / 3600),
    }
}
