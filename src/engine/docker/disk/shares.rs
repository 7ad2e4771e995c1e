//! Who fills the disk: what it lost while each build in hand ran.
//!
//! An engine does not tell what a build in hand takes: BuildKit counts nothing that still changes. What can be seen
//! is the free space. What is lost between two looks is shared out among the builds in hand, and the first suspect is
//! the one that lost most in its time: nothing was lost while the others ran without it. The proof is that the disk
//! gets most of it back when a build ends.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The builds in hand.
#[derive(Default)]
pub(super) struct Shares(Mutex<State>);

#[derive(Default)]
struct State {
    /// What was free at the last look; `None` = nobody has looked since nothing was in hand.
    free: Option<u64>,
    builds: HashMap<u64, InHand>,
    begun: u64,
    ended: u64,
}

struct InHand {
    begun: Instant,
    /// Bytes that it is suspected to have taken.
    taken: u64,
}

/// One build in hand, until it is dropped.
pub(super) struct Share<'a> {
    of: &'a Shares,
    id: u64,
}

impl Shares {
    pub(super) fn begin(&self) -> Share<'_> {
        let mut state = self.state();
        if state.builds.is_empty() {
            state.free = None;
        }
        state.begun += 1;
        let id = state.begun;
        state.builds.insert(id, InHand { begun: Instant::now(), taken: 0 });
        Share { of: self, id }
    }

    /// Takes note of what is free.
    pub(super) fn saw(&self, free: u64) {
        let mut state = self.state();
        let before = state.free.replace(free).unwrap_or(free);
        let in_hand = state.builds.len().max(1) as u64;
        let (lost, gained) = (before.saturating_sub(free), free.saturating_sub(before));
        for build in state.builds.values_mut() {
            build.taken = (build.taken + lost / in_hand).saturating_sub(gained / in_hand);
        }
    }

    /// How many builds have ended: one that has not changed in a while says that none did meanwhile.
    pub(super) fn ended(&self) -> u64 {
        self.state().ended
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share<'_> {
    /// Bytes that this build is suspected to have taken.
    pub(super) fn taken(&self) -> u64 {
        self.of.state().builds[&self.id].taken
    }

    /// Whether no other build is suspected to have taken more in its time.
    pub(super) fn is_first_suspect(&self) -> bool {
        let state = self.of.state();
        let rate = |build: &InHand| build.taken as f64 / build.begun.elapsed().as_secs_f64();
        let rates = state.builds.iter().map(|(id, build)| (rate(build), *id));
        let first = rates.max_by(|one, other| one.0.total_cmp(&other.0));
        first.is_some_and(|(_, id)| id == self.id)
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut state = self.of.state();
        state.builds.remove(&self.id);
        state.ended += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_loses_is_shared_out_among_the_builds_in_hand() {
        let shares = Shares::default();
        let long = shares.begin();
        shares.saw(1_000);
        shares.saw(900);
        let short = shares.begin();
        shares.saw(700);
        assert_eq!((long.taken(), short.taken()), (200, 100));
        // What comes back is taken from all of them: nobody knows whose it was.
        shares.saw(1_000);
        assert_eq!((long.taken(), short.taken()), (50, 0));
    }

    #[test]
    fn nothing_is_held_against_a_build_that_was_lost_before_it_began() {
        let shares = Shares::default();
        drop(shares.begin());
        shares.saw(1_000);
        let later = shares.begin();
        shares.saw(100);
        assert_eq!(later.taken(), 0);
        assert_eq!(shares.ended(), 1);
    }

    #[test]
    fn the_first_suspect_is_who_lost_most_in_its_time() {
        let shares = Shares::default();
        let calm = shares.begin();
        shares.saw(1_000);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let greedy = shares.begin();
        shares.saw(0);
        assert_eq!(calm.taken(), greedy.taken());
        assert!(greedy.is_first_suspect() && !calm.is_first_suspect());
        drop(greedy);
        assert!(calm.is_first_suspect());
    }
}
