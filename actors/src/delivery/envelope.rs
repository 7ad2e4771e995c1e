//! The history of a request, in the header that travels with it.
//!
//! The request's own body is never touched: a redelivery is the publisher's message with one header
//! more. So a message that the broker itself moves to the fail queue has its history with it.

use time::OffsetDateTime;

use crate::delivery::dedup::passed_on;
use crate::model::history::History;
use crate::parse;
use crate::ports::{Message, REPEATED};

/// The header that holds the history, as JSON.
pub const HEADER: &str = "x-image-builder-history";

/// The build id of a message, see [`parse::build_id`].
pub fn build_id(message: &Message) -> Option<String> {
    parse::build_id(&message.body, message.message_id.as_deref())
}

/// Whether nobody can have had a request in hand before: it was never delivered, never published by a
/// worker, and published once.
pub fn is_first(message: &Message, redeliveries: u64) -> bool {
    let of_others = [HEADER, REPEATED].iter().any(|name| message.headers.contains_key(*name));
    redeliveries == 0 && !of_others
}

/// The history of a message; a fresh one where there is none, or none that can be read.
pub fn of(message: &Message) -> History {
    let fresh = || History::new(message.timestamp.unwrap_or_else(OffsetDateTime::now_utc));
    match message.headers.get(HEADER) {
        None => fresh(),
        Some(json) => serde_json::from_str(json).unwrap_or_else(|error| {
            tracing::error!(%error, "a message's history cannot be read: it starts anew");
            fresh()
        }),
    }
}

/// The message with this history in place of its own, to be published.
pub fn with(message: &Message, history: &History) -> Message {
    let mut message = passed_on(message);
    let json = serde_json::to_string(history).expect("a history has only string keys");
    message.headers.insert(HEADER.to_owned(), json);
    message
}
