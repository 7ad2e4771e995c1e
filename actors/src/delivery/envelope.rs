//! What a message carries beside its body: all that workers say to each other about it.
//!
//! The publisher's own body is never touched: a redelivery is the publisher's message in an envelope. So a
//! message that the broker itself moves to the fail queue has its history with it.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::model::history::{History, is_default};
use crate::model::identity::BuildIdentity;
use crate::parse;
use crate::ports::{Delivery, Message, OutcomeCopy, request_name};

/// See the module. A message without one has the default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Envelope {
    /// Of a request: what earlier tries left behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
    /// How often the message was passed on, so that no two publications of it are equal.
    #[serde(skip_serializing_if = "is_default")]
    pub hops: u64,
    /// Of a request: whether it was read and put in the backlog, and nobody can have worked on it before.
    #[serde(skip_serializing_if = "is_default")]
    pub fresh: bool,
    /// Of a request that was passed on unread: its deliveries until then, which the broker has forgotten.
    #[serde(skip_serializing_if = "is_default")]
    pub redeliveries: u64,
    /// Of a request: whether this service made its id, since its publisher gave it none.
    #[serde(skip_serializing_if = "is_default")]
    pub given_id: bool,
    /// Of a request that came over HTTP: when it was accepted, which is the same in every message that was made
    /// of that. So it tells this publication from others, whatever worker had which message in hand when.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub accepted_at: Option<OffsetDateTime>,
    /// Of an outcome: what the outcome ledger knows it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<OutcomeCopy>,
    /// Of an outcome: how often its notification was tried.
    #[serde(skip_serializing_if = "is_default")]
    pub tries: u64,
    /// Of an outcome: the moment before which the receiver asked not to be tried again.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub not_before: Option<OffsetDateTime>,
}

impl Envelope {
    /// No worker writes a longer one, in bytes, and none is read: what is added to it still fits a message.
    const LONGEST: usize = 100_000;

    /// That of a request that this service publishes itself, and that nobody has had in hand; `given_id` = it made
    /// the id as well.
    pub fn of_request(given_id: bool, accepted_at: Option<OffsetDateTime>) -> Self {
        Self { given_id, accepted_at, ..Self::default() }
    }

    /// The envelope of a message; the default where there is none, or none that can be read.
    pub fn decode(message: &Message) -> Self {
        let Some(text) = &message.envelope else { return Self::default() };
        if text.len() > Self::LONGEST {
            tracing::error!(bytes = text.len(), "a message's envelope is too long: it begins anew");
            return Self::default();
        }
        serde_json::from_str(text).unwrap_or_else(|error| {
            tracing::error!(%error, "a message's envelope cannot be read: it begins anew");
            Self::default()
        })
    }

    /// The text that a broker carries. A history that is too long for it loses the words of older tries,
    /// then the lines of the last build.
    pub fn encode(&self) -> String {
        let mut text = self.to_json();
        for shorten in [History::forget_words, History::forget_log] {
            if text.len() <= Self::LONGEST {
                break;
            }
            let mut shorter = self.clone();
            shorter.history.as_mut().map(shorten);
            text = shorter.to_json();
        }
        text
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an envelope has only string keys")
    }

    /// The message as it is published again by whoever is done with it for now. Its envelope differs, so
    /// that it is not taken for a redelivery of the message that was settled.
    pub fn pass_on(mut self, message: &Message) -> Message {
        self.hops = self.hops.wrapping_add(1);
        Message { envelope: Some(self.encode()), ..message.clone() }
    }

    /// The same, of a request that was read. What was counted until then begins anew.
    pub fn pass_on_with(self, message: &Message, history: &History) -> Message {
        let history = Some(history.clone());
        Self { history, redeliveries: 0, fresh: false, ..self }.pass_on(message)
    }

    /// The same, of a request that is put in the backlog; `fresh` if nobody can have worked on it. What a worker had
    /// counted of it there that gave it back unread stands.
    pub fn put_in_backlog(self, message: &Message, history: &History, fresh: bool) -> Message {
        let history = Some(history.clone());
        Self { history, fresh, ..self }.pass_on(message)
    }

    /// The history; a fresh one where there is none.
    pub fn history(&self, message: &Message) -> History {
        self.history.clone().unwrap_or_else(|| {
            History::new(message.timestamp.unwrap_or_else(OffsetDateTime::now_utc))
        })
    }

    /// What tells a request's publication from others of the same request, as the outcome ledger has it: when it was
    /// accepted, else when a worker first had it in hand.
    pub fn publication(&self, history: &History) -> Option<OffsetDateTime> {
        self.accepted_at.or(history.since)
    }

    /// How often a message was delivered before, the times included that the broker has forgotten.
    pub fn redeliveries_of(&self, delivery: &Delivery) -> u64 {
        delivery.redeliveries.saturating_add(self.redeliveries)
    }

    /// The copy of a build's outcome that was delivered. One without a name of its own is known by its
    /// notification.
    pub fn outcome_copy(&self, build: &BuildIdentity, delivery: &Delivery) -> OutcomeCopy {
        let message = &delivery.message;
        let mut copy = self.outcome.clone().unwrap_or_else(|| {
            let notification = message.message_id.clone().unwrap_or_default();
            OutcomeCopy {
                request: request_name(build, &message.body),
                copy: notification.clone(),
                outcome: notification,
                generation: 0,
                since: None,
            }
        });
        // One that was published twice, since the first confirm did not come, is two copies.
        if delivery.publishing > 0 {
            copy.copy = format!("{}#{}", copy.copy, delivery.publishing);
        }
        copy
    }
}

/// Which build a request's message asks for, see [`parse::identity`].
pub fn identity(message: &Message) -> Option<BuildIdentity> {
    parse::identity(&message.body, message.message_id.as_deref())
}

/// Whether nobody can have worked on a request before: it was delivered once, published once, and given back
/// by no worker.
pub fn is_first(delivery: &Delivery, envelope: &Envelope) -> bool {
    delivery.redeliveries == 0
        && delivery.publishing == 0
        && !is_given_back(&delivery.message, envelope)
}

/// Whether a worker had a request in hand and gave it back. One that only gave it its id, or put it in the
/// backlog, did not; nor did whoever accepted it.
pub fn is_given_back(message: &Message, envelope: &Envelope) -> bool {
    let as_published = Envelope::of_request(envelope.given_id, envelope.accepted_at);
    message.envelope.is_some() && !envelope.fresh && *envelope != as_published
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::fault::{Fault, Reason, StageName};

    fn at(second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(second).expect("a time")
    }

    /// The first delivery of a message.
    pub(in crate::delivery) fn delivery(message: Message) -> Delivery {
        Delivery {
            message,
            tag: 1,
            redeliveries: 0,
            given_up: false,
            is_unreadable: false,
            publishing: 0,
        }
    }

    #[test]
    fn what_is_only_named_was_given_back_by_nobody() {
        let named = Envelope::of_request(true, None);
        let of = |change: fn(&mut Envelope)| {
            let mut envelope = named.clone();
            change(&mut envelope);
            envelope
        };
        for (envelope, given_back) in [
            (named.clone(), false),
            (Envelope::of_request(false, Some(at(5))), false),
            (Envelope::of_request(true, Some(at(5))), false),
            (of(|it| it.fresh = true), false),
            (of(|it| it.redeliveries = 1), true),
            (of(|it| it.hops = 1), true),
        ] {
            let message = Message { envelope: Some(envelope.encode()), ..Message::default() };
            assert_eq!(is_given_back(&message, &envelope), given_back, "{envelope:?}");
        }
        assert!(!is_given_back(&Message::default(), &Envelope::default()), "it is a publisher's");
    }

    #[test]
    fn an_envelope_stays_short_enough_to_be_read_whatever_is_in_it() {
        let (mut history, words) = (History::new(at(5)), "\u{1}".repeat(500));
        let mut fault = Fault::new(StageName::Builder, Reason::EngineFailed, words.clone());
        fault.step = Some(words);
        history.log = vec!["\"".repeat(1_000); 16];
        let mut message = Message::default();
        for tries in 1..=100 {
            history.record(&fault, true);
            message = Envelope::decode(&message).pass_on_with(&message, &history);
            assert!(message.check().is_ok(), "{tries}");
            let read = Envelope::decode(&message).history.expect("it is read");
            assert_eq!((read.counted(), &read.log), (tries, &history.log));
            assert_eq!(read.attempts.last(), history.attempts.last());
        }
        history.log = vec!["\u{1}".repeat(1_000); 20];
        let message = Envelope::default().pass_on_with(&Message::default(), &history);
        let read = Envelope::decode(&message).history.expect("it is read");
        assert_eq!((read.counted(), read.log), (100, Vec::<String>::new()));
    }

    #[test]
    fn an_envelope_that_is_longer_than_any_worker_writes_begins_anew() {
        let long = format!(r#"{{"hops": 7, "x": "{}"}}"#, "x".repeat(100_000));
        let message = Message { envelope: Some(long), ..Message::default() };
        assert_eq!(Envelope::decode(&message), Envelope::default());
    }

    #[test]
    fn an_envelope_reads_as_it_was_written() {
        let mut history = History::new(at(5));
        history.record(&Fault::new(StageName::Pusher, Reason::RegistryFailed, "no"), true);
        let whole = Envelope {
            history: Some(history),
            hops: 1,
            fresh: true,
            redeliveries: 2,
            given_id: true,
            accepted_at: Some(at(4)),
            outcome: Some(OutcomeCopy::first("r".to_owned(), Some(at(5)))),
            tries: 3,
            not_before: Some(at(7)),
        };
        for envelope in [whole, Envelope::default()] {
            let message = Message { envelope: Some(envelope.encode()), ..Message::default() };
            assert_eq!(Envelope::decode(&message), envelope);
        }
        assert_eq!(Envelope::default().encode(), "{}");
    }

    #[test]
    fn an_envelope_that_is_missing_or_cannot_be_read_begins_anew() {
        for text in [None, Some(""), Some("no JSON"), Some(r#"{"history":{"attempts":[99]}}"#)] {
            let message = Message { envelope: text.map(str::to_owned), ..Message::default() };
            assert_eq!(Envelope::decode(&message), Envelope::default(), "{text:?}");
        }
    }

    #[test]
    fn a_request_that_is_passed_on_after_it_was_read_forgets_its_redeliveries() {
        let message = Message { timestamp: Some(at(5)), ..Message::default() };
        let unread = Envelope { redeliveries: 3, ..Envelope::default() }.pass_on(&message);
        let unread = Envelope::decode(&unread);
        assert_eq!((unread.redeliveries, unread.hops), (3, 1));
        let history = unread.history(&message);
        assert_eq!(history.requested_at, at(5));
        let read = Envelope::decode(&unread.pass_on_with(&message, &history));
        assert_eq!((read.redeliveries, read.hops, read.history), (0, 2, Some(history)));
    }

    #[test]
    fn a_delivery_says_which_copy_of_an_outcome_it_is() {
        let id = Some("b.image.ready".to_owned());
        let unnamed = delivery(Message { message_id: id, ..Message::default() });
        let build = &BuildIdentity::new(Some("u"), "b");
        let copy = Envelope::default().outcome_copy(build, &unnamed);
        assert_eq!((copy.copy.as_str(), copy.since), ("b.image.ready", None));

        let first = OutcomeCopy::first("r".to_owned(), Some(at(5)));
        let envelope = Envelope { outcome: Some(first.clone()), ..Envelope::default() };
        assert_eq!(envelope.outcome_copy(build, &unnamed), first, "whoever reads it");
        let twin = envelope.outcome_copy(build, &Delivery { publishing: 1, ..unnamed });
        assert_ne!(twin.copy, first.copy);
        assert_eq!(twin.outcome, first.outcome);
        let next = twin.next_generation();
        assert_eq!((&next.outcome, next.since, next.generation), (&first.outcome, first.since, 1));
        assert!(next.copy != first.copy && !next.copy.contains('#'));
    }
}
