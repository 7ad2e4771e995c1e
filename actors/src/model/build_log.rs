//! A build's progress as a stream of typed events, written to the log as it happens.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::fault::StageName;
use crate::model::secret::Redactor;

/// Something that a stage has to say about a job in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildEvent {
    /// A stage tells what it is about to do, or how far it is.
    Note(String),
    /// A step of the build began.
    StepStarted { name: String },
    /// A step of the build ended.
    StepFinished { name: String, cached: bool },
    /// A line that the build wrote.
    Output(String),
}

/// The log target of what builds write, so that it can be filtered by itself.
pub const OUTPUT_TARGET: &str = "image_builder::output";

/// Where a job's events go: to the log inside the job's span (build id, stage, attempt), and the
/// last lines into memory for the failure notice. Clones share the same lines.
#[derive(Debug, Clone)]
pub struct BuildLog {
    build_id: Arc<str>,
    span: tracing::Span,
    redactor: Redactor,
    tail: Arc<Mutex<Tail>>,
}

/// The span that a job's log lines stand in. Its level is the highest one, so that the lines that a
/// filter lets through never lose it.
pub fn span(build_id: &str, stage: &str, attempt: u32) -> tracing::Span {
    tracing::error_span!(parent: None, "job", build_id, stage, attempt)
}

#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
}

impl BuildLog {
    /// The failure notice holds this many lines at the most.
    pub const TAIL_LINES: usize = 100;
    /// The failure notice's lines hold this many bytes together at the most.
    pub const TAIL_BYTES: usize = 16 * 1024;
    /// A longer line is cut here, in bytes.
    pub const LINE_BYTES: usize = 2 * 1024;

    pub fn new(build_id: &str, redactor: Redactor) -> Self {
        let span = span(build_id, StageName::Listener.as_str(), 1);
        Self { build_id: build_id.into(), span, redactor, tail: Arc::default() }
    }

    /// The same job, in this stage and at this try (from 1).
    pub fn enter(&mut self, stage: StageName, attempt: u32) {
        self.span = span(&self.build_id, stage.as_str(), attempt);
    }

    /// The span that all of the job's log lines stand in.
    pub fn span(&self) -> tracing::Span {
        self.span.clone()
    }

    /// Tells an event: its text is cut to a bounded length and freed of the request's secrets.
    pub fn tell(&self, event: BuildEvent) {
        let _inside = self.span.enter();
        match event {
            BuildEvent::Note(text) => {
                tracing::info!("{}", self.clean(&text));
            }
            BuildEvent::StepStarted { name } => {
                let name = self.clean(&name);
                tracing::info!(step = name, "step started");
                self.keep(format!("=> {name}"));
            }
            BuildEvent::StepFinished { name, cached } => {
                let name = self.clean(&name);
                tracing::info!(step = name, cached, "step finished");
            }
            BuildEvent::Output(line) => {
                let line = self.clean(&line);
                tracing::info!(target: OUTPUT_TARGET, "{line}");
                self.keep(line);
            }
        }
    }

    pub fn note(&self, text: impl Into<String>) {
        self.tell(BuildEvent::Note(text.into()));
    }

    /// The last lines of the build, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }

    /// `text` without the request's secrets: for what others wrote, such as an engine's error.
    pub fn redact(&self, text: &str) -> String {
        self.redactor.redact(text)
    }

    fn clean(&self, text: &str) -> String {
        let text = self.redactor.redact(text.trim_end());
        let text: String = text.chars().filter(|c| *c == '\t' || !c.is_control()).collect();
        cut(text, Self::LINE_BYTES)
    }

    fn keep(&self, line: String) {
        let mut tail = self.lock();
        tail.bytes += line.len();
        tail.lines.push_back(line);
        while tail.lines.len() > Self::TAIL_LINES || tail.bytes > Self::TAIL_BYTES {
            let Some(gone) = tail.lines.pop_front() else { break };
            tail.bytes -= gone.len();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `text`, cut to `longest` bytes at a character's boundary; a cut is marked.
pub fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let mut end = longest;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" […]");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::secret::Secret;

    #[test]
    fn the_tail_is_bounded_in_lines_and_bytes_and_holds_no_secret() {
        let progress = BuildLog::new("b", Redactor::new([Secret::new("s3cr3t")]));
        for n in 0..10_000 {
            progress.tell(BuildEvent::Output(format!("{n} s3cr3t {}", "é".repeat(5_000))));
        }
        let tail = progress.tail();
        assert!(tail.len() <= BuildLog::TAIL_LINES);
        assert!(tail.iter().map(String::len).sum::<usize>() <= BuildLog::TAIL_BYTES);
        assert!(tail.last().is_some_and(|line| line.starts_with("9999 [secret] é")));
    }
}
