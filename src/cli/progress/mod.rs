//! A build's progress on the standard error stream, as people know it from BuildKit's own client.
//!
//! | file | what is in it |
//! |---|---|
//! | `steps.rs` | what is known of each step |
//! | `plain.rs` | line after line, for logs |
//! | `live.rs` | frames for a terminal: which lines one has |
//! | `screen.rs` | drawing frames over each other |
//! | `json.rs` | one event a line, for programs |
//!
//! A thread of its own shows what it is sent, so that a slow terminal never holds up the build.

mod json;
mod live;
mod plain;
mod screen;
mod steps;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use image_builder_actors::model::build_log::{BuildEvent, BuildLogListener, StepRef};

use self::json::JsonLines;
use self::live::Live;
use self::plain::Plain;
use self::steps::{Failed, Key, Steps};

/// A terminal is drawn at most this often.
const BETWEEN_FRAMES: Duration = Duration::from_millis(100);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressMode {
    /// Live on a terminal, else plain
    Auto,
    /// Line after line
    Plain,
    /// Live, drawn over and over
    Tty,
    /// One JSON object a line
    Json,
}

/// How the whole ended, for whoever watched it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    /// At this step, where one is known.
    Failed(Option<String>),
    Stopped,
}

/// What the thread that shows is sent.
enum Message {
    Heard { at: Instant, step: Option<Key>, event: BuildEvent },
    Ended { at: Instant, ended: Ended },
}

/// Progress that is being shown, until its end is told.
#[derive(Debug)]
pub(crate) struct Progress {
    sender: Sender<Message>,
    thread: Option<JoinHandle<()>>,
    /// Parts of the work that are no step of the build's own.
    parts: AtomicU32,
}

/// A part of the work that is shown as a step, such as a push.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    number: u32,
    begun: Instant,
}

impl Progress {
    /// Begins to show. `None` = nothing but the output of a step that fails.
    pub(crate) fn start(mode: Option<ProgressMode>) -> Self {
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            match mode {
                None => show(&receiver, begun, Quiet),
                Some(ProgressMode::Json) => show(&receiver, begun, JsonLines::new(io::stderr())),
                Some(ProgressMode::Plain) => show(&receiver, begun, Plain::new(io::stderr())),
                Some(ProgressMode::Tty) => show(&receiver, begun, Live::on_stderr()),
                Some(ProgressMode::Auto) if io::stderr().is_terminal() => {
                    show(&receiver, begun, Live::on_stderr());
                }
                Some(ProgressMode::Auto) => show(&receiver, begun, Plain::new(io::stderr())),
            }
        });
        Self { sender, thread: Some(thread), parts: AtomicU32::new(0) }
    }

    /// Hears what a build has to say.
    pub(crate) fn listener(&self) -> Arc<dyn BuildLogListener> {
        Arc::new(Listener(self.sender.clone()))
    }

    /// Begins a part of the work. What is noted until it ends belongs to it.
    pub(crate) fn begin(&self, name: impl Into<String>) -> Part {
        let number = self.parts.fetch_add(1, Ordering::Relaxed);
        let part = Part { number, begun: Instant::now() };
        self.tell(part, BuildEvent::StepStarted { name: name.into() });
        part
    }

    pub(crate) fn done(&self, part: Part, name: impl Into<String>) {
        let (name, took) = (name.into(), part.begun.elapsed());
        self.tell(part, BuildEvent::StepFinished { name, cached: false, took });
    }

    fn tell(&self, part: Part, event: BuildEvent) {
        let step = Some(Key::Part(part.number));
        // A thread that can show nothing any more is no reason to stop a build.
        let _ = self.sender.send(Message::Heard { at: Instant::now(), step, event });
    }

    /// Shows how it ended, and waits until all is shown.
    pub(crate) fn end(mut self, ended: Ended) {
        let _ = self.sender.send(Message::Ended { at: Instant::now(), ended });
        if let Some(thread) = self.thread.take() {
            // Its panic was told by itself.
            let _ = thread.join();
        }
    }
}

/// Passes events on to the thread that shows them.
#[derive(Debug)]
struct Listener(Sender<Message>);

impl Listener {
    fn pass_on(&self, step: Option<Key>, event: &BuildEvent) {
        let _ = self.0.send(Message::Heard { at: Instant::now(), step, event: event.clone() });
    }
}

impl BuildLogListener for Listener {
    fn hear(&self, event: &BuildEvent) {
        self.pass_on(None, event);
    }

    fn hear_of_step(&self, step: StepRef, event: &BuildEvent) {
        self.pass_on(Some(Key::Step(step.number)), event);
    }
}

/// One way to show progress. Times are counted from the beginning.
trait Show {
    /// Something happened; `steps` knows of it already. `step` is what it was about.
    fn event(&mut self, at: Duration, step: Option<usize>, event: &BuildEvent, steps: &Steps);

    /// Time has passed.
    fn tick(&mut self, at: Duration, steps: &Steps);

    /// All is over: `steps` knows how each of them ended. The step that failed, if one did.
    fn end(&mut self, at: Duration, ended: &Ended, failed: Option<usize>, steps: &Steps);
}

/// Shows what comes in until it has ended.
fn show(receiver: &Receiver<Message>, begun: Instant, mut to: impl Show) {
    let mut steps = Steps::default();
    let mut next = begun;
    loop {
        match receiver.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Message::Heard { at, step, event }) => {
                let at = at.saturating_duration_since(begun);
                let step = steps.take(at, step, &event);
                to.event(at, step, &event, &steps);
            }
            Ok(Message::Ended { at, ended }) => {
                let at = at.saturating_duration_since(begun);
                let failed = steps.end(at, &ended);
                to.end(at, &ended, failed, &steps);
                return;
            }
            Err(RecvTimeoutError::Timeout) => {
                to.tick(begun.elapsed(), &steps);
                next = Instant::now() + BETWEEN_FRAMES;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Shows nothing but the output of a step that fails.
struct Quiet;

impl Show for Quiet {
    fn event(&mut self, _: Duration, _: Option<usize>, _: &BuildEvent, _: &Steps) {}

    fn tick(&mut self, _: Duration, _: &Steps) {}

    fn end(&mut self, _: Duration, _: &Ended, failed: Option<usize>, steps: &Steps) {
        let text = failed.map(|failed| excerpt(&steps.all[failed], usize::MAX));
        let _ = io::stderr().write_all(text.unwrap_or_default().as_bytes());
    }
}

/// The last lines of a step that failed, between two rules; empty = it wrote none.
fn excerpt(step: &steps::Step, most: usize) -> String {
    if step.output.is_empty() {
        return String::new();
    }
    let left_out = step.output.len().saturating_sub(most);
    let mut text = format!("------\n > {}:\n", step.name);
    if left_out > 0 {
        text.push_str(&format!("[{left_out} earlier lines]\n"));
    }
    for (at, line) in &step.output[left_out..] {
        text.push_str(&format!("{:.2} {line}\n", at.as_secs_f64()));
    }
    text.push_str("------\n");
    text
}

/// Seconds as people read them.
fn seconds(took: Duration) -> String {
    format!("{:.1}s", took.as_secs_f64())
}

#[cfg(test)]
mod tests;
