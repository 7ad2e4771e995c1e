//! The history of a request, in the header that travels with it.
//!
//! The request's own body is never touched: a redelivery is the publisher's message with one header
//! more. So a message that the broker itself moves to the fail queue has its history with it.

use time::OffsetDateTime;

use crate::job::History;
use crate::ports::Message;
use crate::redelivery::passed_on;

/// The header that holds the history, as JSON.
pub const HEADER: &str = "x-image-builder-history";

/// The history of a message; a fresh one where there is none, or none that can be read. `redelivered`
/// says whether anybody had the message before.
pub fn of(message: &Message, redelivered: bool) -> History {
    let now = OffsetDateTime::now_utc();
    let fresh = || History::new(message.timestamp.unwrap_or(now));
    match message.headers.get(HEADER) {
        None => History { since: (!redelivered).then_some(now), ..fresh() },
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
