//! Dead letters: copies of requests that were given up, with their history, and without any
//! credential.
//!
//! | file | what it does |
//! |---|---|
//! | `clean.rs` | takes the credentials out of a request, field by field |

mod clean;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::model::build_log::cut;
use crate::model::digest::hex;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::history::History;
use crate::model::limits::Limits;
use crate::parse::Document;
use clean::Cleaner;

/// Longest message of a dead letter and of each of its tries, in bytes.
const LONGEST_MESSAGE: usize = 4 * 1024;

/// One dead letter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    #[serde(rename = "buildID")]
    pub build_id: String,
    #[serde(with = "time::serde::rfc3339")]
    pub died_at: OffsetDateTime,
    pub stage: StageName,
    pub reason: Reason,
    pub message: String,
    pub history: History,
    /// The request without its credentials; of a message that cannot be read only `bytes` and `sha256`,
    /// of one that is longer than a request may be, or all credentials, its owner besides.
    pub request: Map<String, Value>,
    /// What the request held and this copy does not, and a build may need: `token`,
    /// `buildPlan.secrets.<id>`, `buildPlan.envs.<name>`, … Where the place of a value is kept, it
    /// holds `null`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

impl DeadLetter {
    /// Makes the dead letter of a request that was given up.
    pub fn new(build_id: &str, body: &[u8], history: &History, fault: &Fault) -> Self {
        let mut cleaner = Cleaner::default();
        let request = match Document::read(body) {
            // What a name is meant to say that stands twice is not for a redrive to decide.
            Ok(document) if document.ambiguity().is_some() => {
                let map = document.value.as_object().cloned().unwrap_or_default();
                cleaner = Cleaner::of(&map);
                cleaner.owner(map).into_iter().chain(identity(body)).collect()
            }
            Ok(Document { value: Value::Object(map), .. }) => {
                cleaner = Cleaner::of(&map);
                let too_long = body.len() > Limits::default().request_bytes;
                if too_long || cleaner.is_overwhelmed() {
                    cleaner.owner(map).into_iter().chain(identity(body)).collect()
                } else {
                    cleaner.request(map)
                }
            }
            _ => identity(body).into_iter().collect(),
        };
        let text = |text: &str| cut(cleaner.text(text), LONGEST_MESSAGE);
        let mut history = history.clone();
        for attempt in &mut history.attempts {
            attempt.message = text(&attempt.message);
            attempt.step = attempt.step.as_deref().map(text);
        }
        history.log = history.log.iter().map(|line| text(line)).collect();
        Self {
            build_id: build_id.to_owned(),
            died_at: OffsetDateTime::now_utc(),
            stage: fault.stage,
            reason: fault.reason,
            message: text(&fault.message),
            history,
            request,
            removed: cleaner.into_removed(),
        }
    }

    /// Makes the dead letter of a message whose properties could not be read: of such a message nothing is
    /// relied on, and nothing but what identifies its body is kept.
    pub fn of_unreadable(build_id: &str, body: &[u8], history: &History, fault: &Fault) -> Self {
        Self {
            build_id: build_id.to_owned(),
            died_at: OffsetDateTime::now_utc(),
            stage: fault.stage,
            reason: fault.reason,
            message: fault.message.clone(),
            history: history.clone(),
            request: identity(body).into_iter().collect(),
            removed: Vec::new(),
        }
    }

    /// Whether it holds the request, and not only what identifies it.
    pub fn holds_the_request(&self) -> bool {
        // No field of a request has this name, and fields that no request has are not kept.
        !self.request.contains_key("sha256")
    }

    /// The body of the message that carries it.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a dead letter has only string keys")
    }
}

/// What identifies a body that is not kept.
fn identity(body: &[u8]) -> [(String, Value); 2] {
    [
        ("bytes".to_owned(), json!(body.len())),
        ("sha256".to_owned(), json!(hex(&Sha256::digest(body)))),
    ]
}

#[cfg(test)]
mod tests;
