//! Who has to wait for what, while everybody else goes on: a forge that one user's token, one
//! repository or one host has asked for too much is left alone by these alone.
//!
//! A hold lasts for as long as the other side asked, else longer at each repetition. When it is over,
//! one job goes first and finds out whether the lack is: until that is known, the others wait on.
//! The table is this worker's own, and forgets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::fault::Reason;
use crate::model::scope::Scope;

/// Longest hold where the other side does not say how long.
const LONGEST: Duration = Duration::from_secs(60);
/// Longest hold where it does.
const LONGEST_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How long the others wait at the most for the job that goes first.
const GOES_FIRST: Duration = Duration::from_secs(15);
/// A scope that was not held again for so long begins anew.
const MEMORY: Duration = Duration::from_secs(10 * 60);
/// Holds that are remembered.
const MOST: usize = 10_000;

/// The holds of this worker. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Holds(Arc<Mutex<HashMap<Scope, Hold>>>);

#[derive(Debug)]
struct Hold {
    reason: Reason,
    until: Instant,
    /// How often in a row the lack was found.
    found: u32,
    /// Whether it is over, and one job finds out.
    one_goes_first: bool,
}

/// A job has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub scope: Scope,
    pub reason: Reason,
    /// How long yet.
    pub wait: Duration,
}

impl Holds {
    /// Holds up all whom the scope names, for as long as was `asked`. Where nobody said how long, `backoff`
    /// does, by how many times in a row the lack was found.
    pub fn hold(
        &self,
        scope: &Scope,
        reason: Reason,
        asked: Option<Duration>,
        backoff: impl FnOnce(u32) -> Duration,
    ) {
        let now = Instant::now();
        let mut holds = self.lock();
        let earlier = holds.get(scope).filter(|hold| !hold.is_forgotten(now));
        // Jobs that were under way together find the same lack: that is one.
        let is_known = earlier.is_some_and(|hold| now < hold.until && !hold.one_goes_first);
        let found = earlier.map_or(0, |hold| hold.found) + u32::from(!is_known);
        let wait = match asked {
            Some(asked) => asked.min(LONGEST_PATIENCE),
            None => backoff(found).min(LONGEST),
        };
        let until = match earlier {
            Some(hold) if is_known => hold.until.max(now + wait),
            _ => now + wait,
        };
        if !is_known {
            tracing::warn!(
                reason = reason.as_str(),
                scope = scope.kind(),
                seconds = wait.as_secs_f64(),
                "held up: {scope}"
            );
        }
        make_room(&mut holds, now);
        holds.insert(scope.clone(), Hold { reason, until, found, one_goes_first: false });
    }

    /// Whether a job that all of these concern has to wait. One that need not may be the one that finds
    /// out: it has to say how it went by [`Self::hold`] or [`Self::release`].
    pub fn held(&self, scopes: &[Scope]) -> Option<Held> {
        let now = Instant::now();
        let mut holds = self.lock();
        let longest = scopes
            .iter()
            .filter_map(|scope| Some((scope, holds.get(scope)?)))
            .filter(|(_, hold)| now < hold.until)
            .max_by_key(|(_, hold)| hold.until);
        if let Some((scope, hold)) = longest {
            let (scope, reason, wait) = (scope.clone(), hold.reason, hold.until - now);
            return Some(Held { scope, reason, wait });
        }
        for scope in scopes {
            match holds.get_mut(scope) {
                Some(hold) if hold.is_forgotten(now) => drop(holds.remove(scope)),
                Some(hold) => (hold.until, hold.one_goes_first) = (now + GOES_FIRST, true),
                None => {}
            }
        }
        None
    }

    /// The job that went first found no lack: the others may go. A hold that began since stands.
    pub fn release(&self, scopes: &[Scope]) {
        let mut holds = self.lock();
        for scope in scopes {
            if holds.get(scope).is_some_and(|hold| hold.one_goes_first) {
                holds.remove(scope);
                tracing::info!(scope = scope.kind(), "no longer held up: {scope}");
            }
        }
    }

    /// How many holds there are of each kind, in the order of [`Scope::HELD`].
    pub fn counts(&self) -> [(&'static str, usize); 4] {
        let (now, holds) = (Instant::now(), self.lock());
        Scope::HELD.map(|kind| {
            let of_kind =
                |(scope, hold): &(&Scope, &Hold)| scope.kind() == kind && now < hold.until;
            (kind, holds.iter().filter(of_kind).count())
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Scope, Hold>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    fn is_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.until) > MEMORY
    }
}

/// Forgets what is over, where there are too many: else whatever is over next.
fn make_room(holds: &mut HashMap<Scope, Hold>, now: Instant) {
    if holds.len() < MOST {
        return;
    }
    holds.retain(|_, hold| now < hold.until);
    if holds.len() >= MOST
        && let Some(next) = holds.iter().min_by_key(|(_, hold)| hold.until)
    {
        let next = next.0.clone();
        holds.remove(&next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str) -> Scope {
        Scope::Repository(name.to_owned())
    }

    fn second(_: u32) -> Duration {
        Duration::from_secs(1)
    }

    /// As if this much time had passed.
    fn later(holds: &Holds, by: Duration) {
        for hold in holds.lock().values_mut() {
            hold.until = hold.until.checked_sub(by).expect("the machine has run for that long");
        }
    }

    #[test]
    fn only_those_whom_the_scope_names_wait_and_for_as_long_as_was_asked() {
        let holds = Holds::default();
        let asked = Duration::from_secs(40);
        holds.hold(&repository("a"), Reason::RateLimited, Some(asked), second);
        let held = holds.held(&[Scope::Host("h".to_owned()), repository("a")]).expect("it is held");
        assert_eq!((held.scope, held.reason), (repository("a"), Reason::RateLimited));
        assert!(held.wait <= asked && held.wait > asked / 2, "{:?}", held.wait);
        assert_eq!(holds.held(&[Scope::Host("h".to_owned()), repository("b")]), None);
        let counts = holds.counts();
        assert_eq!(counts, [("host", 0), ("anonymous", 0), ("token", 0), ("repository", 1)]);
    }

    #[test]
    fn nobody_can_ask_for_more_than_the_longest_patience() {
        let holds = Holds::default();
        let day = Duration::from_secs(24 * 60 * 60);
        holds.hold(&repository("a"), Reason::RateLimited, Some(day), second);
        holds.hold(&repository("b"), Reason::RateLimited, None, |_| day);
        let wait = |name| holds.held(&[repository(name)]).expect("it is held").wait;
        assert!(wait("a") <= LONGEST_PATIENCE);
        assert!(wait("b") <= LONGEST);
    }

    #[test]
    fn after_a_hold_one_goes_first_and_the_others_go_once_it_went_well() {
        let (holds, a) = (Holds::default(), [repository("a")]);
        holds.hold(&a[0], Reason::RateLimited, None, second);
        // Nobody went first: what was under way ends well, and the hold stands.
        holds.release(&a);
        assert!(holds.held(&a).is_some());
        later(&holds, Duration::from_secs(2));
        assert_eq!(holds.held(&a), None, "the first goes");
        assert!(holds.held(&a).is_some(), "the second waits for it");
        holds.release(&a);
        assert_eq!((holds.held(&a), holds.held(&a)), (None, None));
    }

    #[test]
    fn a_first_one_that_never_says_how_it_went_holds_nobody_up_for_long() {
        let (holds, a) = (Holds::default(), [repository("a")]);
        holds.hold(&a[0], Reason::ForgeDown, None, second);
        later(&holds, Duration::from_secs(2));
        assert_eq!(holds.held(&a), None);
        later(&holds, GOES_FIRST);
        assert_eq!(holds.held(&a), None, "the next goes first");
    }

    #[test]
    fn a_lack_that_is_found_again_and_again_lasts_longer_and_one_found_by_many_at_once_does_not() {
        let (holds, a) = (Holds::default(), [repository("a")]);
        let found = |times: &mut Vec<u32>| {
            holds.hold(&a[0], Reason::ForgeDown, None, |found| {
                times.push(found);
                Duration::from_secs(1)
            });
        };
        let mut times = Vec::new();
        for _ in 0..2 {
            found(&mut times);
            found(&mut times);
            later(&holds, Duration::from_secs(2));
            assert_eq!(holds.held(&a), None);
        }
        assert_eq!(times, [1, 1, 2, 2]);
        later(&holds, MEMORY + GOES_FIRST);
        found(&mut times);
        assert_eq!(times.last(), Some(&1), "it begins anew");
    }

    #[test]
    fn the_table_is_bounded() {
        let holds = Holds::default();
        for number in 0..MOST + 10 {
            holds.hold(&repository(&number.to_string()), Reason::RateLimited, None, second);
        }
        assert!(holds.lock().len() <= MOST);
    }
}
