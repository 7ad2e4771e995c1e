//! The way to an actor that may be another instance by the time a message arrives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::dev::SendError;
use actix::{Message, Recipient};
use tokio::sync::watch;

use crate::delivery::lease::{Leased, Phase, Revocable};
use crate::model::fault::StageName;

/// The way to an actor that takes messages of this kind, whichever instance of it lives at the moment.
pub struct Mailbox<M: Message<Result = ()> + Send> {
    pub(super) current: watch::Receiver<Option<Recipient<M>>>,
    pub(super) mail: Mail,
}

impl<M: Message<Result = ()> + Send> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone(), mail: self.mail.clone() }
    }
}

/// What was sent to an actor and may not have been looked at yet, in order.
#[derive(Clone, Default)]
pub(super) struct Mail(Arc<Mutex<Vec<Revocable>>>);

impl Mail {
    fn add(&self, lease: Revocable) {
        let mut mail = self.lock();
        mail.retain(|lease| lease.phase() == Some(Phase::InMailbox));
        mail.push(lease);
    }

    /// Takes everything away from an actor that is stuck: in the message that it looks at, and so
    /// before all others.
    pub(super) fn take_away(&self, stage: StageName) {
        let mail = std::mem::take(&mut *self.lock());
        let mut unread = mail.iter().filter(|lease| lease.phase() == Some(Phase::InMailbox));
        if let Some(first) = unread.next() {
            first.revoke_from(stage);
        }
        unread.for_each(Revocable::revoke);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Revocable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Message<Result = ()> + Leased + Send> Mailbox<M> {
    /// Hands a message to the actor, waiting while it is being restarted. The message is dropped,
    /// with all that it owns, when the actor is gone for good.
    pub async fn deliver(&self, mut message: M) {
        let mut current = self.current.clone();
        message.lease().set_phase(Phase::InMailbox);
        let lease = message.lease().revocable();
        loop {
            let address = match current.wait_for(Option::is_some).await {
                Ok(address) => address.clone(),
                Err(_) => return,
            };
            let Some(address) = address else { continue };
            // Before it is sent: the actor may be stuck in it when this goes on.
            self.mail.add(lease.clone());
            match address.try_send(message) {
                Ok(()) => return,
                // Its death has not been noticed yet: the address changes in a moment.
                Err(SendError::Closed(back)) => {
                    message = back;
                    if current.changed().await.is_err() {
                        return;
                    }
                }
                // Mailboxes are unbounded (see `run`): what bounds them is the prefetch.
                Err(SendError::Full(back)) => {
                    message = back;
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}
