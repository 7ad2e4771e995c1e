//! What this worker knows of who waits: what it put in the backlog of late, and what it has in hand.
//!
//! Others put in and take out as well, so it is a guess, and forgotten fast. A wrong guess costs little: a
//! user who is thought to have more waiting than there is stands with those who have; one who is thought to
//! have nothing is moved there when the request is taken.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use image_builder_actors::ports::Load;

use crate::broker::rabbitmq::topology::Lane;
use crate::broker::rabbitmq::user::User;

/// After this time half of what was put in is taken to be gone.
const HALF_LIFE: Duration = Duration::from_secs(15);

/// How many requests of a user may stand among the few.
const FEW: f64 = 16.0;

/// Users that are remembered.
const MOST_USERS: usize = 10_000;

/// See the module.
#[derive(Default)]
pub(super) struct Recent {
    waiting: HashMap<User, Waiting>,
    load: Option<Load>,
}

struct Waiting {
    count: f64,
    at: Instant,
}

impl Waiting {
    fn count(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64();
        self.count * 0.5_f64.powf(age / HALF_LIFE.as_secs_f64())
    }
}

/// Which lane a request belongs in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Lane(Lane),
    /// One of the numbered ones.
    Spread,
}

impl Recent {
    /// Says where a request is to wait, and remembers it.
    pub(super) fn enter(&mut self, user: &User, returned: bool, now: Instant) -> Choice {
        if self.waiting.len() >= MOST_USERS && !self.waiting.contains_key(user) {
            self.waiting.retain(|_, waiting| waiting.count(now) >= 0.5);
            if self.waiting.len() >= MOST_USERS {
                self.waiting.clear();
            }
        }
        let waiting =
            self.waiting.entry(user.clone()).or_insert_with(|| Waiting { count: 0.0, at: now });
        let waits = waiting.count(now);
        (waiting.count, waiting.at) = (waits + 1.0, now);
        let in_hand = self.load.as_ref().map_or(0, |load| user.in_hand(load));
        match returned {
            _ if waits < 0.5 && in_hand == 0 => Choice::Lane(Lane::First),
            true => Choice::Lane(Lane::Returned),
            false if waits < FEW => Choice::Lane(Lane::Few),
            false => Choice::Spread,
        }
    }

    /// One of theirs waits no more.
    pub(super) fn leave(&mut self, user: &User, now: Instant) {
        let Some(waiting) = self.waiting.get_mut(user) else { return };
        (waiting.count, waiting.at) = (waiting.count(now) - 1.0, now);
        if waiting.count < 0.5 {
            self.waiting.remove(user);
        }
    }

    /// What this worker has in hand.
    pub(super) fn know(&mut self, load: &Load) {
        if self.load.as_ref() != Some(load) {
            self.load = Some(load.clone());
        }
    }
}

/// The two numbered lanes of a user, from 0; one and the same where there is only one.
pub(super) fn two_lanes(user: &User, lanes: usize) -> (usize, usize) {
    let mut hasher = DefaultHasher::new();
    user.hash(&mut hasher);
    let hash = hasher.finish();
    let first = (hash % lanes as u64) as usize;
    let step = 1 + (hash >> 32) as usize % lanes.saturating_sub(1).max(1);
    (first, (first + step) % lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(recent: &mut Recent, user: &str, count: usize, now: Instant) -> Vec<Choice> {
        (0..count).map(|_| recent.enter(&User::of(user), false, now)).collect()
    }

    #[test]
    fn the_first_request_of_a_user_the_next_few_and_all_others_wait_apart() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        let chosen = lanes(&mut recent, "flood", 20, now);
        assert_eq!(chosen[0], Choice::Lane(Lane::First));
        assert!(chosen[1..16].iter().all(|choice| *choice == Choice::Lane(Lane::Few)));
        assert!(chosen[16..].iter().all(|choice| *choice == Choice::Spread), "{chosen:?}");
        assert_eq!(lanes(&mut recent, "single", 1, now), [Choice::Lane(Lane::First)]);
    }

    #[test]
    fn a_user_who_has_builds_in_hand_has_no_first_request() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        recent.know(&Load {
            builds: [("busy".to_owned(), 1)].into(),
            most_per_user: 2,
            at_hand: false,
        });
        assert_eq!(lanes(&mut recent, "busy", 1, now), [Choice::Lane(Lane::Few)]);
    }

    #[test]
    fn what_was_taken_or_is_long_ago_counts_no_more() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        let user = User::of("u");
        lanes(&mut recent, "u", 1, now);
        recent.leave(&user, now);
        assert_eq!(lanes(&mut recent, "u", 1, now), [Choice::Lane(Lane::First)]);
        lanes(&mut recent, "u", 100, now);
        let later = now + 10 * HALF_LIFE;
        assert_eq!(lanes(&mut recent, "u", 1, later), [Choice::Lane(Lane::First)]);
    }

    #[test]
    fn what_was_worked_on_waits_apart_from_what_the_user_asked_for_later() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        lanes(&mut recent, "u", 1, now);
        assert_eq!(recent.enter(&User::of("u"), true, now), Choice::Lane(Lane::Returned));
        assert_eq!(recent.enter(&User::of("other"), true, now), Choice::Lane(Lane::First));
    }

    #[test]
    fn no_more_users_are_remembered_than_there_is_room_for() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        for n in 0..=2 * MOST_USERS {
            recent.enter(&User::of(&n.to_string()), false, now);
        }
        assert!(recent.waiting.len() <= MOST_USERS);
    }

    #[test]
    fn a_user_has_two_lanes_where_there_are_two() {
        for n in 0..100 {
            let user = User::of(&n.to_string());
            assert_eq!(two_lanes(&user, 1), (0, 0));
            for lanes in [2, 3, 4, 16] {
                let (first, second) = two_lanes(&user, lanes);
                assert!(first != second && first < lanes && second < lanes, "{lanes}");
            }
        }
    }
}
