//! Slots that are shared fairly: a free slot goes to the waiting key that holds the fewest; among
//! equals to the one that was given one longest ago, so that a single slot goes round; and of one key
//! to what has waited longest.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A bounded number of slots. Clones share them.
#[derive(Clone)]
pub struct FairSemaphore {
    /// Slots that one key can hold at once.
    per_key: usize,
    slots: Arc<Mutex<Slots>>,
}

/// Who has slots, and who waits for one.
#[derive(Default)]
struct Slots {
    free: usize,
    held: HashMap<String, usize>,
    /// When each key that holds or waits was last given a slot, counted in slots given.
    given: HashMap<String, u64>,
    /// How many slots were ever given.
    all_given: u64,
    /// By arrival.
    waiting: BTreeMap<u64, Waiter>,
    next: u64,
}

impl Slots {
    /// A key that neither holds nor waits begins anew.
    fn forget(&mut self, key: &str) {
        let is_there =
            self.held.contains_key(key) || self.waiting.values().any(|waiter| waiter.key == key);
        if !is_there {
            self.given.remove(key);
        }
    }
}

struct Waiter {
    key: String,
    slot: oneshot::Sender<FairPermit>,
}

/// A slot, until it is dropped.
pub struct FairPermit {
    semaphore: FairSemaphore,
    key: String,
}

impl FairSemaphore {
    /// `count` slots, of which one key can hold `per_key` at once.
    pub fn new(count: usize, per_key: usize) -> Self {
        let slots = Slots { free: count, ..Slots::default() };
        Self { per_key, slots: Arc::new(Mutex::new(slots)) }
    }

    /// Waits for a slot. Dropping the future leaves the queue.
    pub async fn acquire(&self, key: &str) -> FairPermit {
        let (waiting, slot) = {
            let mut slots = self.lock();
            let number = slots.next;
            slots.next += 1;
            let (sender, slot) = oneshot::channel();
            slots.waiting.insert(number, Waiter { key: key.to_owned(), slot: sender });
            let handed = self.hand_out(&mut slots);
            drop(slots);
            // Dropped outside the lock: a slot whose waiter left comes back through it.
            drop(handed);
            (Waiting { semaphore: self.clone(), number }, slot)
        };
        match slot.await {
            Ok(held) => {
                drop(waiting);
                held
            }
            // The sender is only dropped with the entry, which `waiting` keeps.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives free slots to those who wait; the answer are slots that nobody took.
    fn hand_out(&self, slots: &mut Slots) -> Vec<FairPermit> {
        let mut refused = Vec::new();
        while slots.free > 0 {
            let held = |key: &str| slots.held.get(key).copied().unwrap_or(0);
            let next = slots
                .waiting
                .iter()
                .filter(|(_, waiter)| held(&waiter.key) < self.per_key)
                .min_by_key(|(number, Waiter { key, .. })| {
                    (held(key), slots.given.get(key).copied().unwrap_or(0), **number)
                })
                .map(|(number, _)| *number);
            let Some(waiter) = next.and_then(|number| slots.waiting.remove(&number)) else { break };
            slots.free -= 1;
            slots.all_given += 1;
            slots.given.insert(waiter.key.clone(), slots.all_given);
            *slots.held.entry(waiter.key.clone()).or_default() += 1;
            let slot = FairPermit { semaphore: self.clone(), key: waiter.key };
            refused.extend(waiter.slot.send(slot).err());
        }
        refused
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        let refused = {
            let mut slots = self.semaphore.lock();
            slots.free += 1;
            if let Some(held) = slots.held.get_mut(&self.key) {
                *held -= 1;
                if *held == 0 {
                    slots.held.remove(&self.key);
                }
            }
            let refused = self.semaphore.hand_out(&mut slots);
            slots.forget(&self.key);
            refused
        };
        drop(refused);
    }
}

/// A place in the queue, until it is dropped.
struct Waiting {
    semaphore: FairSemaphore,
    number: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let gone = {
            let mut slots = self.semaphore.lock();
            let gone = slots.waiting.remove(&self.number);
            if let Some(waiter) = &gone {
                slots.forget(&waiter.key);
            }
            gone
        };
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn never_more_than_all_slots_are_held_at_once() {
        let slots = FairSemaphore::new(2, 2);
        let first = slots.acquire("a").await;
        let _second = slots.acquire("b").await;
        let mut third = Box::pin(slots.acquire("c"));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        third.await;
    }

    #[tokio::test]
    async fn a_free_slot_goes_to_whoever_holds_the_fewest() {
        let slots = FairSemaphore::new(2, 2);
        let (one, _two) = (slots.acquire("flood").await, slots.acquire("flood").await);
        let mut more = Box::pin(slots.acquire("flood"));
        assert!(more.as_mut().now_or_never().is_none());
        let mut other = Box::pin(slots.acquire("other"));
        assert!(other.as_mut().now_or_never().is_none());
        drop(one);
        assert!(other.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_slot_goes_round() {
        let slots = FairSemaphore::new(1, 1);
        let held = slots.acquire("flood").await;
        let mut waiting: Vec<_> = ["flood", "flood", "flood", "other", "other", "third"]
            .map(|key| (key, Box::pin(slots.acquire(key))))
            .into();
        for (_, slot) in &mut waiting {
            assert!(slot.as_mut().now_or_never().is_none());
        }
        let (mut held, mut order) = (Some(held), Vec::new());
        while !waiting.is_empty() {
            drop(held.take());
            let next = waiting.iter_mut().enumerate().find_map(|(place, (_, slot))| {
                held = slot.as_mut().now_or_never();
                held.is_some().then_some(place)
            });
            order.push(waiting.remove(next.expect("somebody is next")).0);
        }
        assert_eq!(order, ["other", "third", "flood", "other", "flood", "flood"]);
        drop(held);
        assert!(slots.lock().given.is_empty(), "whoever is gone is forgotten");
    }

    #[tokio::test]
    async fn one_key_holds_no_more_than_its_share() {
        let slots = FairSemaphore::new(3, 1);
        let first = slots.acquire("a").await;
        let mut second = Box::pin(slots.acquire("a"));
        assert!(second.as_mut().now_or_never().is_none());
        slots.acquire("b").await;
        drop(first);
        second.await;
    }

    #[tokio::test]
    async fn who_leaves_the_queue_takes_no_slot_along() {
        let slots = FairSemaphore::new(1, 1);
        let first = slots.acquire("a").await;
        let mut leaver = Box::pin(slots.acquire("b"));
        assert!(leaver.as_mut().now_or_never().is_none());
        drop(leaver);
        drop(first);
        // Handed a slot and then dropped before it was looked at.
        let held = slots.acquire("a").await;
        let mut late = Box::pin(slots.acquire("b"));
        assert!(late.as_mut().now_or_never().is_none());
        drop(held);
        drop(late);
        slots.acquire("c").await;
    }
}
