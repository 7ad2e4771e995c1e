//! The dead letters port: where copies of builds that were given up are kept.
//!
//! A worker keeps dead letters; an operator reads them, has some tried again and drops others. What every
//! store promises; each line is a behaviour of `testing::conformance::dead_letters`:
//!
//! - A dead letter that was kept is read, oldest first, until it is removed or its time is up.
//! - A reading changes nothing but what it removes, however it ends. It reads what was there when it began.
//! - One reading at a time: another one waits for a while, and then fails with [`DeadLettersError::Busy`].
//! - A redriven dead letter is removed after its request is durably on the build queue, and stays where that
//!   cannot be.

use futures_util::future::BoxFuture;
use time::OffsetDateTime;

use super::broker::{BrokerError, Message};
use crate::dead_letter::DeadLetter;

/// Keeps the dead letters of a worker.
pub trait DeadLetters: Send + Sync + 'static {
    /// Keeps a dead letter for as long as the deployment wants, which may be not at all. Returns once it is
    /// durable.
    fn keep<'a>(&'a self, letter: &'a DeadLetter) -> BoxFuture<'a, Result<(), BrokerError>>;
}

/// A dead letter, or whatever else is kept among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLetter {
    /// Names it within its reading.
    pub tag: u64,
    /// The build's id as it was kept beside the body.
    pub message_id: Option<String>,
    pub body: Vec<u8>,
    /// When it is dropped; `None` = not known.
    pub kept_until: Option<OffsetDateTime>,
}

/// Why dead letters cannot be read. The message says what to do, and holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeadLettersError {
    /// What no waiting mends.
    #[error("{0}")]
    Refused(String),
    /// Another reading is not at its end.
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Unavailable(String),
}

/// The dead letters of a deployment, for an operator.
pub trait DeadLetterStore: Send + Sync + 'static {
    /// Begins a reading, which keeps every other out.
    fn read(&self) -> BoxFuture<'_, Result<Box<dyn DeadLetterReading>, DeadLettersError>>;
}

/// One reading of the dead letters. What is not removed is there again after it, however it ends.
pub trait DeadLetterReading: Send {
    /// What is not as it should be with the store, and can be lived with.
    fn warning(&self) -> Option<&str>;

    /// The next dead letters, oldest first; `None` = there are no more.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<KeptLetter>>, DeadLettersError>>;

    /// Removes for good what was read under these tags.
    fn remove<'a>(&'a mut self, tags: &'a [u64]) -> BoxFuture<'a, Result<(), DeadLettersError>>;

    /// Puts a request on the build queue, and then removes the dead letters that it was made of.
    fn redrive<'a>(
        &'a mut self,
        request: Message,
        tags: &'a [u64],
    ) -> BoxFuture<'a, Result<(), DeadLettersError>>;

    /// Ends the reading, and returns when those that were not removed can be read again.
    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), DeadLettersError>>;
}
