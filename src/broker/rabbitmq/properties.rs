//! Messages to AMQP properties, and deliveries to messages.

use std::collections::BTreeMap;

use image_builder_actors::ports::{Message, RawDelivery};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use time::OffsetDateTime;

use crate::broker::rabbitmq::topology::LONGEST_TTL;

/// Survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// Room that the properties take in their frame besides the headers and the message id.
const OTHER_PROPERTIES: usize = 512;

/// The properties of a message.
///
/// # Errors
/// One sentence on what AMQP cannot carry. `frame_max` is the longest frame of the connection, in
/// bytes: all properties travel in one, and a longer one would cost the connection.
pub(crate) fn of_message(message: &Message, frame_max: u32) -> Result<BasicProperties, String> {
    let id = message.message_id.as_deref().unwrap_or_default();
    let size: usize = message.headers.iter().map(|(key, value)| key.len() + value.len() + 6).sum();
    let room = (frame_max as usize).saturating_sub(OTHER_PROPERTIES);
    if size + id.len() > room {
        return Err(format!("its headers are {size} bytes long together; the broker takes {room}"));
    }
    let mut headers = FieldTable::default();
    for (key, value) in &message.headers {
        headers.insert(short("a header's name", key)?, text(value));
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_headers(headers);
    if !id.is_empty() {
        properties = properties.with_message_id(short("its message id", id)?);
    }
    if let Some(seconds) = message.timestamp.and_then(|t| u64::try_from(t.unix_timestamp()).ok()) {
        properties = properties.with_timestamp(seconds);
    }
    if let Some(time_to_live) = message.expires_after {
        // A longer time would be refused, and with it the message.
        let millis = time_to_live.min(LONGEST_TTL).as_millis();
        properties = properties.with_expiration(millis.to_string().into());
    }
    Ok(properties)
}

/// What was delivered, as the inside sees it.
pub(super) fn of_delivery(delivery: Delivery) -> RawDelivery {
    let Delivery { delivery_tag, redelivered, properties, data, .. } = delivery;
    let headers = properties.headers().as_ref();
    let counted = headers.and_then(|table| number(table.inner().get("x-delivery-count")?));
    RawDelivery {
        tag: delivery_tag,
        // Not every broker counts every redelivery.
        redeliveries: counted.unwrap_or(0).max(u64::from(redelivered)),
        over_delivery_limit: headers.is_some_and(over_delivery_limit),
        message: Message {
            body: data,
            message_id: properties
                .message_id()
                .as_ref()
                .map(ToString::to_string)
                .filter(|id| !id.is_empty()),
            timestamp: properties.timestamp().and_then(moment),
            headers: headers.map(text_headers).unwrap_or_default(),
            expires_after: None,
        },
    }
}

/// The headers that are text and not the broker's own.
fn text_headers(table: &FieldTable) -> BTreeMap<String, String> {
    table
        .inner()
        .iter()
        .filter(|(key, _)| !is_brokers_own(key.as_str()))
        .filter_map(|(key, value)| Some((key.to_string(), as_text(value)?)))
        .collect()
}

/// What the broker writes about its own deliveries and dead-lettering, 3.x and 4.x.
fn is_brokers_own(key: &str) -> bool {
    matches!(key, "x-death" | "x-delivery-count" | "x-acquired-count")
        || key.starts_with("x-first-death-")
        || key.starts_with("x-last-death-")
}

/// Whether one of the queues that this message has died in says that it was delivered too often.
fn over_delivery_limit(table: &FieldTable) -> bool {
    let Some(AMQPValue::FieldArray(deaths)) = table.inner().get("x-death") else {
        return false;
    };
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

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value.to_owned()))
}

fn short(what: &str, value: &str) -> Result<ShortString, String> {
    ShortString::try_new(value)
        .map_err(|_| format!("{what} is {} bytes long; AMQP takes 255", value.len()))
}
