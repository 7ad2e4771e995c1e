//! How often something may be done: by all, or by those from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::v1::problem::Problem;

/// Wrong guesses from one address: so many a second, and so many at once.
const GUESSES: (u32, u32) = (1, 10);
/// Addresses that are told apart; where more guess, all of them share one account.
const MOST_GUESSERS: usize = 1000;

/// Bounds how often something is done: so often a second, and so often at once after a pause.
#[derive(Debug)]
pub(in crate::api) struct Rate {
    a_second: f64,
    at_once: f64,
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    pub(in crate::api) fn new(a_second: u32, at_once: u32) -> Self {
        let at_once = f64::from(at_once);
        let left = Mutex::new((at_once, Instant::now()));
        Self { a_second: a_second.into(), at_once, left }
    }

    /// How often it could be done at once now, with what is left of that brought up to date.
    fn filled(&self) -> MutexGuard<'_, (f64, Instant)> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let ((times, at), now) = (*left, Instant::now());
        *left = ((times + (now - at).as_secs_f64() * self.a_second).min(self.at_once), now);
        left
    }

    /// Whether it was not done for so long that nothing of that counts any more.
    fn is_full(&self) -> bool {
        self.filled().0 >= self.at_once
    }

    /// Whether it could be done now.
    fn has_room(&self) -> bool {
        self.filled().0 >= 1.0
    }

    /// Whether it may be done now.
    pub(in crate::api) fn admits(&self) -> bool {
        let mut left = self.filled();
        let admits = left.0 >= 1.0;
        if admits {
            left.0 -= 1.0;
        }
        admits
    }
}

/// How often wrong tokens were shown, by address: at the login, and at the API.
#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<HashMap<Option<IpAddr>, Rate>>);

impl Guesses {
    /// Whether a token is right, which is looked at unless too many from there were wrong.
    ///
    /// # Errors
    /// They were: whether this one is right is told to nobody.
    pub(super) fn is_right(
        &self,
        peer: IpAddr,
        look: impl FnOnce() -> bool,
    ) -> Result<bool, Problem> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = Some(peer.to_canonical());
        if !known.contains_key(&peer) && known.len() >= MOST_GUESSERS {
            known.retain(|_, rate| !rate.is_full());
        }
        let account = peer.filter(|_| known.len() < MOST_GUESSERS || known.contains_key(&peer));
        if known.get(&account).is_some_and(|rate| !rate.has_room()) {
            return Err(Problem::too_many(
                "Too many wrong tokens came from your address: wait a few seconds, and try again.",
            ));
        }
        let is_right = look();
        if !is_right {
            let (a_second, at_once) = GUESSES;
            known.entry(account).or_insert_with(|| Rate::new(a_second, at_once)).admits();
            tracing::warn!(peer = peer.map(|peer| peer.to_string()), "a wrong token was shown");
        }
        Ok(is_right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_too_often_is_told_from_what_is_done_often() {
        let rate = Rate::new(1, 3);
        assert_eq!([(); 5].map(|()| rate.admits()), [true, true, true, false, false]);
        *rate.left.lock().expect("nobody panics with it") =
            (0.5, Instant::now() - std::time::Duration::from_secs(1));
        assert!(rate.admits() && !rate.admits());
    }

    #[test]
    fn who_guesses_too_often_keeps_out_nobody_else() {
        let guesses = Guesses::default();
        let [one, other]: [IpAddr; 2] =
            ["192.0.2.1", "::ffff:192.0.2.2"].map(|ip| ip.parse().expect("an address"));
        let is_looked_at = |peer, is_right| guesses.is_right(peer, || is_right).is_ok();
        // Those that are right cost nothing, and are not known from the others once too many were wrong.
        assert_eq!((0..100).filter(|_| is_looked_at(one, true)).count(), 100);
        assert_eq!((0..12).filter(|_| is_looked_at(one, false)).count(), 10);
        assert!(!is_looked_at(one, true) && is_looked_at(other, true));
        assert!(is_looked_at(other, false));
        // More than can be told apart: those who come last share one account, and the known keep theirs.
        for number in 0..MOST_GUESSERS as u32 + 20 {
            let _ = guesses.is_right(IpAddr::V4(number.into()), || false);
        }
        assert!(guesses.0.lock().expect("nobody panics with it").len() <= MOST_GUESSERS + 1);
        let unknown = "198.51.100.1".parse().expect("an address");
        assert!(!is_looked_at(unknown, true), "the shared one is used up");
        assert!(is_looked_at(other, true));
    }
}
