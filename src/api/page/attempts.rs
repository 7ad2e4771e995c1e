//! A build's attempts, as they are shown.

use image_builder_actors::model::fault::StageName;
use image_builder_actors::ports::build_store::{StoredAttempt, StoredBuild};
use serde_json::Value;
use time::OffsetDateTime;

use super::view::{When, took};
use crate::text::plain;

/// Attempts that are shown: those that came last.
const SHOWN: usize = 20;
/// How wide a bar is, in its own units.
const WIDTH: i64 = 1000;

/// One attempt.
pub(super) struct Attempt {
    pub(super) number: u32,
    pub(super) worker: String,
    pub(super) begun: When,
    pub(super) took: String,
    /// `running`, `failed` or `done`.
    pub(super) state: &'static str,
    pub(super) stages: Vec<Stage>,
    pub(super) fault: Option<Fault>,
}

/// What a stage had of an attempt.
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) took: String,
    /// Where its bar begins, of [`WIDTH`].
    pub(super) from: i64,
    pub(super) width: i64,
    /// Whether it has the build in hand now.
    pub(super) is_now: bool,
}

pub(super) struct Fault {
    pub(super) reason: &'static str,
    pub(super) stage: &'static str,
    pub(super) message: String,
    pub(super) step: String,
    /// Whether it counts against the total of tries.
    pub(super) counted: bool,
}

/// The last attempts of a build, oldest first, and how many were before them.
pub(super) fn attempts(build: &StoredBuild) -> (Vec<Attempt>, usize) {
    let left_out = build.attempts.len().saturating_sub(SHOWN);
    let shown = build.attempts[left_out..].iter();
    (shown.map(|attempt| Attempt::of(attempt, OffsetDateTime::now_utc())).collect(), left_out)
}

impl Attempt {
    fn of(stored: &StoredAttempt, now: OffsetDateTime) -> Self {
        let until = stored.ended_at.unwrap_or(now);
        let whole = (until - stored.begun_at).whole_milliseconds().max(1);
        let at = |moment: OffsetDateTime| {
            let passed = (moment - stored.begun_at).whole_milliseconds();
            i64::try_from(passed * i128::from(WIDTH) / whole).unwrap_or(0).clamp(0, WIDTH)
        };
        let ends = stored.stages.iter().skip(1).map(|(_, begun_at)| *begun_at).chain([until]);
        let stages = stored.stages.iter().zip(ends).map(|((stage, begun_at), end)| {
            let (from, to) = (at(*begun_at), at(end));
            Stage {
                name: name_of(*stage),
                took: took(end - *begun_at),
                from,
                width: (to - from).max(2),
                is_now: false,
            }
        });
        let mut stages: Vec<_> = stages.collect();
        if let (None, Some(last)) = (stored.ended_at, stages.last_mut()) {
            last.is_now = true;
        }
        let fault = stored.fault.as_ref().map(|fault| Fault {
            reason: fault.reason.as_str(),
            stage: name_of(fault.stage),
            message: plain(&fault.message),
            step: fault.step.as_deref().map(plain).unwrap_or_default(),
            counted: fault.counted,
        });
        Self {
            number: stored.number,
            worker: plain(&stored.worker),
            begun: When::new(stored.begun_at),
            took: took(until - stored.begun_at),
            state: match (&fault, stored.ended_at) {
                (Some(_), _) => "failed",
                (None, None) => "running",
                (None, Some(_)) => "done",
            },
            stages,
            fault,
        }
    }
}

/// What is done in a stage.
fn name_of(stage: StageName) -> &'static str {
    match stage {
        StageName::Listener => "check",
        StageName::Connector => "fetch",
        StageName::Builder => "build",
        StageName::Pusher => "push",
    }
}

/// Why a build failed, or why it waits, by its reason.
pub(super) fn reason_of(build: &StoredBuild) -> Option<String> {
    match &build.outcome {
        Some(outcome) => {
            let told: Value = serde_json::from_str(outcome).ok()?;
            Some(plain(told["reason"].as_str()?))
        }
        None => {
            let fault = build.attempts.last()?.fault.as_ref()?;
            Some(fault.reason.as_str().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    fn attempt(stages: &[(StageName, i64)], ended_after: Option<i64>) -> StoredAttempt {
        let at = |seconds| OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds);
        StoredAttempt {
            number: 1,
            worker: "here".to_owned(),
            begun_at: at(0),
            stages: stages.iter().map(|(stage, seconds)| (*stage, at(*seconds))).collect(),
            ended_at: ended_after.map(at),
            fault: None,
        }
    }

    #[test]
    fn a_stage_lasts_until_the_next_one_begins() {
        let stages = [(StageName::Connector, 0), (StageName::Builder, 2), (StageName::Pusher, 8)];
        let shown = Attempt::of(&attempt(&stages, Some(10)), OffsetDateTime::now_utc());
        let bars: Vec<_> =
            shown.stages.iter().map(|it| (it.name, it.from, it.width, it.is_now)).collect();
        assert_eq!(
            bars,
            [("fetch", 0, 200, false), ("build", 200, 600, false), ("push", 800, 200, false)]
        );
        assert_eq!((shown.state, shown.stages[1].took.as_str()), ("done", "6.0\u{a0}s"));
    }

    #[test]
    fn the_last_stage_of_one_that_runs_goes_on() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::seconds(4);
        let shown = Attempt::of(&attempt(&[(StageName::Builder, 0)], None), now);
        assert_eq!((shown.state, shown.took.as_str()), ("running", "4.0\u{a0}s"));
        assert!(shown.stages[0].is_now && shown.stages[0].width == WIDTH);
        // Its clock may be another one's.
        let early = OffsetDateTime::UNIX_EPOCH - Duration::seconds(4);
        let shown = Attempt::of(&attempt(&[(StageName::Builder, 0)], None), early);
        assert_eq!(shown.took, "0.0\u{a0}s");
    }
}
