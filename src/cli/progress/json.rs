//! Progress for programs: one JSON object a line.

use std::io::Write;
use std::time::Duration;

use image_builder_actors::model::build_log::BuildEvent;
use serde_json::{Value, json};

use super::steps::{State, Steps};
use super::{Ended, Failed, Show};

/// Writes objects.
pub(super) struct JsonLines<W>(W);

impl<W: Write> JsonLines<W> {
    pub(super) fn new(out: W) -> Self {
        Self(out)
    }

    fn write(&mut self, value: &Value) {
        let _ = writeln!(self.0, "{value}").and_then(|()| self.0.flush());
    }
}

impl<W: Write> Show for JsonLines<W> {
    fn event(&mut self, at: Duration, place: Option<usize>, event: &BuildEvent, steps: &Steps) {
        let (step, at) = (place.map(|place| place + 1), rounded(at));
        let name = place.map(|place| &steps.all[place].name);
        let value = match event {
            BuildEvent::Note(text) => {
                json!({"type": "note", "at": at, "step": step, "text": text})
            }
            BuildEvent::StepStarted { .. } => {
                json!({"type": "started", "at": at, "step": step, "name": name})
            }
            BuildEvent::StepFinished { cached, took, .. } => json!({
                "type": "finished", "at": at, "step": step, "name": name, "cached": cached,
                "seconds": rounded(*took),
            }),
            BuildEvent::Output(line) => {
                json!({"type": "output", "at": at, "step": step, "text": line})
            }
        };
        self.write(&value);
    }

    fn tick(&mut self, _: Duration, _: &Steps) {}

    fn end(&mut self, at: Duration, ended: &Ended, failed: Failed, steps: &Steps) {
        for (place, step) in steps.all.iter().enumerate() {
            let (kind, took) = match step.state {
                State::Failed(took) => ("failed", took),
                State::Cancelled(took) => ("cancelled", took),
                State::Running | State::Done(_) | State::Cached => continue,
            };
            self.write(&json!({
                "type": kind, "at": rounded(at), "step": place + 1, "name": step.name,
                "seconds": rounded(took),
            }));
        }
        let outcome = match ended {
            Ended::Done => "done",
            Ended::Failed(_) => "failed",
            Ended::Stopped => "stopped",
        };
        let failed = failed.map(|place| place + 1);
        self.write(&json!({
            "type": "ended", "at": rounded(at), "outcome": outcome, "failedStep": failed,
        }));
    }
}

/// Seconds, to the millisecond.
fn rounded(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}
