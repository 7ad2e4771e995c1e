//! What becomes of a failed try: a pure function of its history, and of where it is settled.
//!
//! | settled | the last fault | the request | disposition |
//! |---|---|---|---|
//! | where a worker had it in hand | may be tried again | any | fail queue |
//! | | final | is delivered for the first time, or cannot be read | give up |
//! | | final | may have made an image in an earlier delivery | fail queue |
//! | from the fail queue | decided to be tried again | any | build queue, after the delay |
//! | | decided to be given up, or the broker gave up on it | can be read | look for its image first |
//! | | the same | cannot be read | give up |
//! | | to wait, uncounted, and as old as a request may get | any | too old: its image is looked for, then it is given up as `timeout` |
//!
//! A look that finds the image ends in `image.ready`, for no build is notified both as ready and as failed; one that finds none in
//! giving up; one for which there is no capacity waits in the build queue, since both outcomes are still
//! possible; one that fails otherwise in giving up, for a registry that answers with errors may do so for
//! ever, and the tries are used up.
//!
//! What the fail queue's decision is:
//!
//! | kind of the last fault | decision |
//! |---|---|
//! | user, refused, withdrawn | give up |
//! | build | give up where the try before failed for the same reason at the same step, or where the tries are used up; else retry with backoff |
//! | service | give up where the tries are used up, or where the engine died of the job; else retry with backoff |
//! | crash | counted: as service; not counted (the job only waited): wait |
//! | capacity | wait: no try is counted |
//!
//! The reasons, one by one. "Fault" is the word of the notification, "counted" says whether a try is,
//! and "pauses" whether the listener does. A capacity fault that concerns only some builds
//! ([`Scope`](crate::model::scope::Scope)) pauses nobody; one of the whole service does where the worker
//! itself sees the lack. Where it sees none twice in a row, the fault is the build's own and counts, as
//! [`as_service`] says.
//!
//! An engine that dies is one of these lacks for all that it had in hand, and no try is counted. Whatever may
//! have killed it runs alone from then on; one that it dies of again while it runs alone is given up, and
//! both tries count ([`of_engine_death`]).
//!
//! | reason | kind | fault | counted | first failure | the same again | pauses |
//! |---|---|---|---|---|---|---|
//! | `invalid_request`, `unsupported`, `repository_not_found`, `unauthorized`, `ref_not_found`, `forbidden_source`, `no_build_plan`, `invalid_plan`, `too_large`, `secret_in_image`, `out_of_memory` | user | user | yes | final | | no |
//! | `build_failed`, `build_timeout` | build | user | yes | retried | final | no |
//! | `forge_failed`, `engine_failed`, `registry_failed`, `timeout` | service | service | yes | retried | retried, up to the total of tries | no |
//! | `registry_refused` | refused | service | yes | final | | no |
//! | `rate_limited`, `engine_down`, `registry_down`, `forge_down`, `disk_low` | capacity | never notified | no | waits | waits | if it concerns the whole service |
//! | `crashed` | crash | service | if it was worked on | retried, or waits | retried up to the total of tries, or waits | no |
//! | `cancelled`, `superseded` | withdrawn | none | if a try was begun | final | | no |

use std::time::Duration;

use crate::model::fault::{Fault, Kind, Reason, StageName};
use crate::model::history::{Attempt, History};

/// When a failed build is tried again, and how often (`RETRY_…`).
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// The total of tries.
    pub max_attempts: u32,
    pub initial_delay: Duration,
    /// At least 1.
    pub multiplier: f64,
    pub max_delay: Duration,
    /// The age, from when it was first in hand, at which a request waits no more without a try that
    /// counts (`JOB_MAX_AGE`).
    pub max_age: Duration,
}

/// What is to be done with a request whose try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// To the fail queue, where it is decided on with all that is known by then.
    FailQueue,
    /// To the build queue, after this delay.
    TryAgain(Duration),
    /// The image of an earlier delivery is looked for, and the request given up only if there is none.
    LookFirst,
    /// It is notified as failed, and a dead letter is kept.
    GiveUp,
    /// It has waited for too long: given up for that, unless there is an image after all.
    TooOld,
}

/// Where a failed try is settled, and what is known there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedIn {
    /// In a worker's hands.
    Worker {
        /// Whether nobody can have had the request in hand before.
        first: bool,
        /// Whether the request can be read.
        readable: bool,
    },
    /// In the fail queue.
    FailQueue {
        /// Whether the broker gave up on it: it took its worker down each time it was delivered.
        given_up: bool,
        /// Whether the request can be read.
        readable: bool,
    },
}

/// An engine that died this often with a job in hand died of it: all tries but the first ran alone.
const MOST_ENGINE_DEATHS: usize = 2;

/// Whether a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Try again after this delay.
    Retry(Duration),
    /// The same, for a try that was not counted.
    Wait(Duration),
    /// It failed for good.
    GiveUp,
}

impl RetryPolicy {
    /// There are no more delays than this.
    const MOST_RUNGS: usize = 24;

    /// The delays that there are, ascending.
    pub fn rungs(&self) -> Vec<Duration> {
        let mut rungs = Vec::new();
        let mut delay = self.initial_delay.min(self.max_delay);
        while rungs.len() < Self::MOST_RUNGS - 1 && delay < self.max_delay {
            rungs.push(delay);
            let next = whole_millis(delay.mul_f64(self.multiplier));
            if next <= delay {
                return rungs;
            }
            delay = next;
        }
        rungs.push(self.max_delay.max(self.initial_delay.min(self.max_delay)));
        rungs
    }

    /// The delay before the try that follows the `failed`-th one (from 1), and at least `floor`.
    /// A floor beyond the longest delay gives that one.
    pub fn delay(&self, failed: u32, floor: Option<Duration>) -> Duration {
        let rungs = self.rungs();
        let last = rungs.len() - 1;
        let by_count = (failed.saturating_sub(1) as usize).min(last);
        let by_floor =
            floor.map_or(0, |floor| rungs.iter().position(|rung| *rung >= floor).unwrap_or(last));
        rungs[by_count.max(by_floor)]
    }

    /// The delay of a request that waits uncounted for the `waited`-th time in a row: as [`Self::delay`],
    /// but back in time for it to be told that it is too old.
    pub fn wait(&self, history: &History, waited: u32, floor: Option<Duration>) -> Duration {
        let left = self.max_age.saturating_sub(history.age());
        let rungs = self.rungs();
        let longest = rungs.iter().rfind(|rung| **rung <= left).unwrap_or(&rungs[0]);
        self.delay(waited, floor).min(*longest)
    }

    /// Whether a request may not wait any longer without a try that counts.
    pub fn is_too_old(&self, history: &History) -> bool {
        history.age() >= self.max_age
    }

    /// What a request is given up with that has waited for too long.
    pub fn too_old(&self, history: &History) -> Fault {
        let last = history.attempts.iter().rfind(|attempt| !attempt.counted);
        let stage = last.map_or(StageName::Listener, |last| last.stage);
        let waited_for = last.map_or("its turn", |last| match (last.reason, last.stage) {
            (Reason::RateLimited, StageName::Pusher) => "the registry to take more requests",
            (Reason::RateLimited, _) => "the server of the repository to take more requests",
            (Reason::ForgeDown, _) => "the server of the repository, which cannot be reached",
            (Reason::EngineDown, _) => "the container engine, which cannot be reached",
            (Reason::RegistryDown, _) => "the registry, which cannot be reached",
            (Reason::DiskLow, _) => "room on the disk of the build service",
            _ => "its turn",
        });
        let age = Duration::from_secs(self.max_age.as_secs().max(1));
        let message = format!(
            "The build has waited for {} in all, and is given up. It waited for {waited_for}.",
            spoken(age)
        );
        Fault::new(stage, Reason::Timeout, message)
    }

    /// What becomes of a request whose last failed try is the last of its history.
    pub fn dispose(&self, history: &History, failed: FailedIn) -> Disposition {
        let last = history.attempts.last();
        let is_final = last.is_some_and(|last| is_final(last.reason.kind()));
        match failed {
            FailedIn::Worker { .. } if !is_final => Disposition::FailQueue,
            FailedIn::Worker { first, readable } if first || !readable => Disposition::GiveUp,
            FailedIn::Worker { .. } => Disposition::FailQueue,
            FailedIn::FailQueue { given_up, readable } => match self.decide(history) {
                Decision::Wait(_) if !given_up && self.is_too_old(history) => Disposition::TooOld,
                Decision::Retry(delay) | Decision::Wait(delay) if !given_up => {
                    Disposition::TryAgain(delay)
                }
                _ if readable => Disposition::LookFirst,
                _ => Disposition::GiveUp,
            },
        }
    }

    /// Decides on a job whose last failed try is the last of its history.
    pub fn decide(&self, history: &History) -> Decision {
        let Some(last) = history.attempts.last() else {
            return Decision::Wait(self.delay(1, None));
        };
        let floor = last.retry_after.map(Duration::from_secs);
        match last.reason.kind() {
            Kind::User | Kind::Refused | Kind::Withdrawn => Decision::GiveUp,
            _ if last.counted && history.engine_deaths() >= MOST_ENGINE_DEATHS => Decision::GiveUp,
            _ if !last.counted => {
                Decision::Wait(self.wait(history, uncounted_in_a_row(history), floor))
            }
            Kind::Build if same_as_before(history) => Decision::GiveUp,
            _ if history.counted() >= self.max_attempts => Decision::GiveUp,
            _ => Decision::Retry(self.delay(history.counted(), floor)),
        }
    }
}

/// What the death of the engine with the job in hand is: nobody's fault the first time. The next try ran alone,
/// so what the engine died of then is this job.
pub fn of_engine_death(fault: Fault, history: &History) -> Fault {
    if history.engine_deaths() + 1 < MOST_ENGINE_DEATHS {
        return fault;
    }
    let message = "The container engine crashed twice while it worked on this build, the second time while \
                   the worker had nothing else in hand: the build is not tried again. Look at what it did \
                   last; if that is nothing unusual, ask those who run the build service.";
    Fault { reason: Reason::EngineFailed, message: message.to_owned(), ..fault }
}

/// Whether a failure of this kind counts against the total of tries.
pub fn counts(kind: Kind) -> bool {
    kind != Kind::Capacity
}

/// What a lack of capacity of the service is that the worker itself sees nothing of: a failure of the
/// service in this build.
pub fn as_service(fault: Fault) -> Fault {
    let reason = match (fault.reason, fault.stage) {
        (Reason::ForgeDown, _) => Reason::ForgeFailed,
        (Reason::EngineDown, _) => Reason::EngineFailed,
        (Reason::RegistryDown, _) => Reason::RegistryFailed,
        (_, StageName::Listener | StageName::Connector) => Reason::ForgeFailed,
        (_, StageName::Builder) => Reason::EngineFailed,
        (_, StageName::Pusher) => Reason::RegistryFailed,
    };
    Fault { reason, ..fault }
}

/// Whether a failure of this kind is final whatever was before it.
pub fn is_final(kind: Kind) -> bool {
    matches!(kind, Kind::User | Kind::Refused | Kind::Withdrawn)
}

fn uncounted_in_a_row(history: &History) -> u32 {
    history.attempts.iter().rev().take_while(|attempt| !attempt.counted).count() as u32
}

fn same_as_before(history: &History) -> bool {
    let mut counted = history.attempts.iter().rev().filter(|attempt| attempt.counted);
    let failure = |attempt: &Attempt| (attempt.reason, attempt.step.clone());
    match (counted.next(), counted.next()) {
        (Some(last), Some(before)) => failure(last) == failure(before),
        _ => false,
    }
}

/// A length of time in its largest unit that is whole: "24 h".
fn spoken(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        _ if seconds.is_multiple_of(3600) => format!("{} h", seconds / 3600),
        _ if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

/// Queues count time in milliseconds.
fn whole_millis(delay: Duration) -> Duration {
    Duration::from_millis(delay.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::model::notification::Culprit;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 5,
            initial_delay: Duration::from_secs(10),
            multiplier: 3.0,
            max_delay: Duration::from_secs(600),
            max_age: Duration::from_secs(24 * 60 * 60),
        }
    }

    fn history(faults: &[(Reason, &str)]) -> History {
        let mut history = History::new(OffsetDateTime::UNIX_EPOCH);
        for (reason, step) in faults {
            let fault = Fault::new(StageName::Builder, *reason, "").at_step(*step);
            history.record(&fault, counts(fault.kind()));
        }
        history
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn the_ladder_rises_by_the_multiplier_to_its_last_rung() {
        assert_eq!(policy().rungs(), [10, 30, 90, 270, 600].map(secs));
        let flat = RetryPolicy { multiplier: 1.0, ..policy() };
        assert_eq!(flat.rungs(), [secs(10)]);
        let single = RetryPolicy { max_delay: secs(10), ..policy() };
        assert_eq!(single.rungs(), [secs(10)]);
    }

    /// What the policy says of a reason.
    struct Row {
        reason: Reason,
        kind: Kind,
        /// Whom the notification names; `None` = nobody.
        fault: Option<Culprit>,
        counted: bool,
        /// After the first failure, the second of the same, and the last that there may be.
        decisions: [Decision; 3],
    }

    fn row(reason: Reason) -> Row {
        use Decision::{GiveUp, Retry, Wait};
        use Reason as R;
        let (kind, fault, counted, decisions) = match reason {
            R::InvalidRequest
            | R::Unsupported
            | R::RepositoryNotFound
            | R::Unauthorized
            | R::RefNotFound
            | R::ForbiddenSource
            | R::NoBuildPlan
            | R::InvalidPlan
            | R::TooLarge
            | R::SecretInImage
            | R::OutOfMemory => (Kind::User, Some(Culprit::User), true, [GiveUp; 3]),
            R::BuildFailed | R::BuildTimeout => {
                let decisions = [Retry(secs(10)), GiveUp, GiveUp];
                (Kind::Build, Some(Culprit::User), true, decisions)
            }
            R::ForgeFailed | R::EngineFailed | R::RegistryFailed | R::Timeout => {
                let decisions = [Retry(secs(10)), Retry(secs(30)), GiveUp];
                (Kind::Service, Some(Culprit::Service), true, decisions)
            }
            R::RegistryRefused => (Kind::Refused, Some(Culprit::Service), true, [GiveUp; 3]),
            R::RateLimited | R::EngineDown | R::RegistryDown | R::ForgeDown | R::DiskLow => {
                let decisions = [Wait(secs(10)), Wait(secs(30)), Wait(secs(600))];
                (Kind::Capacity, None, false, decisions)
            }
            R::Crashed => {
                let decisions = [Retry(secs(10)), Retry(secs(30)), GiveUp];
                (Kind::Crash, Some(Culprit::Service), true, decisions)
            }
            R::Cancelled | R::Superseded => (Kind::Withdrawn, None, true, [GiveUp; 3]),
        };
        Row { reason, kind, fault, counted, decisions }
    }

    #[test]
    fn every_reason_has_its_row() {
        for Row { reason, kind, fault, counted, decisions } in Reason::ALL.iter().copied().map(row)
        {
            assert_eq!(reason.kind(), kind, "{reason}");
            if kind != Kind::Capacity {
                assert_eq!(Culprit::of(reason), fault, "{reason}");
            }
            assert_eq!(counts(kind), counted, "{reason}");
            assert_eq!(is_final(kind), decisions[0] == Decision::GiveUp, "{reason}");
            for (failures, decision) in [1, 2, 5].into_iter().zip(decisions) {
                let past = history(&vec![(reason, "RUN a"); failures]);
                assert_eq!(policy().decide(&past), decision, "{reason} after {failures}");
                let expected = if counted { failures as u32 } else { 0 };
                assert_eq!(past.counted(), expected, "{reason}");
            }
        }
    }

    #[test]
    fn what_becomes_of_a_failed_try_is_the_table() {
        use Disposition::{FailQueue, GiveUp, LookFirst, TryAgain};
        let worker = |first, readable| FailedIn::Worker { first, readable };
        let fail_queue = |given_up, readable| FailedIn::FailQueue { given_up, readable };
        let again = [(Reason::RegistryFailed, "")];
        let last = [(Reason::RepositoryNotFound, "")];
        let table = [
            (&again, worker(true, true), FailQueue),
            (&again, worker(false, true), FailQueue),
            (&last, worker(true, true), GiveUp),
            (&last, worker(true, false), GiveUp),
            (&last, worker(false, false), GiveUp),
            (&last, worker(false, true), FailQueue),
            (&again, fail_queue(false, true), TryAgain(secs(10))),
            (&again, fail_queue(false, false), TryAgain(secs(10))),
            (&again, fail_queue(true, true), LookFirst),
            (&again, fail_queue(true, false), GiveUp),
            (&last, fail_queue(false, true), LookFirst),
            (&last, fail_queue(false, false), GiveUp),
        ];
        for (faults, failed, disposition) in table {
            let past = history(faults);
            assert_eq!(policy().dispose(&past, failed), disposition, "{faults:?}, {failed:?}");
        }
    }

    #[test]
    fn a_lack_that_the_worker_sees_nothing_of_is_a_failure_that_counts() {
        for reason in Reason::ALL.iter().filter(|reason| reason.kind() == Kind::Capacity) {
            for stage in StageName::ALL {
                let fault = as_service(Fault::new(stage, *reason, "why"));
                assert_eq!((fault.kind(), fault.stage), (Kind::Service, stage), "{reason}");
                assert_eq!(fault.message, "why");
            }
        }
        let pushed = as_service(Fault::new(StageName::Pusher, Reason::EngineDown, ""));
        assert_eq!(pushed.reason, Reason::EngineFailed, "whatever it was done for");
    }

    /// A request that was first in hand this long ago, and has waited ever since.
    fn waiting_for(age: Duration) -> History {
        let mut past = history(&[(Reason::RegistryDown, ""); 100]);
        past.since = Some(OffsetDateTime::now_utc() - age);
        past
    }

    #[test]
    fn what_an_engine_dies_of_twice_is_given_up_and_any_other_death_of_it_is_waited_out() {
        let mut past = history(&[]);
        let first = of_engine_death(Fault::of_dead_engine(StageName::Builder, "gone"), &past);
        assert_eq!((first.reason, first.message.as_str()), (Reason::EngineDown, "gone"));
        past.record(&first, counts(first.kind()));
        assert_eq!(policy().decide(&past), Decision::Wait(secs(10)));
        assert_eq!(past.counted(), 0);

        // What the job fails with by itself has its tries as ever.
        let mut other = past.clone();
        other.record(&Fault::new(StageName::Pusher, Reason::RegistryFailed, ""), true);
        assert_eq!(policy().decide(&other), Decision::Retry(secs(10)));

        let second = of_engine_death(Fault::of_dead_engine(StageName::Builder, "gone"), &past);
        assert_eq!((second.reason, second.kind()), (Reason::EngineFailed, Kind::Service));
        past.record(&second, counts(second.kind()));
        assert_eq!(policy().decide(&past), Decision::GiveUp);
        assert_eq!(past.counted(), 2);
    }

    #[test]
    fn a_request_that_has_waited_for_too_long_is_told_what_it_waited_for() {
        let fail_queue = FailedIn::FailQueue { given_up: false, readable: true };
        let old = waiting_for(policy().max_age);
        assert_eq!(policy().dispose(&old, fail_queue), Disposition::TooOld);
        let fault = policy().too_old(&old);
        assert_eq!((fault.stage, fault.reason), (StageName::Builder, Reason::Timeout));
        let message = "The build has waited for 24 h in all, and is given up. It waited for the \
                       registry, which cannot be reached.";
        assert_eq!(fault.message, message);
        // What is tried, and counted, has its own end.
        let mut tried = old;
        tried.record(&Fault::new(StageName::Builder, Reason::EngineFailed, ""), true);
        let again = Disposition::TryAgain(secs(10));
        assert_eq!(policy().dispose(&tried, fail_queue), again);
    }

    #[test]
    fn a_waiting_request_is_back_by_the_time_it_is_too_old() {
        let left = |left| waiting_for(policy().max_age - secs(left));
        assert_eq!(policy().decide(&left(1000)), Decision::Wait(secs(600)));
        assert_eq!(policy().decide(&left(500)), Decision::Wait(secs(270)));
        assert_eq!(policy().decide(&left(5)), Decision::Wait(secs(10)), "the shortest there is");
    }

    #[test]
    fn a_length_of_time_is_said_in_its_largest_whole_unit() {
        for (seconds, said) in [(86_400, "24 h"), (5_400, "90 min"), (90, "90 s")] {
            assert_eq!(spoken(secs(seconds)), said);
        }
    }

    #[test]
    fn a_crash_of_a_job_that_only_waited_is_waited_out() {
        let mut past = history(&[]);
        let crashed = Fault::new(StageName::Listener, Reason::Crashed, "");
        for delay in [10, 30, 90, 270, 600, 600] {
            past.record(&crashed, false);
            assert_eq!(policy().decide(&past), Decision::Wait(secs(delay)));
        }
        assert_eq!(past.counted(), 0);
        past.record(&crashed, true);
        assert_eq!(policy().decide(&past), Decision::Retry(secs(10)));
    }

    #[test]
    fn the_same_build_failure_at_the_same_step_twice_in_a_row_is_final() {
        let same = history(&[(Reason::BuildFailed, "RUN a"), (Reason::BuildFailed, "RUN a")]);
        assert_eq!(policy().decide(&same), Decision::GiveUp);
        let other = history(&[(Reason::BuildFailed, "RUN a"), (Reason::BuildFailed, "RUN b")]);
        assert_eq!(policy().decide(&other), Decision::Retry(secs(30)));
    }

    #[test]
    fn a_service_failure_is_tried_up_to_the_total_of_tries() {
        let tries = |n| history(&vec![(Reason::RegistryFailed, ""); n]);
        assert_eq!(policy().decide(&tries(4)), Decision::Retry(secs(270)));
        assert_eq!(policy().decide(&tries(5)), Decision::GiveUp);
    }

    #[test]
    fn waiting_for_capacity_uses_up_no_try() {
        let waits = history(&[(Reason::RegistryDown, ""); 100]);
        assert_eq!(policy().decide(&waits), Decision::Wait(secs(600)));
        assert_eq!(waits.counted(), 0);
    }

    #[test]
    fn a_failing_service_is_left_alone_for_as_long_as_it_asks() {
        assert_eq!(policy().delay(1, Some(secs(31))), secs(90));
        assert_eq!(policy().delay(4, Some(secs(31))), secs(270));
        assert_eq!(policy().delay(1, Some(secs(6000))), secs(600));
    }
}
