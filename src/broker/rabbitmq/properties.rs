//! Messages to AMQP properties, and deliveries to messages.

use std::time::Duration;

use image_builder_actors::ports::{Delivery, LONGEST_ENVELOPE, LONGEST_TRACEPARENT, Message};
use image_builder_actors::telemetry::trace::TRACEPARENT;
use lapin::BasicProperties;
use lapin::message::Delivery as AmqpDelivery;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use time::OffsetDateTime;

use super::frames::UNREADABLE;
use crate::broker::rabbitmq::topology::LONGEST_TTL;
use crate::broker::rabbitmq::user::User;

/// The header that holds a message's envelope.
const ENVELOPE: &str = "x-image-builder-envelope";

/// The header of a message that is published once more, since the broker's answer to the first time was
/// lost: the number of times before. All of them may be in the queue.
const REPEATED: &str = "x-image-builder-repeated";

/// The header that says whose turn a request in the backlog waits for.
const USER: &str = "x-image-builder-user";

/// What the version before wrote in place of an envelope: the history alone.
const HISTORY: &str = "x-image-builder-history";

/// How often the broker has delivered a message.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// Where a message was before, and why it is no longer there.
const DEATHS: &str = "x-death";

/// The headers that are read here.
pub(super) const KNOWN_HEADERS: &[&str] =
    &[ENVELOPE, REPEATED, HISTORY, TRACEPARENT, DELIVERY_COUNT, DEATHS, UNREADABLE];

/// Survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// Room that the properties take in their frame besides the headers and the message id.
const OTHER_PROPERTIES: usize = 512;

/// A message on its way to a queue.
#[derive(Debug, Clone, Default)]
pub(super) struct Outgoing {
    pub(super) message: Message,
    /// How long a queue keeps it at the most; `None` = for ever.
    pub(super) expires_after: Option<Duration>,
    /// How often it was published before.
    pub(super) publishing: u64,
    /// Whose turn it waits for in the backlog.
    pub(super) user: Option<User>,
}

impl From<Message> for Outgoing {
    fn from(message: Message) -> Self {
        Self { message, ..Self::default() }
    }
}

/// The properties of a message.
///
/// # Errors
/// One sentence on what AMQP cannot carry. `frame_max` is the longest frame of the connection, in
/// bytes: all properties travel in one, and a longer one would cost the connection.
pub(super) fn of_message(outgoing: &Outgoing, frame_max: u32) -> Result<BasicProperties, String> {
    let Outgoing { message, expires_after, publishing, user } = outgoing;
    let repeated = (*publishing > 0).then(|| publishing.to_string());
    let headers = [
        (ENVELOPE, message.envelope.as_deref()),
        (TRACEPARENT, message.traceparent.as_deref()),
        (REPEATED, repeated.as_deref()),
        (USER, user.as_ref().map(User::as_str)),
    ];
    let id = message.message_id.as_deref().unwrap_or_default();
    let size: usize =
        headers.iter().filter_map(|(name, text)| Some(name.len() + (*text)?.len() + 6)).sum();
    let room = (frame_max as usize).saturating_sub(OTHER_PROPERTIES);
    if size + id.len() > room {
        return Err(format!("its headers are {size} bytes long together; the broker takes {room}"));
    }
    let mut table = FieldTable::default();
    for (name, text) in headers {
        if let Some(text) = text {
            table.insert(name.into(), AMQPValue::LongString(LongString::from(text.to_owned())));
        }
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_headers(table);
    if !id.is_empty() {
        properties = properties.with_message_id(short(id)?);
    }
    if let Some(seconds) = message.timestamp.and_then(|t| u64::try_from(t.unix_timestamp()).ok()) {
        properties = properties.with_timestamp(seconds);
    }
    if let Some(time_to_live) = expires_after {
        // A longer time would be refused, and with it the message.
        let millis = (*time_to_live).min(LONGEST_TTL).as_millis();
        properties = properties.with_expiration(millis.to_string().into());
    }
    Ok(properties)
}

/// Whose turn a request in the backlog waits for; one that nobody wrote there is nobody's.
pub(super) fn user_of(delivery: &AmqpDelivery) -> User {
    let headers = delivery.properties.headers().as_ref();
    let name = headers.and_then(|table| table.inner().get(USER)).and_then(as_text);
    User::named(name.unwrap_or_default())
}

/// What was delivered, as the inside sees it.
pub(super) fn of_delivery(delivery: AmqpDelivery) -> Delivery {
    let AmqpDelivery { delivery_tag, redelivered, properties, data, .. } = delivery;
    of_parts(delivery_tag, redelivered, &properties, data)
}

fn of_parts(tag: u64, redelivered: bool, properties: &BasicProperties, body: Vec<u8>) -> Delivery {
    let headers = properties.headers().as_ref();
    let header = |name: &str| headers.and_then(|table| table.inner().get(name));
    let text = |name: &str| header(name).and_then(as_text);
    // What is republished has to fit.
    let bounded = |name: &str, longest| text(name).filter(|text| text.len() <= longest);
    let from_before = || Some(format!(r#"{{"history":{}}}"#, bounded(HISTORY, LONGEST_ENVELOPE)?));
    Delivery {
        tag,
        // Not every broker counts every redelivery.
        redeliveries: header(DELIVERY_COUNT)
            .and_then(number)
            .unwrap_or(0)
            .max(u64::from(redelivered)),
        given_up: header(DEATHS).is_some_and(over_delivery_limit),
        is_unreadable: header(UNREADABLE).is_some(),
        publishing: text(REPEATED).and_then(|times| times.parse().ok()).unwrap_or(0),
        message: Message {
            body,
            message_id: properties
                .message_id()
                .as_ref()
                .map(ToString::to_string)
                .filter(|id| !id.is_empty()),
            timestamp: properties.timestamp().and_then(moment),
            traceparent: bounded(TRACEPARENT, LONGEST_TRACEPARENT),
            envelope: bounded(ENVELOPE, LONGEST_ENVELOPE).or_else(from_before),
        },
    }
}

/// Whether one of the queues that a message has died in says that it was delivered too often.
fn over_delivery_limit(deaths: &AMQPValue) -> bool {
    let AMQPValue::FieldArray(deaths) = deaths else { return false };
    deaths.as_slice().iter().any(|death| match death {
        AMQPValue::FieldTable(death) => {
            let reason = death.inner().get("reason").and_then(as_text);
            reason.as_deref() == Some("delivery_limit")
        }
        _ => false,
    })
}

fn as_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn number(value: &AMQPValue) -> Option<u64> {
    let number = match value {
        AMQPValue::ShortShortInt(n) => i64::from(*n),
        AMQPValue::ShortShortUInt(n) => i64::from(*n),
        AMQPValue::ShortInt(n) => i64::from(*n),
        AMQPValue::ShortUInt(n) => i64::from(*n),
        AMQPValue::LongInt(n) => i64::from(*n),
        AMQPValue::LongUInt(n) => i64::from(*n),
        AMQPValue::LongLongInt(n) => *n,
        _ => return None,
    };
    u64::try_from(number).ok()
}

/// A timestamp as AMQP has it, in seconds; `None` for what no calendar has.
fn moment(seconds: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()
}

fn short(id: &str) -> Result<ShortString, String> {
    ShortString::try_new(id)
        .map_err(|_| format!("its message id is {} bytes long; AMQP takes 255", id.len()))
}

#[cfg(test)]
mod tests {
    use image_builder_actors::delivery::envelope::Envelope;
    use image_builder_actors::model::fault::{Fault, Reason, StageName};
    use image_builder_actors::model::history::History;

    use super::*;

    fn delivered(headers: &[(&'static str, &str)]) -> Delivery {
        let mut table = FieldTable::default();
        for (name, text) in headers {
            let text = LongString::from((*text).to_owned());
            table.insert((*name).into(), AMQPValue::LongString(text));
        }
        let properties = BasicProperties::default().with_headers(table);
        of_parts(1, false, &properties, Vec::new())
    }

    #[test]
    fn the_history_that_the_version_before_wrote_is_read() {
        let mut history = History::new(OffsetDateTime::UNIX_EPOCH);
        history.record(&Fault::new(StageName::Pusher, Reason::RegistryFailed, "no"), true);
        let json = serde_json::to_string(&history).expect("JSON");
        let before = delivered(&[(HISTORY, &json)]);
        assert_eq!(Envelope::decode(&before.message).history, Some(history));
        let both = delivered(&[(HISTORY, &json), (ENVELOPE, "{}")]);
        assert_eq!(both.message.envelope.as_deref(), Some("{}"));
        assert_eq!(delivered(&[]).message.envelope, None);
    }
}
