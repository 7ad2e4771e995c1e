//! Live progress: the frames of a terminal.
//!
//! ```text
//! [+] Building 3.4s (3/4)
//!  => [1/4] FROM docker.io/library/debian:bookworm-slim                 0.1s
//!  => CACHED [2/4] COPY . .                                             0.0s
//!  => [3/4] RUN make                                                    3.2s
//!  => => # cc -c main.c
//! ```
//!
//! A running step has its last lines below it, dimmed; they go when it ends.

use std::io::{self, Stderr, Write};
use std::time::Duration;

use image_builder_actors::model::build_log::BuildEvent;
use unicode_width::UnicodeWidthStr;

use super::screen::{Line, Screen, Size, Tone};
use super::steps::{State, Step, Steps};
use super::{Ended, Failed, Show, excerpt, seconds};
use crate::telemetry::text::{cut, fit};

/// Last lines of a running step that are shown.
const LAST_LINES: usize = 6;
/// Narrower than this, nothing can be told apart.
const NARROWEST: usize = 20;

/// Draws frames.
pub(super) struct Live<W: Write> {
    screen: Screen<W>,
}

impl Live<Stderr> {
    pub(super) fn on_stderr() -> Self {
        Self { screen: Screen::of_stderr(io::stderr()) }
    }
}

impl<W: Write> Show for Live<W> {
    // Drawn at the next tick.
    fn event(&mut self, _: Duration, _: Option<usize>, _: &BuildEvent, _: &Steps) {}

    fn tick(&mut self, at: Duration, steps: &Steps) {
        let size = self.screen.size();
        self.screen.draw(&frame(at, None, steps, size), size);
    }

    fn end(&mut self, at: Duration, ended: &Ended, failed: Failed, steps: &Steps) {
        // The last frame stays, so it is as long as it is and scrolls.
        let Size { columns, .. } = self.screen.size();
        let size = Size { columns, rows: usize::MAX };
        self.screen.draw(&frame(at, Some(ended), steps, size), size);
        let text = failed.map(|failed| excerpt(&steps.all[failed], usize::MAX));
        self.screen.finish(&text.unwrap_or_default());
    }
}

/// The lines that show where a build is.
pub(super) fn frame(at: Duration, ended: Option<&Ended>, steps: &Steps, size: Size) -> Vec<Line> {
    let columns = size.columns.max(NARROWEST);
    let over = steps.all.iter().filter(|step| step.state != State::Running).count();
    let outcome = match ended {
        None => "",
        Some(Ended::Done) => " FINISHED",
        Some(Ended::Failed(_)) => " FAILED",
        Some(Ended::Stopped) => " STOPPED",
    };
    let all = steps.all.len();
    let heading = format!("[+] Building {} ({over}/{all}){outcome}", seconds(at));
    let mut lines = vec![Line { tone: Tone::Heading, text: cut(&heading, columns) }];
    let mut notes = steps.notes.iter().peekable();
    for (place, step) in steps.all.iter().enumerate() {
        while let Some((_, note)) = notes.next_if(|(before, _)| *before <= place) {
            lines.push(of_note(note, columns));
        }
        lines.push(of_step(step, at, columns));
        if step.state == State::Running {
            let last = step.output.len().saturating_sub(LAST_LINES);
            lines.extend(step.output[last..].iter().map(|(_, line)| Line {
                tone: Tone::Dim,
                text: cut(&format!(" => => # {line}"), columns),
            }));
        }
    }
    lines.extend(notes.map(|(_, note)| of_note(note, columns)));
    shorten(&mut lines, size.rows);
    lines
}

fn of_note(note: &str, columns: usize) -> Line {
    Line { tone: Tone::Done, text: cut(&format!(" -- {note}"), columns) }
}

fn of_step(step: &Step, at: Duration, columns: usize) -> Line {
    let (tone, word, took) = match step.state {
        State::Running => (Tone::Running, "", at.saturating_sub(step.began)),
        State::Done(took) => (Tone::Done, "", took),
        State::Cached => (Tone::Done, "CACHED ", Duration::ZERO),
        State::Failed(took) => (Tone::Failed, "ERROR ", took),
        State::Cancelled(took) => (Tone::Dim, "CANCELED ", took),
    };
    let took = format!(" {}", seconds(took));
    let name = format!(" => {word}{}", step.name);
    let text = format!("{}{took}", fit(&name, columns - took.width().min(columns)));
    Line { tone, text }
}

/// Leaves out what is over, oldest first, and then what running steps wrote, until it fits into so many rows.
fn shorten(lines: &mut Vec<Line>, rows: usize) {
    for tone in [Tone::Done, Tone::Dim, Tone::Running] {
        while lines.len() > rows.max(2) {
            let Some(place) = lines.iter().position(|line| line.tone == tone) else { break };
            lines.remove(place);
        }
    }
}
