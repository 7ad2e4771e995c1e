//! A lock a key: work on the same thing takes turns, work on different things does not.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Lock, OwnedMutexGuard};

/// Locks by key. One that nobody holds or waits for is forgotten. Clones share them.
#[derive(Debug)]
pub struct KeyedLocks<K>(Arc<Mutex<HashMap<K, Weak<Lock<()>>>>>);

/// The right to work on something, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    /// Whether somebody else had the right before, up to now.
    pub waited: bool,
    _held: OwnedMutexGuard<()>,
}

impl<K> Clone for KeyedLocks<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for KeyedLocks<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash> KeyedLocks<K> {
    /// Waits for the key's lock, in the order of asking. Dropping the turn unlocks.
    pub async fn lock(&self, key: K) -> Turn {
        match self.try_lock(key) {
            Ok(turn) => turn,
            Err(wait) => wait.turn().await,
        }
    }

    /// The key's lock, or the wait for it where somebody else has it.
    pub fn try_lock(&self, key: K) -> Result<Turn, Wait> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let entry = locks.entry(key).or_default();
            let lock = entry.upgrade().unwrap_or_default();
            *entry = Arc::downgrade(&lock);
            lock
        };
        match lock.clone().try_lock_owned() {
            Ok(held) => Ok(Turn { waited: false, _held: held }),
            Err(_) => Err(Wait(lock)),
        }
    }
}

/// A lock that somebody else has.
#[derive(Debug)]
pub struct Wait(Arc<Lock<()>>);

impl Wait {
    /// Waits for it, in the order of these calls.
    pub async fn turn(self) -> Turn {
        Turn { waited: true, _held: self.0.lock_owned().await }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_key_is_held_once_at_a_time_and_others_do_not_wait_for_it() {
        let locks = KeyedLocks::default();
        let first = locks.lock("a").await;
        assert!(!first.waited);
        let mut second = Box::pin(locks.lock("a"));
        let mut third = Box::pin(locks.lock("a"));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        assert!(locks.lock("b").now_or_never().is_some());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none(), "the second asked earlier");
        let second = second.await;
        assert!(second.waited);
        drop(second);
        third.await;
    }

    #[tokio::test]
    async fn a_key_that_nobody_wants_is_forgotten() {
        let locks = KeyedLocks::default();
        let held = locks.lock("a").await;
        assert!(locks.lock("a").now_or_never().is_none(), "whoever leaves takes no lock along");
        drop(held);
        locks.lock("a").await;
        locks.lock("b").await;
        assert_eq!(locks.0.lock().expect("no panic").keys().collect::<Vec<_>>(), [&"b"]);
    }
}
