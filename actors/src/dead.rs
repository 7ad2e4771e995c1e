//! The dead queue's copies: what was given up, with its history, and without any credential.

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::fault::Fault;
use crate::job::{History, hex};

/// One dead letter.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Letter<'a> {
    #[serde(rename = "buildID")]
    build_id: &'a str,
    #[serde(with = "time::serde::rfc3339")]
    died_at: OffsetDateTime,
    stage: &'a str,
    reason: &'a str,
    message: &'a str,
    history: &'a History,
    /// The request without its credentials, or what identifies a body that cannot be read.
    request: Value,
}

/// The body of a dead letter.
pub fn letter(build_id: &str, body: &[u8], history: &History, fault: &Fault) -> Vec<u8> {
    let letter = Letter {
        build_id,
        died_at: OffsetDateTime::now_utc(),
        stage: fault.stage.as_str(),
        reason: fault.reason.as_str(),
        message: &fault.message,
        history,
        request: without_credentials(body),
    };
    serde_json::to_vec(&letter).expect("a dead letter has only string keys")
}

/// The fields of a request that are kept: those of the contract, credentials apart. A field that this
/// version does not know could hold anything, and goes.
const KEPT: [&str; 14] = [
    "userID",
    "type",
    "connector",
    "repo",
    "branch",
    "tag",
    "release",
    "commit",
    "applicationID",
    "uuid",
    "force",
    "redriveOf",
    "pullInfo",
    "buildPlan",
];
const KEPT_OF_PLAN: [&str; 14] = [
    "builder",
    "rootDirectory",
    "dockerfilePath",
    "nixpacksPath",
    "target",
    "envs",
    "buildArgs",
    "secrets",
    "nixPkgs",
    "nixLibs",
    "aptPkgs",
    "installCommand",
    "buildCommand",
    "startCommand",
];

fn without_credentials(body: &[u8]) -> Value {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Value::Object(kept(map)),
        _ => json!({"bytes": body.len(), "sha256": hex(&Sha256::digest(body))}),
    }
}

fn kept(map: Map<String, Value>) -> Map<String, Value> {
    let clean = |(name, value): (String, Value)| {
        if !KEPT.contains(&name.as_str()) {
            return None;
        }
        let value = match (name.as_str(), value) {
            ("pullInfo", Value::Object(nested)) => Value::Object(kept(nested)),
            ("buildPlan", Value::Object(plan)) => Value::Object(kept_of_plan(plan)),
            ("pullInfo" | "buildPlan", _) => return None,
            // An address may hold a credential.
            (_, Value::String(text)) if text.contains('@') && text.contains("://") => return None,
            (_, value @ (Value::Object(_) | Value::Array(_))) => json!(value.to_string().len()),
            (_, value) => value,
        };
        Some((name, value))
    };
    map.into_iter().filter_map(clean).collect()
}

fn kept_of_plan(plan: Map<String, Value>) -> Map<String, Value> {
    let clean = |(name, value): (String, Value)| {
        if !KEPT_OF_PLAN.contains(&name.as_str()) {
            return None;
        }
        let value = match (name.as_str(), value) {
            // Only the ids, so that an operator sees what a redrive needs.
            ("secrets", Value::Object(secrets)) => {
                Value::Object(secrets.into_iter().map(|(id, _)| (id, Value::Null)).collect())
            }
            ("secrets", _) => return None,
            ("envs" | "buildArgs", Value::Object(texts)) => {
                let blank = |(key, value): (String, Value)| {
                    let value = if names_a_credential(&key) { Value::Null } else { value };
                    (key, value)
                };
                Value::Object(texts.into_iter().map(blank).collect())
            }
            ("envs", Value::Array(pairs)) => {
                Value::Array(pairs.into_iter().map(blank_pair).collect())
            }
            (_, value) => value,
        };
        Some((name, value))
    };
    plan.into_iter().filter_map(clean).collect()
}

fn blank_pair(mut pair: Value) -> Value {
    let blank = pair.get("key").and_then(Value::as_str).is_none_or(names_a_credential);
    if blank && let Some(map) = pair.as_object_mut() {
        map.insert("value".to_owned(), Value::Null);
    }
    pair
}

/// Build arguments and variables are no place for credentials, but people put them there.
fn names_a_credential(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["token", "secret", "passw", "credential", "key", "auth", "dsn", "_url", "_uri"]
        .iter()
        .any(|part| key.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_holds_the_request_without_its_credentials() {
        let body = json!({
            "userID": "u", "repo": "o/n", "token": "hunter2", "other": "hunter2",
            "pullInfo": {"token": "hunter2", "repo": "https://me:hunter2@github.com/o/n"},
            "buildPlan": {
                "secrets": {"npm": "hunter2"}, "buildArgs": {"NPM_TOKEN": "hunter2", "A": "b"},
                "envs": [{"key": "PASSWORD", "value": "hunter2"}, {"key": "C", "value": "d"}],
            },
        });
        let kept = without_credentials(body.to_string().as_bytes());
        assert!(!kept.to_string().contains("hunter2"), "{kept}");
        assert_eq!(kept["buildPlan"]["buildArgs"]["A"], "b");
        assert_eq!(kept["buildPlan"]["envs"][1]["value"], "d");
        assert_eq!(kept["buildPlan"]["secrets"], json!({"npm": null}));
        assert_eq!(kept["userID"], "u");
    }

    #[test]
    fn of_an_unreadable_body_only_size_and_hash_are_kept() {
        let kept = without_credentials(b"hunter2");
        assert_eq!(kept["bytes"], 7);
        assert_eq!(kept["sha256"].as_str().map(str::len), Some(64));
    }
}
