//! From the worker's log lines to what a person wants to see of them.

use serde_json::{Map, Value};

use crate::screen::Colour;

/// A line of the worker's log.
#[derive(Debug, Default)]
pub(crate) struct Line {
    level: String,
    message: String,
    target: String,
    span: Map<String, Value>,
    fields: Map<String, Value>,
}

impl Line {
    /// Something that is no JSON, such as the report of a panic, is all message.
    pub(crate) fn read(text: &str) -> Self {
        let Ok(Value::Object(mut fields)) = serde_json::from_str(text) else {
            return Self { level: "ERROR".to_owned(), message: text.to_owned(), ..Self::default() };
        };
        let mut take = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (level, message, target) = (take("level"), take("message"), take("target"));
        let span = match fields.remove("span") {
            Some(Value::Object(span)) => span,
            _ => Map::new(),
        };
        Self { level, message, target, span, fields }
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field).or_else(|| self.span.get(field))?.as_str()
    }

    fn number(&self, field: &str) -> Option<f64> {
        self.fields.get(field).or_else(|| self.span.get(field))?.as_f64()
    }

    fn seconds(&self) -> String {
        self.number("seconds").map(|seconds| format!(" in {seconds:.1} s")).unwrap_or_default()
    }

    /// The build that the line is about.
    pub(crate) fn build_id(&self) -> Option<&str> {
        self.text("build_id").or_else(|| self.text("id"))
    }

    pub(crate) fn is_retry(&self) -> bool {
        self.message == "to be tried again"
    }

    pub(crate) fn is_notified(&self) -> bool {
        self.message == "notified"
    }

    /// Lines without a build are shown where they are about trouble.
    pub(crate) fn is_trouble(&self) -> bool {
        matches!(self.level.as_str(), "WARN" | "ERROR")
    }

    /// Where, in which colour, and what is to be shown.
    pub(crate) fn show(&self) -> (String, Colour, String) {
        let stage = self.text("stage").unwrap_or_default();
        let text = |field| self.text(field).unwrap_or("?");
        let (place, colour, shown) = match self.message.as_str() {
            message if self.target == "image_builder::output" => {
                ("", Colour::Dim, format!("  {message}"))
            }
            "job accepted" => ("listener", Colour::Plain, format!("accepted {}", text("repo"))),
            "source fetched" => {
                let commit = text("commit").get(..7).unwrap_or("?");
                (stage, Colour::Plain, format!("fetched commit {commit}{}", self.seconds()))
            }
            "build planned" => {
                let how = match self.text("builder") {
                    Some("nixpacks") => "no Dockerfile: planned with nixpacks".to_owned(),
                    builder => format!("plan: {}", builder.unwrap_or("?")),
                };
                (stage, Colour::Plain, how)
            }
            "step started" => (stage, Colour::Cyan, text("step").to_owned()),
            "step finished" if self.fields.get("cached") == Some(&Value::Bool(true)) => {
                (stage, Colour::Dim, format!("cached: {}", text("step")))
            }
            "step finished" => (stage, Colour::Dim, format!("done: {}", text("step"))),
            "image built" => (stage, Colour::Green, format!("image built{}", self.seconds())),
            "image is ready" => {
                ("pusher", Colour::Green, format!("in the registry as {}", text("digest")))
            }
            "to be tried again" => {
                let (wait, tries) = (self.number("delay_seconds"), self.number("attempts"));
                let wait = wait.unwrap_or_default();
                let tries = tries.unwrap_or_default();
                ("retry", Colour::Yellow, format!("try {tries} failed, again in {wait} s"))
            }
            message if message.starts_with("given up") => {
                let tries = self.number("attempts").unwrap_or_default();
                ("retry", Colour::Red, format!("given up after {tries} tries"))
            }
            "notified" => ("notifier", Colour::Green, "the manager has been told".to_owned()),
            message => {
                let colour = match self.level.as_str() {
                    "ERROR" => Colour::Red,
                    "WARN" => Colour::Yellow,
                    _ => Colour::Plain,
                };
                (stage, colour, message.to_owned())
            }
        };
        (place.to_owned(), colour, shown)
    }
}
