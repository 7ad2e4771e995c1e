//! Progress line after line, as BuildKit's client writes it into a log: `#5 [2/4] RUN make`,
//! `#5 0.31 cc main.c`, `#5 DONE 0.4s`.

use std::io::Write;
use std::time::Duration;

use image_builder_actors::model::build_log::BuildEvent;

use super::steps::{State, Steps};
use super::{Ended, Failed, Show, excerpt, seconds};

/// Lines of a failed step that are repeated at the end.
const LAST_LINES: usize = 20;

/// Writes lines.
pub(super) struct Plain<W> {
    out: W,
    /// The step whose lines were written last.
    current: Option<usize>,
}

impl<W: Write> Plain<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, current: None }
    }

    /// What is written for an event.
    fn lines(&mut self, step: Option<usize>, event: &BuildEvent, steps: &Steps) -> String {
        let Some(place) = step else {
            let gap = if self.current.take().is_some() { "\n" } else { "" };
            return match event {
                BuildEvent::Note(_) => {
                    let note = steps.notes.last().map_or("", |(_, note)| note);
                    format!("{gap}{note}\n")
                }
                _ => gap.to_owned(),
            };
        };
        let (step, number) = (&steps.all[place], place + 1);
        let mut text = String::new();
        if self.current != Some(place) {
            let gap = if self.current.is_some() { "\n" } else { "" };
            // Steps run at the same time, so a reader is told again whose lines follow.
            text = format!("{gap}#{number} {}\n", step.name);
            self.current = Some(place);
        }
        match event {
            BuildEvent::StepStarted { .. } => {}
            BuildEvent::StepFinished { .. } => {
                text.push_str(&format!("#{number} {}\n", ending(step.state)));
            }
            BuildEvent::Output(_) | BuildEvent::Note(_) => {
                if let Some((at, line)) = step.output.last() {
                    text.push_str(&format!("#{number} {:.2} {line}\n", at.as_secs_f64()));
                }
            }
        }
        text
    }

    fn write(&mut self, text: &str) {
        // Nobody reads any more: that is no reason to stop the build.
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

impl<W: Write> Show for Plain<W> {
    fn event(&mut self, _: Duration, step: Option<usize>, event: &BuildEvent, steps: &Steps) {
        let text = self.lines(step, event, steps);
        self.write(&text);
    }

    fn tick(&mut self, _: Duration, _: &Steps) {}

    fn end(&mut self, _: Duration, _: &Ended, failed: Failed, steps: &Steps) {
        let mut text = String::new();
        for (place, step) in steps.all.iter().enumerate() {
            if matches!(step.state, State::Failed(_) | State::Cancelled(_)) {
                text.push_str(&format!("#{} {}\n", place + 1, ending(step.state)));
            }
        }
        if let Some(place) = failed {
            text.push_str(&excerpt(&steps.all[place], LAST_LINES));
        }
        self.write(&text);
    }
}

fn ending(state: State) -> String {
    match state {
        State::Running => String::new(),
        State::Cached => "CACHED".to_owned(),
        State::Done(took) => format!("DONE {}", seconds(took)),
        State::Failed(took) => format!("ERROR {}", seconds(took)),
        State::Cancelled(took) => format!("CANCELED {}", seconds(took)),
    }
}
