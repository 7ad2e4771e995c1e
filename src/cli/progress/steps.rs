//! What is known of each step of a build.

use std::time::Duration;

use image_builder_actors::model::build_log::BuildEvent;

use super::Ended;
use crate::telemetry::text::plain;

/// Which step something is about: one of the build, or a part of the work around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Step(u32),
    Part(u32),
}

/// A step, as far as it has come.
#[derive(Debug)]
pub(super) struct Step {
    key: Key,
    pub(super) name: String,
    /// When it began.
    pub(super) began: Duration,
    pub(super) state: State,
    /// What it wrote, each line with its time since the step began.
    pub(super) output: Vec<(Duration, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Done(Duration),
    Cached,
    Failed(Duration),
    /// It was still running when another one failed, or when all was stopped.
    Cancelled(Duration),
}

/// A step that failed, by its place among all.
pub(super) type Failed = Option<usize>;

/// All steps, in the order in which they began, and what was noted beside them.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) all: Vec<Step>,
    /// With how many steps had begun by then.
    pub(super) notes: Vec<(usize, String)>,
}

impl Steps {
    /// Takes an event in. Returns the place of the step that it is about.
    pub(super) fn take(
        &mut self,
        at: Duration,
        key: Option<Key>,
        event: &BuildEvent,
    ) -> Option<usize> {
        let of_key = |steps: &Self| steps.all.iter().position(|step| Some(step.key) == key);
        match event {
            BuildEvent::StepStarted { name } => {
                let (name, output) = (plain(name), Vec::new());
                let key = key.unwrap_or(Key::Step(0));
                self.all.push(Step { key, name, began: at, state: State::Running, output });
                Some(self.all.len() - 1)
            }
            BuildEvent::StepFinished { name, cached, took } => {
                let place = of_key(self)?;
                let step = &mut self.all[place];
                step.name = plain(name);
                step.state = if *cached { State::Cached } else { State::Done(*took) };
                Some(place)
            }
            BuildEvent::Output(line) => {
                let place = of_key(self)?;
                self.write(place, at, line);
                Some(place)
            }
            BuildEvent::Note(text) => {
                let Some(place) = self.running_part() else {
                    self.notes.push((self.all.len(), plain(text)));
                    return None;
                };
                self.write(place, at, text);
                Some(place)
            }
        }
    }

    fn write(&mut self, place: usize, at: Duration, line: &str) {
        let step = &mut self.all[place];
        step.output.push((at.saturating_sub(step.began), plain(line)));
    }

    /// The part of the work that notes belong to now.
    fn running_part(&self) -> Option<usize> {
        self.all
            .iter()
            .rposition(|step| matches!(step.key, Key::Part(_)) && step.state == State::Running)
    }

    /// Settles what becomes of the steps that still run. Returns the one that failed.
    pub(super) fn end(&mut self, at: Duration, ended: &Ended) -> Failed {
        let running = |step: &Step| step.state == State::Running;
        let failed = match ended {
            Ended::Failed(name) => {
                let name = name.as_deref().map(plain);
                let named = |step: &Step| running(step) && Some(&step.name) == name.as_ref();
                let named = self.all.iter().rposition(named);
                named.or_else(|| self.all.iter().rposition(running))
            }
            Ended::Done | Ended::Stopped => None,
        };
        for (place, step) in self.all.iter_mut().enumerate().filter(|(_, step)| running(step)) {
            let took = at.saturating_sub(step.began);
            step.state = match ended {
                // The engine's last word on a step may be the image itself.
                Ended::Done => State::Done(took),
                _ if failed == Some(place) => State::Failed(took),
                _ => State::Cancelled(took),
            };
        }
        failed
    }
}
