//! Texts in the messages that are left on the broker, as its management API shows them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::broker::BrokerAt;
use crate::support::unique;

/// Most messages of a queue that are looked at.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Names of queues, with the text that is in each.
    pub(crate) places: Vec<(String, String)>,
    pub(crate) messages: usize,
}

/// The queues with a message that holds one of these texts.
pub(crate) fn search(texts: &[String]) -> Found {
    let mut found = Found::default();
    let broker = BrokerAt::shared();
    let queues =
        broker.ask(Method::GET, "/api/queues/%2F?columns=name,type,messages,consumers", None);
    for queue in queues.as_array().expect("a list of queues") {
        let name = queue["name"].as_str().expect("a name").to_owned();
        // One that somebody works on is not at rest; a stream is searched as a file.
        let rests = queue["consumers"].as_u64().unwrap_or(0) == 0 && queue["type"] != "stream";
        if !rests || queue["messages"] == 0 || has_requests(&name) {
            continue;
        }
        let wish = json!({"count": MOST, "ackmode": "ack_requeue_true", "encoding": "auto"});
        let messages = broker.ask(Method::POST, &format!("/api/queues/%2F/{name}/get"), Some(wish));
        let messages = messages.as_array().cloned().unwrap_or_default();
        found.messages += messages.len();
        let shown: Vec<String> = messages.iter().map(Value::to_string).collect();
        let text = texts.iter().find(|text| shown.iter().any(|message| message.contains(*text)));
        found.places.extend(text.map(|text| (name, text.clone())));
    }
    found
}

/// Whether requests wait there, which have their token in them: the build queue, its lanes, and where a message of it
/// waits for a while.
fn has_requests(queue: &str) -> bool {
    queue.ends_with(".build") || queue.contains(".build.")
}

/// A queue with one message, which is gone with this value.
pub(crate) struct Planted {
    pub(crate) name: String,
}

impl Planted {
    pub(crate) fn new(text: &str) -> Self {
        let name = unique("canary");
        let broker = BrokerAt::shared();
        let durable = json!({"durable": true});
        broker.ask(Method::PUT, &format!("/api/queues/%2F/{name}"), Some(durable));
        let message = json!({
            "routing_key": name, "payload": text, "payload_encoding": "string", "properties": {},
        });
        broker.ask(Method::POST, "/api/exchanges/%2F/amq.default/publish", Some(message));
        Self { name }
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        BrokerAt::shared().ask(Method::DELETE, &format!("/api/queues/%2F/{}", self.name), None);
    }
}
