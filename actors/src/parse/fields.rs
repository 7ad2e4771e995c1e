//! Typed reading of a JSON object's fields, collecting one message for each that is wrong.
//!
//! `null` and the empty string count as absent.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::model::build_log::cut;
use crate::model::secret::Secret;
use crate::model::suspect;

/// Longest user or application id, in bytes.
pub(super) const LONGEST_NAME: usize = 256;

pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'a str,
    pub(super) faults: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>, prefix: &'a str) -> Self {
        Self { map, prefix, faults: Vec::new() }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn wrong_type(&mut self, name: &str, wanted: &str, found: &Value) {
        let (prefix, found) = (self.prefix, type_name(found));
        self.faults.push(format!("`{prefix}{name}` must be {wanted}; it is {found}."));
    }

    pub(super) fn fault(&mut self, name: &str, what: &str) {
        let prefix = self.prefix;
        self.faults.push(format!("`{prefix}{name}` {what}."));
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        match self.get(name)? {
            Value::String(text) if text.trim().is_empty() => None,
            Value::String(text) => Some(text.trim().to_owned()),
            other => {
                self.wrong_type(name, "a string", other);
                None
            }
        }
    }

    pub(super) fn required(&mut self, name: &str) -> Option<String> {
        let before = self.faults.len();
        let text = self.text(name);
        if text.is_none() && self.faults.len() == before {
            self.fault(name, "is required");
        }
        text
    }

    /// An id, exactly as it was given: what is taken off an id makes it that of somebody else.
    pub(super) fn name(&mut self, name: &str, required: bool) -> Option<String> {
        let text = if required { self.required(name)? } else { self.text(name)? };
        let given = self.get(name).and_then(Value::as_str).unwrap_or_default();
        if !is_name(given) {
            let what = format!(
                "must have at most {LONGEST_NAME} bytes, no control characters and no white space at its ends"
            );
            self.fault(name, &what);
            return None;
        }
        Some(text)
    }

    /// A credential: never quoted in a message.
    pub(super) fn secret(&mut self, name: &str) -> Option<Secret> {
        let text = self.text(name)?;
        if text.len() > 4096 || text.chars().any(char::is_control) {
            self.fault(name, "must have at most 4096 bytes and no control characters");
            return None;
        }
        Some(Secret::new(text))
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        match self.get(name) {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                self.wrong_type(name, "true or false", other);
                false
            }
        }
    }

    pub(super) fn object(&mut self, name: &str) -> Option<&'a Map<String, Value>> {
        match self.get(name)? {
            Value::Object(map) => Some(map),
            other => {
                self.wrong_type(name, "an object", other);
                None
            }
        }
    }

    pub(super) fn list(&mut self, name: &str) -> Vec<String> {
        let items = match self.get(name) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => {
                self.wrong_type(name, "a list of strings", other);
                return Vec::new();
            }
        };
        let texts: Option<Vec<_>> =
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
        texts.unwrap_or_else(|| {
            self.fault(name, "must be a list of strings");
            Vec::new()
        })
    }

    /// An object of texts; with `pairs`, a list of `{key,value}` is accepted too.
    pub(super) fn texts(&mut self, name: &str, pairs: bool) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        match self.get(name) {
            None => {}
            Some(Value::Object(map)) => {
                for (key, value) in map {
                    self.add_text(name, key, value, &mut texts);
                }
            }
            Some(Value::Array(items)) if pairs => {
                let mut values = BTreeMap::new();
                for item in items {
                    let pair = (item.get("key").and_then(Value::as_str), item.get("value"));
                    let (Some(key), Some(value)) = pair else {
                        return self.none(name, "must hold only objects with `key` and `value`");
                    };
                    if values.insert(key, value).is_some_and(|before| before != value) {
                        let what = format!("has two values for {}", quote(key));
                        return self.none(name, &what);
                    }
                    self.add_text(name, key, value, &mut texts);
                }
            }
            Some(other) => {
                let wanted =
                    if pairs { "an object, or a list of {key,value}" } else { "an object" };
                self.wrong_type(name, wanted, other);
            }
        }
        texts
    }

    /// No texts, since there is something wrong with them.
    fn none(&mut self, name: &str, what: &str) -> BTreeMap<String, String> {
        self.fault(name, what);
        BTreeMap::new()
    }

    fn add_text(
        &mut self,
        name: &str,
        key: &str,
        value: &Value,
        texts: &mut BTreeMap<String, String>,
    ) {
        if !is_variable(key) {
            let what = format!("has a key that is no variable's name: {}", quote(key));
            return self.fault(name, &what);
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            other => {
                let what = format!("needs a text for {}; it is {}", quote(key), type_name(other));
                return self.fault(name, &what);
            }
        };
        if text.contains('\0') {
            return self.fault(name, &format!("has a NUL byte in {}", quote(key)));
        }
        texts.insert(key.to_owned(), text);
    }
}

/// Whether a text can be a user's or application's id.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.trim() == text
        && text.len() <= LONGEST_NAME
        && !text.chars().any(char::is_control)
}

/// Whether a value counts as none.
pub(super) fn is_absent(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty())
}

/// `[A-Za-z_][A-Za-z0-9_.-]*`, at most 128 bytes: variables' names, and ids of secrets.
fn is_variable(key: &str) -> bool {
    key.len() <= 128
        && key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// A stranger's text in a message: short, on one line, and none that may be a credential in a wrong place.
pub(super) fn quote(text: &str) -> String {
    if suspect::text(text) || suspect::looks_random(text) {
        return "(not repeated here, since it may be a credential)".to_owned();
    }
    let text: String = text.chars().filter(|c| !c.is_control() && *c != '`').collect();
    format!("`{}`", cut(text, 80))
}

pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
