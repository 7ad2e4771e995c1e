//! What every port in memory has: faults written down beforehand, and a record of what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

/// The coming calls' lines, one a call; with none left a call goes as it should. Clones share them.
#[derive(Debug, Clone)]
pub struct Script<E>(Arc<Mutex<VecDeque<Line<E>>>>);

#[derive(Debug)]
enum Line<E> {
    Fail(E),
    Panic,
    Wait(Gate, Option<E>),
}

impl<E> Default for Script<E> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<E: Clone> Script<E> {
    /// The next `calls` calls fail.
    pub fn fail(&self, calls: usize, error: E) {
        self.lock().extend(std::iter::repeat_n(error, calls).map(Line::Fail));
    }

    /// The next call panics.
    pub fn panic(&self) {
        self.lock().push_back(Line::Panic);
    }

    /// The next call waits at a gate, and goes as it should once that is opened.
    pub fn wait(&self) -> Gate {
        self.wait_at_gate(None)
    }

    /// The next call waits at a gate, and fails once that is opened.
    pub fn wait_and_fail(&self, error: E) -> Gate {
        self.wait_at_gate(Some(error))
    }

    fn wait_at_gate(&self, then: Option<E>) -> Gate {
        let gate = Gate::default();
        self.lock().push_back(Line::Wait(gate.clone(), then));
        gate
    }

    /// Plays the next line, which is taken at once. Called by the port at the beginning of each call.
    pub fn play(&self) -> impl Future<Output = Result<(), E>> + use<E> {
        let line = self.lock().pop_front();
        async move {
            match line {
                None => Ok(()),
                Some(Line::Fail(error)) => Err(error),
                Some(Line::Panic) => panic!("the test asked for a panic"),
                Some(Line::Wait(gate, error)) => {
                    gate.reached.notify_one();
                    gate.opened.notified().await;
                    error.map_or(Ok(()), Err)
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Line<E>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a call waits until the test lets it go on.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    reached: Arc<Notify>,
    opened: Arc<Notify>,
}

impl Gate {
    /// Waits until a call stands at the gate.
    pub async fn reached(&self) {
        self.reached.notified().await;
    }

    /// Lets the call go on, also one that is yet to come.
    pub fn open(&self) {
        self.opened.notify_one();
    }
}

/// What a port was asked or has taken, in order. Clones share it.
#[derive(Debug, Clone)]
pub struct Record<T>(watch::Sender<Vec<T>>);

impl<T> Default for Record<T> {
    fn default() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }
}

impl<T: Clone> Record<T> {
    pub fn push(&self, entry: T) {
        self.0.send_modify(|all| all.push(entry));
    }

    pub fn all(&self) -> Vec<T> {
        self.0.borrow().clone()
    }

    /// Waits until there are at least `count`, and returns all.
    pub async fn wait_for(&self, count: usize) -> Vec<T> {
        let mut changes = self.0.subscribe();
        let all = changes.wait_for(|all| all.len() >= count).await;
        all.expect("this value holds the sender").clone()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn faults_come_as_often_as_they_are_asked_for_and_a_panic_once() {
        let script = Script::default();
        script.fail(1, "down");
        script.panic();
        script.fail(1, "down");
        assert_eq!(script.play().await, Err("down"));
        assert!(AssertUnwindSafe(script.play()).catch_unwind().await.is_err());
        assert_eq!(script.play().await, Err("down"));
        assert_eq!(script.play().await, Ok(()));
    }

    #[tokio::test]
    async fn a_call_waits_until_its_gate_is_opened_and_others_do_not() {
        let script = Script::default();
        let gate = script.wait();
        let waiting = tokio::spawn(script.play());
        gate.reached().await;
        script.wait_and_fail("down").open();
        assert_eq!(script.play().await, Err("down"));
        gate.open();
        assert_eq!(waiting.await.expect("does not panic"), Ok(()));
    }

    #[tokio::test]
    async fn what_is_recorded_is_waited_for() {
        let record = Record::default();
        let waiting = tokio::spawn({
            let record = record.clone();
            async move { record.wait_for(2).await }
        });
        record.push(1);
        record.push(2);
        assert_eq!(waiting.await.expect("does not panic"), [1, 2]);
        assert_eq!(record.all(), [1, 2]);
    }
}
