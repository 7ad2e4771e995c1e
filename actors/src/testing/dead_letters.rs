//! Dead letters in memory. Clones are the same store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedMutexGuard, watch};

use super::broker::FakeBroker;
use crate::dead_letter::DeadLetter;
use crate::ports::{
    Broker, BrokerError, DeadLetterReading, DeadLetterStore, DeadLetters, DeadLettersError,
    KeptLetter, Message, Queue,
};

/// How long a reading waits for another to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many letters a reading gets at once.
const BATCH: usize = 2;

/// Dead letters in memory.
#[derive(Clone)]
pub struct FakeDeadLetters(Arc<InMemory>);

struct InMemory {
    /// Where redriven requests go.
    broker: FakeBroker,
    /// The letters, oldest first.
    letters: Mutex<BTreeMap<u64, KeptLetter>>,
    /// How many were kept.
    kept: watch::Sender<u64>,
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl FakeDeadLetters {
    /// Redriven requests go to this broker.
    pub fn new(broker: FakeBroker) -> Self {
        Self(Arc::new(InMemory {
            broker,
            letters: Mutex::default(),
            kept: watch::Sender::new(0),
            reading: Arc::default(),
        }))
    }

    /// The letters' bodies, oldest first.
    pub fn letters(&self) -> Vec<Vec<u8>> {
        self.lock().values().map(|letter| letter.body.clone()).collect()
    }

    /// Waits until there are at least `count` letters, and returns their bodies.
    pub async fn wait_for(&self, count: usize) -> Vec<Vec<u8>> {
        // The sender lives as long as `self`.
        let _ = self.0.kept.subscribe().wait_for(|kept| *kept >= count as u64).await;
        self.letters()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, KeptLetter>> {
        self.0.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeadLetters for FakeDeadLetters {
    fn keep<'a>(&'a self, letter: &'a DeadLetter) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.0.kept.send_modify(|kept| {
                *kept += 1;
                let message_id = Some(letter.build_id.clone());
                let (tag, body) = (*kept, letter.to_json());
                self.lock().insert(tag, KeptLetter { tag, message_id, body, kept_until: None });
            });
            Ok(())
        })
    }
}

impl DeadLetterStore for FakeDeadLetters {
    fn read(&self) -> BoxFuture<'_, Result<Box<dyn DeadLetterReading>, DeadLettersError>> {
        Box::pin(async move {
            let turn = tokio::time::timeout(PATIENCE, self.0.reading.clone().lock_owned()).await;
            let turn = turn.map_err(|_| DeadLettersError::Busy("another reads".to_owned()))?;
            let left = self.lock().values().cloned().collect();
            let reading = Reading { store: self.clone(), left, _turn: turn };
            Ok(Box::new(reading) as Box<dyn DeadLetterReading>)
        })
    }
}

struct Reading {
    store: FakeDeadLetters,
    /// What was not read yet.
    left: Vec<KeptLetter>,
    _turn: OwnedMutexGuard<()>,
}

impl DeadLetterReading for Reading {
    fn warning(&self) -> Option<&str> {
        None
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeptLetter>>, DeadLettersError>> {
        Box::pin(async move {
            let batch: Vec<_> = self.left.drain(..self.left.len().min(BATCH)).collect();
            Ok((!batch.is_empty()).then_some(batch))
        })
    }

    fn remove<'a>(&'a mut self, tags: &'a [u64]) -> BoxFuture<'a, Result<(), DeadLettersError>> {
        Box::pin(async move {
            self.store.lock().retain(|tag, _| !tags.contains(tag));
            Ok(())
        })
    }

    fn redrive<'a>(
        &'a mut self,
        request: Message,
        tags: &'a [u64],
    ) -> BoxFuture<'a, Result<(), DeadLettersError>> {
        Box::pin(async move {
            let published =
                self.store.0.broker.publish(Queue::Build, request, Duration::ZERO).await;
            published.map_err(|error| DeadLettersError::Unavailable(error.to_string()))?;
            self.remove(tags).await
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), DeadLettersError>> {
        Box::pin(async move { Ok(()) })
    }
}
