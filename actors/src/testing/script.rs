//! What a port in memory does out of the ordinary on its next calls, written down beforehand.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

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

    /// Plays the next line. Called by the port at the beginning of each call.
    pub async fn play(&self) -> Result<(), E> {
        let line = self.lock().pop_front();
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
