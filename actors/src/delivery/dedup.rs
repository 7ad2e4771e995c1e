//! Deliveries that come again to the worker that had them.
//!
//! When a connection breaks, the broker delivers again what was not acked, often to the very worker
//! that is still at work on it, or whose ack was lost on the way. Neither is a reason to do the work,
//! or to notify of it, twice: a redelivery waits until this worker no longer has its message in hand, and
//! is only acked where the message was settled here just before the connection broke.
//!
//! What is kept is in memory alone: after a crash, and on any other worker, the repetition goes its way.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::delivery::envelope;
use crate::model::identity::BuildHash;
use crate::ports::Delivery;

/// How long before the end of a subscription an ack may have got lost: whoever is silent for longer has lost
/// the connection.
const LOST: Duration = Duration::from_secs(60);
/// How long such a message is remembered: a broker may be away for a while before it delivers again.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);
/// And how many of them.
const MOST_REMEMBERED: usize = 10_000;

/// The messages of one queue that this worker has, or has just had. Clones share them.
#[derive(Clone, Default)]
pub struct Redeliveries(Arc<Remembered>);

#[derive(Default)]
struct Remembered {
    deliveries: Mutex<RememberedDeliveries>,
    /// Notified whenever a message is no longer in hand.
    let_go: Notify,
}

#[derive(Default)]
struct RememberedDeliveries {
    in_hand: HashMap<Print, usize>,
    /// Settled in this subscription. Their acks have arrived, or the subscription is about to end.
    settled: Settled,
    /// Settled just before a subscription ended: their acks may have got lost.
    doubtful: Settled,
}

impl RememberedDeliveries {
    fn forget_old(&mut self) {
        self.settled.forget(LOST);
        self.doubtful.forget(REMEMBERED);
    }
}

/// Messages and when they were last settled. Each look is as fast for many as for few: there is one a
/// delivery.
#[derive(Default)]
struct Settled {
    at: HashMap<Print, Instant>,
    /// Oldest first, those included that were taken out or settled once more since.
    order: VecDeque<(Instant, Print)>,
}

impl Settled {
    fn put(&mut self, at: Instant, print: Print) {
        if self.order.len() >= MOST_REMEMBERED {
            self.forget_first();
        }
        self.at.insert(print, at);
        self.order.push_back((at, print));
    }

    fn has(&self, print: &Print) -> bool {
        self.at.contains_key(print)
    }

    fn take_out(&mut self, print: &Print) {
        self.at.remove(print);
    }

    fn forget(&mut self, after: Duration) {
        while self.order.front().is_some_and(|(at, _)| at.elapsed() > after) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((at, print)) = self.order.pop_front()
            && self.at.get(&print) == Some(&at)
        {
            self.at.remove(&print);
        }
    }
}

/// The hash that a message is recognised by. A message without a build id has none: two of those that read
/// the same may be two builds.
type Print = BuildHash;

/// A message in hand, until it is dropped.
pub struct Hold {
    all: Redeliveries,
    print: Option<Print>,
}

/// What is to be done with a redelivery.
pub(crate) enum Turn {
    /// The work, or what is left of it.
    Work(Hold),
    /// Nothing: it was settled, and only its ack got lost.
    Ack,
    /// Nothing yet: this worker still has the message in hand.
    Wait,
}

impl Redeliveries {
    /// The connection was lost, and what was said on it last may not have been heard.
    pub(crate) fn lost(&self) {
        let mut state = self.lock();
        state.forget_old();
        let settled = std::mem::take(&mut state.settled);
        for (at, print) in settled.order {
            if settled.at.get(&print) == Some(&at) {
                state.doubtful.put(at, print);
            }
        }
    }

    /// A message that was never delivered before. What was settled and reads the same was another one.
    pub fn first(&self, delivery: &Delivery) -> Hold {
        let print = print(delivery);
        if let Some(print) = &print {
            let mut state = self.lock();
            state.settled.take_out(print);
            state.doubtful.take_out(print);
        }
        self.hold(print)
    }

    /// What is to be done with a delivery that has just come, of a message that was delivered so often before.
    pub(crate) fn turn_of(&self, delivery: &Delivery, redeliveries: u64) -> Turn {
        match redeliveries {
            0 => Turn::Work(self.first(delivery)),
            _ => self.again(delivery),
        }
    }

    /// A message that was delivered before, here or elsewhere.
    pub(crate) fn again(&self, delivery: &Delivery) -> Turn {
        self.turn(print(delivery))
    }

    fn turn(&self, print: Option<Print>) -> Turn {
        let Some(print) = print else { return Turn::Work(self.hold(None)) };
        let mut state = self.lock();
        state.forget_old();
        if state.doubtful.has(&print) {
            Turn::Ack
        } else if state.in_hand.contains_key(&print) {
            Turn::Wait
        } else {
            *state.in_hand.entry(print).or_default() += 1;
            Turn::Work(Hold { all: self.clone(), print: Some(print) })
        }
    }

    /// The same, once the message is no longer in hand; `None` = it is only to be acked.
    pub(crate) async fn after(&self, delivery: &Delivery) -> Option<Hold> {
        let print = print(delivery);
        loop {
            let let_go = self.0.let_go.notified();
            tokio::pin!(let_go);
            // Before the look, so that nothing that is let go after it is missed.
            let_go.as_mut().enable();
            match self.turn(print) {
                Turn::Work(hold) => return Some(hold),
                Turn::Ack => return None,
                Turn::Wait => let_go.await,
            }
        }
    }

    fn hold(&self, print: Option<Print>) -> Hold {
        if let Some(print) = print {
            *self.lock().in_hand.entry(print).or_default() += 1;
        }
        Hold { all: self.clone(), print }
    }

    fn lock(&self) -> MutexGuard<'_, RememberedDeliveries> {
        self.0.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    /// The next durable fact was made, and the delivery was acked: whether the broker heard that or not,
    /// there is nothing left to do.
    pub(crate) fn settled(&self, acked: bool) {
        let Some(print) = self.print else { return };
        let mut state = self.all.lock();
        state.forget_old();
        let remembered = if acked { &mut state.settled } else { &mut state.doubtful };
        remembered.put(Instant::now(), print);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(print) = self.print else { return };
        let mut state = self.all.lock();
        if let Some(count) = state.in_hand.get_mut(&print) {
            *count -= 1;
            if *count == 0 {
                state.in_hand.remove(&print);
            }
        }
        drop(state);
        self.all.0.let_go.notify_waiters();
    }
}

fn print(delivery: &Delivery) -> Option<Print> {
    let message = &delivery.message;
    let build = envelope::identity(message)?;
    let timestamp = message.timestamp.map_or(0, |at| at.unix_timestamp()).to_be_bytes();
    let [traceparent, envelope] = [&message.traceparent, &message.envelope]
        .map(|text| text.as_deref().unwrap_or_default().as_bytes());
    let publishing = delivery.publishing.to_be_bytes();
    let parts = [&message.body, &timestamp[..], traceparent, envelope, &publishing];
    Some(build.hash("delivery", parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::envelope::Envelope;
    use crate::delivery::envelope::tests::delivery;
    use crate::ports::Message;

    fn message(id: &str) -> Delivery {
        delivery(Message { message_id: Some(id.to_owned()), ..Message::default() })
    }

    fn passed_on(of: &Delivery) -> Delivery {
        delivery(Envelope::decode(&of.message).pass_on(&of.message))
    }

    #[test]
    fn a_redelivery_of_what_was_settled_before_the_connection_was_lost_is_only_acked() {
        let all = Redeliveries::default();
        let first = all.first(&message("a"));
        first.settled(true);
        drop(first);
        all.lost();
        assert!(matches!(all.again(&message("a")), Turn::Ack));
        assert!(matches!(all.again(&message("b")), Turn::Work(_)));
        let later = passed_on(&message("a"));
        assert!(matches!(all.again(&later), Turn::Work(_)), "it is another message");
        all.first(&later).settled(true);
        all.lost();
        assert!(matches!(all.again(&later), Turn::Ack));
        assert!(matches!(all.again(&passed_on(&later)), Turn::Work(_)), "and so is that");
    }

    #[test]
    fn an_ack_on_a_connection_that_lives_was_heard() {
        let all = Redeliveries::default();
        all.first(&message("a")).settled(true);
        // It was published once more, and delivered to somebody else before.
        assert!(matches!(all.again(&message("a")), Turn::Work(_)));
    }

    #[test]
    fn a_redelivery_of_what_was_let_go_unsettled_is_worked_on() {
        let all = Redeliveries::default();
        drop(all.first(&message("a")));
        assert!(matches!(all.again(&message("a")), Turn::Work(_)));
    }

    #[test]
    fn a_request_that_is_published_again_is_worked_on_again() {
        let all = Redeliveries::default();
        all.first(&message("a")).settled(true);
        all.lost();
        drop(all.first(&message("a")));
        assert!(matches!(all.again(&message("a")), Turn::Work(_)));
    }

    #[test]
    fn what_has_no_build_id_is_never_taken_for_another() {
        let all = Redeliveries::default();
        let plain = delivery(Message { body: b"{}".to_vec(), ..Message::default() });
        let first = all.first(&plain);
        first.settled(true);
        all.lost();
        assert!(matches!(all.again(&plain), Turn::Work(_)));
    }

    #[tokio::test]
    async fn a_redelivery_waits_until_nobody_here_has_the_message() {
        let all = Redeliveries::default();
        // The same request, published twice.
        let (first, twin) = (all.first(&message("a")), all.first(&message("a")));
        assert!(matches!(all.again(&message("a")), Turn::Wait));
        let waiting = tokio::spawn({
            let all = all.clone();
            async move { all.after(&message("a")).await.is_some() }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        // As on a connection that is lost.
        twin.settled(false);
        drop(twin);
        assert!(!waiting.await.expect("it ends"), "it was settled meanwhile");
    }

    #[test]
    fn only_so_many_are_remembered() {
        let all = Redeliveries::default();
        for number in 0..=MOST_REMEMBERED {
            all.first(&message(&number.to_string())).settled(true);
        }
        all.lost();
        assert!(matches!(all.again(&message("0")), Turn::Work(_)));
        assert!(matches!(all.again(&message("1")), Turn::Ack));
        assert_eq!(all.lock().doubtful.order.len(), MOST_REMEMBERED);
    }

    #[test]
    fn what_is_settled_once_more_is_remembered_from_then_on() {
        let all = Redeliveries::default();
        all.first(&message("a")).settled(true);
        all.first(&message("a")).settled(true);
        for number in 0..MOST_REMEMBERED - 1 {
            all.first(&message(&number.to_string())).settled(true);
        }
        all.lost();
        assert!(matches!(all.again(&message("a")), Turn::Ack));
    }
}
