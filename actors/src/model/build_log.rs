//! A build's progress as a stream of typed events, cleaned once and heard by whoever listens.

mod held;
mod tail;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::model::fault::StageName;
use crate::model::secret::{Redactor, Secret, with_colours, without_escapes};
use held::HeldLines;
use tail::Tail;

/// Something that a stage has to say about a job in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildEvent {
    /// What a stage is about to do, or how far it is.
    Note(String),
    /// A step of the build began.
    StepStarted { name: String },
    /// A step of the build ended, after so long.
    StepFinished { name: String, cached: bool, took: Duration },
    /// A line that the build wrote.
    Output(String),
}

/// The step of a build that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRef {
    /// Counted from 1 in the order in which the build's steps began.
    pub number: u32,
    /// Whether it is the engine's housekeeping, and no step of the Dockerfile's own.
    pub internal: bool,
    /// Which of its streams wrote the output: 1 = standard output, 2 = standard error.
    pub stream: i64,
}

/// The log target of what builds write, so that it can be filtered by itself.
pub const OUTPUT_TARGET: &str = "image_builder::output";

/// The log target of notes, and of the steps' beginnings and ends.
pub const NOTE_TARGET: &str = module_path!();

/// Hears what a build has to say, as it happens: cut to a bounded length, and free of the request's
/// secrets and of control characters.
pub trait BuildLogListener: fmt::Debug + Send + Sync {
    /// Whether output is heard in its colours: with these escape sequences of a terminal, and no others.
    fn wants_colours(&self) -> bool {
        false
    }

    /// Called inside the job's span, by whoever works on the job: it must not wait for anything.
    fn hear(&self, event: &BuildEvent);

    /// Called in its place for an event of a step. Who does not care which one it is hears the same as ever:
    /// all but the beginnings and ends of the engine's housekeeping.
    fn hear_of_step(&self, step: StepRef, event: &BuildEvent) {
        if !step.internal || matches!(event, BuildEvent::Output(_)) {
            self.hear(event);
        }
    }
}

/// Where a job's events go: to each of its listeners, of which the log and the [tail](Self::tail) are
/// two. Clones share them.
#[derive(Debug, Clone)]
pub struct BuildLog {
    build_id: Arc<str>,
    application_id: Option<Arc<str>>,
    /// Build id, application, stage and attempt.
    span: tracing::Span,
    redactor: Redactor,
    held: Arc<Mutex<HeldLines>>,
    tail: Arc<Tail>,
    listeners: Vec<Arc<dyn BuildLogListener>>,
    storing: Arc<watch::Sender<bool>>,
}

/// The span that a job's log lines stand in; `application_id` is recorded where it is known. Its level is the highest one, so that the lines that a
/// filter lets through never lose it.
pub fn span(build_id: &str, stage: &str, attempt: u32) -> tracing::Span {
    let application_id = tracing::field::Empty;
    tracing::error_span!(parent: None, "job", build_id, stage, attempt, application_id)
}

impl BuildLog {
    /// The failure notice holds this many lines at the most.
    pub const TAIL_LINES: usize = 100;
    /// The failure notice's lines hold this many bytes together at the most.
    pub const TAIL_BYTES: usize = 16 * 1024;
    /// A longer line is cut here, in bytes.
    pub const LINE_BYTES: usize = 2 * 1024;
    /// A longer message about a failure is cut here, in bytes.
    pub const MESSAGE_BYTES: usize = 4 * 1024;

    /// A job that its log and its tail listen to.
    pub fn new(build_id: &str, redactor: Redactor) -> Self {
        let span = span(build_id, StageName::Listener.as_str(), 1);
        let tail = Arc::<Tail>::default();
        let listeners: Vec<Arc<dyn BuildLogListener>> = vec![Arc::new(LogLines), tail.clone()];
        let (build_id, held, storing) = (build_id.into(), Arc::default(), Arc::default());
        Self { build_id, application_id: None, span, redactor, held, tail, listeners, storing }
    }

    /// The same job, of this application.
    pub fn of_application(mut self, application_id: &str) -> Self {
        self.application_id = Some(application_id.into());
        self.span.record("application_id", application_id);
        self
    }

    /// The same job, heard by one more.
    pub fn with_listener(mut self, listener: Arc<dyn BuildLogListener>) -> Self {
        self.listeners.push(listener);
        self
    }

    /// The same job, in this stage and at this try (from 1).
    pub fn enter(&mut self, stage: StageName, attempt: u32) {
        self.release_all();
        self.span = span(&self.build_id, stage.as_str(), attempt);
        self.span.record("application_id", self.application_id.as_deref());
    }

    /// From now on, this secret is taken out as well.
    pub fn keep_secret(&mut self, secret: Secret) {
        self.redactor = self.redactor.and(secret);
    }

    /// The span that all of the job's log lines stand in.
    pub fn span(&self) -> tracing::Span {
        self.span.clone()
    }

    /// Says that all steps of the build are done, and only its image is left to be stored.
    pub fn storing(&self) {
        self.storing.send_replace(true);
    }

    /// Waits until that is said.
    pub async fn until_storing(&self) {
        let mut storing = self.storing.subscribe();
        // The sender lives in `self`.
        let _ = storing.wait_for(|storing| *storing).await;
    }

    /// Passes an event on to every listener, cleaned.
    pub fn tell(&self, event: BuildEvent) {
        self.hold_or_pass_on(None, event);
    }

    /// Passes an event of a step on to every listener, cleaned.
    pub fn tell_of_step(&self, step: StepRef, event: BuildEvent) {
        self.hold_or_pass_on(Some(step), event);
    }

    /// Keeps a line of output for the failure notice, which no listener is to hear.
    pub fn keep_for_tail(&self, step: StepRef, line: &str) {
        let lines = self.held().add(&self.redactor, Some(step), line);
        for line in self.redacted_lines(lines) {
            self.tail.output(Some(step), self.clean(&line));
        }
    }

    /// Says which step the build failed at: what it wrote last goes before all else in the failure notice.
    pub fn failed_at(&self, step: StepRef) {
        self.release_all();
        self.tail.failed_at(step);
    }

    /// A line that may hold a secret's beginning waits for those that complete it.
    fn hold_or_pass_on(&self, step: Option<StepRef>, event: BuildEvent) {
        match event {
            BuildEvent::Output(line) => {
                let lines =
                    self.held().add(&self.redactor, step, line.trim_end_matches(['\r', '\n']));
                self.pass_on_lines(step, lines);
            }
            BuildEvent::StepFinished { .. } => {
                let lines = self.held().take(step);
                self.pass_on_lines(step, lines);
                self.pass_on(step, event);
            }
            event => self.pass_on(step, event),
        }
    }

    /// Passes on what is held back: nothing will complete it.
    fn release_all(&self) {
        let held = std::mem::take(&mut *self.held());
        for (step, lines) in held.into_lines() {
            self.pass_on_lines(step, Some(lines));
        }
    }

    fn held(&self) -> MutexGuard<'_, HeldLines> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_on_lines(&self, step: Option<StepRef>, lines: Option<String>) {
        for line in self.redacted_lines(lines) {
            self.pass_on(step, BuildEvent::Output(line));
        }
    }

    fn redacted_lines(&self, lines: Option<String>) -> Vec<String> {
        let Some(lines) = lines else { return Vec::new() };
        self.redactor.redact(&lines).split('\n').map(str::to_owned).collect()
    }

    fn pass_on(&self, step: Option<StepRef>, event: BuildEvent) {
        let mut coloured = None;
        let event = match event {
            BuildEvent::Note(text) => BuildEvent::Note(self.clean(&text)),
            BuildEvent::StepStarted { name } => BuildEvent::StepStarted { name: self.clean(&name) },
            BuildEvent::StepFinished { name, cached, took } => {
                BuildEvent::StepFinished { name: self.clean(&name), cached, took }
            }
            BuildEvent::Output(line) => {
                coloured = self.coloured(&line).map(BuildEvent::Output);
                BuildEvent::Output(self.clean(&line))
            }
        };
        let _inside = self.span.enter();
        for listener in &self.listeners {
            let coloured = coloured.as_ref().filter(|_| listener.wants_colours());
            let event = coloured.unwrap_or(&event);
            match step {
                Some(step) => listener.hear_of_step(step, event),
                None => listener.hear(event),
            }
        }
    }

    pub fn note(&self, text: impl Into<String>) {
        self.tell(BuildEvent::Note(text.into()));
    }

    /// The last lines of the build, oldest first: those of the step that it [failed at](Self::failed_at), and others
    /// as far as there is room.
    pub fn tail(&self) -> Vec<String> {
        self.release_all();
        self.tail.lines()
    }

    /// `text` as it may be shown: without the request's secrets and escape sequences, and of a bounded length.
    pub fn presentable(&self, text: &str) -> String {
        let text = self.redact(text);
        let lines: Vec<_> = text.lines().map(without_escapes).collect();
        cut(lines.join("\n"), Self::MESSAGE_BYTES)
    }

    /// `text` without the request's secrets: for what others wrote, such as an engine's error.
    pub fn redact(&self, text: &str) -> String {
        self.redactor.redact(text)
    }

    fn clean(&self, text: &str) -> String {
        cut(without_escapes(&self.redactor.redact(text.trim_end())), Self::LINE_BYTES)
    }

    /// The same in its colours, where it has any and they hold no secret.
    fn coloured(&self, text: &str) -> Option<String> {
        if !text.contains(['\u{1b}', '\u{9b}']) {
            return None;
        }
        let coloured = with_colours(&self.redactor.redact(text.trim_end()), Self::LINE_BYTES);
        (self.redactor.redact(&coloured) == coloured).then_some(coloured)
    }
}

/// Writes each event to the log.
#[derive(Debug)]
struct LogLines;

impl BuildLogListener for LogLines {
    fn hear(&self, event: &BuildEvent) {
        match event {
            BuildEvent::Note(text) => tracing::info!("{text}"),
            BuildEvent::StepStarted { name } => tracing::info!(step = name, "step started"),
            BuildEvent::StepFinished { name, cached, took } => {
                let seconds = took.as_millis() as f64 / 1000.0;
                tracing::info!(step = name, cached, seconds, "step finished");
            }
            BuildEvent::Output(line) => tracing::info!(target: OUTPUT_TARGET, "{line}"),
        }
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
    use crate::testing::draw::Draw;

    #[test]
    fn the_tail_is_bounded_in_lines_and_bytes_and_holds_no_secret() {
        let progress = BuildLog::new("b", Redactor::new([Secret::new("s3cr3t")]));
        for n in 0..1_000 {
            progress.tell(BuildEvent::Output(format!("{n} s3cr3t {}", "é".repeat(5_000))));
        }
        let tail = progress.tail();
        assert!(tail.len() <= BuildLog::TAIL_LINES);
        assert!(tail.iter().map(String::len).sum::<usize>() <= BuildLog::TAIL_BYTES);
        assert!(tail.last().is_some_and(|line| line.starts_with("999 [secret] é")));
    }

    #[test]
    fn a_message_is_shown_without_secrets_and_orders_to_a_terminal_and_cut() {
        let log = BuildLog::new("b", Redactor::new([Secret::new("s3cr3t")]));
        let message = "step \u{1b}[31m`s3\u{1b}[0mcr3t`\u{7} failed:\nexit code 1";
        assert_eq!(log.presentable(message), "step `[secret]` failed:\nexit code 1");
        assert!(log.presentable(&"x".repeat(1 << 20)).len() < BuildLog::MESSAGE_BYTES + 10);
    }

    #[derive(Debug, Default)]
    struct Third(Mutex<Vec<BuildEvent>>);

    impl BuildLogListener for Third {
        fn hear(&self, event: &BuildEvent) {
            self.0.lock().expect("no test panics with it").push(event.clone());
        }
    }

    #[test]
    fn every_listener_hears_all_events_in_order_and_cleaned() {
        let third = Arc::new(Third::default());
        let mut progress =
            BuildLog::new("b", Redactor::new([Secret::new("s3cr3t")])).with_listener(third.clone());
        let later = progress.clone();
        progress.note("with s3cr3t");
        progress.enter(StageName::Builder, 1);
        let step = |name: &str| name.to_owned();
        progress.tell(BuildEvent::StepStarted { name: step("RUN echo s3cr3t") });
        progress.tell(BuildEvent::Output("\u{1b}[31ms3cr3t\t!\r\n".to_owned()));
        later.tell(BuildEvent::Output("x".repeat(BuildLog::LINE_BYTES + 1)));
        progress.tell(BuildEvent::StepFinished {
            name: step("RUN echo s3cr3t"),
            cached: true,
            took: Duration::ZERO,
        });

        let long = cut("x".repeat(BuildLog::LINE_BYTES + 1), BuildLog::LINE_BYTES);
        let heard = third.0.lock().expect("no test panics with it");
        assert_eq!(
            *heard,
            [
                BuildEvent::Note("with [secret]".to_owned()),
                BuildEvent::StepStarted { name: step("RUN echo [secret]") },
                BuildEvent::Output("[secret]\t!".to_owned()),
                BuildEvent::Output(long.clone()),
                BuildEvent::StepFinished {
                    name: step("RUN echo [secret]"),
                    cached: true,
                    took: Duration::ZERO,
                },
            ]
        );
        assert_eq!(progress.tail(), ["=> RUN echo [secret]", "[secret]\t!", &long]);
    }

    /// Keeps the output in its colours.
    #[derive(Debug, Default)]
    struct Coloured(Mutex<Vec<String>>);

    impl BuildLogListener for Coloured {
        fn wants_colours(&self) -> bool {
            true
        }

        fn hear(&self, event: &BuildEvent) {
            let BuildEvent::Output(line) = event else { return };
            self.0.lock().expect("no test panics with it").push(line.clone());
        }
    }

    /// What is heard of these lines in colours, and without.
    fn both(redactor: &Redactor, lines: &[&str]) -> (Vec<String>, Vec<String>) {
        let coloured = Arc::new(Coloured::default());
        let log = BuildLog::new("b", redactor.clone()).with_listener(coloured.clone());
        for line in lines {
            log.tell(BuildEvent::Output((*line).to_owned()));
        }
        let plain = log.tail();
        let coloured = std::mem::take(&mut *coloured.0.lock().expect("no test panics with it"));
        (coloured, plain)
    }

    #[test]
    fn colours_are_heard_by_who_asks_for_them() {
        let redactor = Redactor::new([Secret::new("s3cr3t")]);
        let (coloured, plain) =
            both(&redactor, &["\u{1b}[32mok\u{1b}[K s3\u{1b}[31mcr3t\u{1b}[0m end"]);
        assert_eq!(coloured, ["\u{1b}[0;32mok [secret]\u{1b}[0m end"]);
        assert_eq!(plain, ["ok [secret] end"]);
    }

    #[test]
    fn no_secret_survives_whatever_colours_are_put_inside_it() {
        let mut draw = Draw::new(1);
        let secrets = [
            "correct horse battery",
            "1;31m",
            "[0;32m",
            "0m31m0;32",
            "a1b2;3m4[0m",
            "31313131",
            "ö€x1",
        ];
        let mut kept = 0;
        let redactors = secrets.map(|secret| Redactor::new([Secret::new(secret)]));
        for round in 0..1_000 {
            let at = round % secrets.len();
            let (secret, redactor) = (secrets[at], &redactors[at]);
            let mut written = String::new();
            for c in format!("x{secret}y1;{secret}").chars() {
                match draw.below(6) {
                    0 => written.push_str(&format!("\u{1b}[{}m", draw.below(110))),
                    1 => written.push_str(&format!(
                        "\u{1b}[{};{}m",
                        draw.below(2),
                        30 + draw.below(8)
                    )),
                    2 => written.push_str(
                        ["\u{1b}[K", "\u{9b}m", "\u{1b}[38;5;9m", "\u{1b}[31", "\u{1b}"]
                            [draw.below(5)],
                    ),
                    _ => {}
                }
                written.push(c);
            }
            let (coloured, plain) = both(redactor, &[&written]);
            assert_eq!(coloured.len(), plain.len());
            for (coloured, plain) in coloured.iter().zip(&plain) {
                assert_eq!(&without_escapes(coloured), plain, "{written:?}");
                let literal = coloured.replace('\u{1b}', "");
                assert!(
                    !literal.contains(secret) && !plain.contains(secret),
                    "{written:?}: {coloured:?}"
                );
                kept += usize::from(coloured != plain);
            }
        }
        assert!(kept > 200, "colours are kept: {kept}");
    }

    #[test]
    fn what_is_held_back_comes_before_the_end_of_its_step() {
        let third = Arc::new(Third::default());
        let log = BuildLog::new("b", Redactor::new([Secret::new("correct horse battery")]))
            .with_listener(third.clone());
        let end = BuildEvent::StepFinished {
            name: "RUN x".to_owned(),
            cached: false,
            took: Duration::ZERO,
        };
        log.tell(BuildEvent::Output("correct".to_owned()));
        assert!(third.0.lock().expect("no test panics with it").is_empty());
        log.tell(end.clone());
        let heard = third.0.lock().expect("no test panics with it");
        assert_eq!(*heard, [BuildEvent::Output("correct".to_owned()), end]);
    }

    #[test]
    fn of_the_engines_housekeeping_only_its_output_is_heard_by_who_does_not_ask_for_more() {
        let progress = BuildLog::new("b", Redactor::default());
        for (number, internal) in [(1, true), (2, false)] {
            let step = StepRef { number, internal, stream: 1 };
            let name = format!("step {number}");
            progress.tell_of_step(step, BuildEvent::StepStarted { name });
            progress.tell_of_step(step, BuildEvent::Output(format!("output {number}")));
        }
        assert_eq!(progress.tail(), ["output 1", "=> step 2", "output 2"]);
    }
}
