//! Takes the credentials out of a request. Only fields that requests have, in the shape that they have
//! there (`docs/requests-and-notifications.md`), are kept: anything else could hold anything.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::model::secret::{Redactor, Secret};
use crate::model::suspect;
use crate::parse::base_images;

/// Fields of the request, and of the older shape's `pullInfo`, that are texts.
const TEXTS: [&str; 12] = [
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
    "redriveOf",
    "tokenRef",
];

/// The fields that say whose request it is.
const OWNER: [&str; 4] = ["userID", "applicationID", "repo", "uuid"];

/// Longest text of such a field, in bytes.
const LONGEST_OWNER: usize = 300;

/// Each known credential is looked for in every text: a request with more is not kept.
const MOST_KNOWN: usize = 256;

/// Takes credentials out, and keeps account of what it took.
#[derive(Default)]
pub(super) struct Cleaner {
    removed: BTreeSet<String>,
    /// The credentials that stood where credentials stand: they may stand elsewhere as well.
    known: Redactor,
    known_count: usize,
}

impl Cleaner {
    /// Knows the credentials of this request.
    pub(super) fn of(map: &Map<String, Value>) -> Self {
        let known = credentials(map);
        let known_count = known.len();
        Self { removed: BTreeSet::new(), known: Redactor::new(known), known_count }
    }

    /// Whether the request has more credentials than it makes sense to look for.
    pub(super) fn is_overwhelmed(&self) -> bool {
        self.known_count > MOST_KNOWN
    }

    /// What was taken out, by its place.
    pub(super) fn into_removed(self) -> Vec<String> {
        self.removed.into_iter().collect()
    }

    /// The request without its credentials.
    pub(super) fn request(&mut self, map: Map<String, Value>) -> Map<String, Value> {
        let nested = map.get("pullInfo").and_then(Value::as_object);
        // The older shape has its token in there, and there alone.
        if nested.unwrap_or(&map).get("token").is_some_and(holds_something) {
            self.removed.insert("token".to_owned());
        }
        let mut kept = Map::new();
        for (name, value) in map {
            let clean = match name.as_str() {
                "registryAuth" => self.lost(&name, &value),
                "pullInfo" => self.pull_info(value),
                "buildPlan" => self.plan(value),
                "force" | "supersede" | "commitStatus" => value.is_boolean().then_some(value),
                text if TEXTS.contains(&text) => self.scalar(text, value, suspect::text),
                _ => None,
            };
            kept.extend(clean.map(|clean| (name, clean)));
        }
        kept
    }

    /// Whose request it is, of one that is not kept.
    pub(super) fn owner(&mut self, map: Map<String, Value>) -> Map<String, Value> {
        let source = match map.get("pullInfo") {
            Some(Value::Object(nested)) => nested.clone(),
            _ => Map::new(),
        };
        let mut kept = Map::new();
        for (name, value) in map.into_iter().chain(source) {
            let short = value.as_str().is_some_and(|text| text.len() <= LONGEST_OWNER);
            if short && OWNER.contains(&name.as_str()) {
                let clean = self.scalar(&name, value, suspect::text);
                kept.extend(clean.map(|clean| (name, clean)));
            }
        }
        self.removed.clear();
        kept
    }

    /// A text that others wrote, with what is known of credentials replaced.
    pub(super) fn text(&self, text: &str) -> String {
        suspect::without_userinfo(&self.known.redact(text))
    }

    fn pull_info(&mut self, value: Value) -> Option<Value> {
        let Value::Object(map) = value else { return self.lost("pullInfo", &value) };
        let mut kept = Map::new();
        for (name, value) in map {
            if TEXTS.contains(&name.as_str()) {
                let clean = self.scalar(&format!("pullInfo.{name}"), value, suspect::text);
                kept.extend(clean.map(|clean| (name, clean)));
            }
        }
        Some(Value::Object(kept))
    }

    fn plan(&mut self, value: Value) -> Option<Value> {
        let Value::Object(map) = value else { return self.lost("buildPlan", &value) };
        let mut kept = Map::new();
        for (name, value) in map {
            let path = format!("buildPlan.{name}");
            let clean = match name.as_str() {
                "builder" | "rootDirectory" | "dockerfilePath" | "nixpacksPath" | "target" => {
                    self.scalar(&path, value, suspect::text)
                }
                "installCommand" | "buildCommand" | "startCommand" => {
                    self.scalar(&path, value, suspect::command)
                }
                "nixPkgs" | "nixLibs" | "aptPkgs" => self.list(&path, value),
                "envs" | "buildArgs" => self.variables(&path, value),
                "secrets" => self.secrets(&path, value),
                "platforms" => self.list(&path, value),
                "registryAuth" => self.lost(&path, &value),
                _ => None,
            };
            kept.extend(clean.map(|clean| (name, clean)));
        }
        Some(Value::Object(kept))
    }

    /// A text that is none of a credential, or a number or flag in its place.
    fn scalar(
        &mut self,
        path: &str,
        value: Value,
        is_suspect: impl Fn(&str) -> bool,
    ) -> Option<Value> {
        match &value {
            Value::String(text) if self.holds_known(text) || is_suspect(text) => {
                self.lost(path, &value)
            }
            Value::Array(_) | Value::Object(_) => self.lost(path, &value),
            _ => Some(value),
        }
    }

    fn list(&mut self, path: &str, value: Value) -> Option<Value> {
        let good = |item: &Value| {
            item.as_str().is_some_and(|text| !self.holds_known(text) && !suspect::text(text))
        };
        match &value {
            Value::Array(items) if items.iter().all(good) => Some(value),
            _ => self.lost(path, &value),
        }
    }

    /// An object of texts, or a list of `{key,value}`: values that look like a credential become
    /// `null`.
    fn variables(&mut self, path: &str, value: Value) -> Option<Value> {
        match value {
            Value::Object(map) => {
                let clean = |(name, value): (String, Value)| {
                    let value = self.variable(path, &name, value)?;
                    Some((name, value))
                };
                Some(Value::Object(map.into_iter().filter_map(clean).collect()))
            }
            Value::Array(pairs) => {
                let clean = |mut pair: Value| {
                    let Some(name) = pair.get("key").and_then(Value::as_str).map(str::to_owned)
                    else {
                        return self.lost(path, &pair);
                    };
                    let value = pair.get_mut("value").map(Value::take).unwrap_or_default();
                    let value = self.variable(path, &name, value)?;
                    Some(json!({"key": name, "value": value}))
                };
                Some(Value::Array(pairs.into_iter().filter_map(clean).collect()))
            }
            other => self.lost(path, &other),
        }
    }

    fn variable(&mut self, path: &str, name: &str, value: Value) -> Option<Value> {
        if !is_plain_name(name) {
            return self.lost(path, &Value::Bool(true));
        }
        let text = match &value {
            Value::Null => return Some(value),
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(_) => return Some(value),
            Value::Array(_) | Value::Object(_) => {
                self.lost(&format!("{path}.{name}"), &value);
                return Some(Value::Null);
            }
        };
        if self.holds_known(&text) || suspect::variable(name, &text) {
            self.lost(&format!("{path}.{name}"), &value);
            return Some(Value::Null);
        }
        Some(value)
    }

    /// Only the ids, so that an operator sees what a redrive needs.
    fn secrets(&mut self, path: &str, value: Value) -> Option<Value> {
        let Value::Object(map) = value else { return self.lost(path, &value) };
        let mut ids = Map::new();
        for (id, value) in map {
            if is_plain_name(&id) {
                self.lost(&format!("{path}.{id}"), &value);
                ids.insert(id, Value::Null);
            } else {
                self.lost(path, &value);
            }
        }
        Some(Value::Object(ids))
    }

    fn holds_known(&self, text: &str) -> bool {
        self.known.redact(text) != text
    }

    /// Keeps account of a value that is not kept; an absent one is no loss.
    fn lost(&mut self, path: &str, value: &Value) -> Option<Value> {
        if !value.is_null() {
            self.removed.insert(path.to_owned());
        }
        None
    }
}

/// The credentials that stand where credentials stand.
fn credentials(map: &Map<String, Value>) -> Vec<Secret> {
    let mut texts = Vec::new();
    for source in [Some(map), map.get("pullInfo").and_then(Value::as_object)].into_iter().flatten()
    {
        texts.extend(source.get("token").and_then(Value::as_str));
    }
    let plan = map.get("buildPlan");
    let secrets = plan.and_then(|plan| plan.get("secrets")).and_then(Value::as_object);
    for secret in secrets.into_iter().flat_map(Map::values).filter_map(Value::as_str) {
        texts.push(secret);
        texts.extend(secret.lines().filter(|line| suspect::looks_random(line)));
    }
    texts.extend(base_images::passwords(map));
    for name in ["envs", "buildArgs"] {
        let variables: Vec<(&str, &Value)> = match plan.and_then(|plan| plan.get(name)) {
            Some(Value::Object(map)) => map.iter().map(|(name, value)| (&**name, value)).collect(),
            Some(Value::Array(pairs)) => pairs
                .iter()
                .filter_map(|pair| Some((pair.get("key")?.as_str()?, pair.get("value")?)))
                .collect(),
            _ => Vec::new(),
        };
        // Values such as `true` stand in every other place as well, and mean nothing there.
        let telling = |(name, value): (&str, &'_ Value)| {
            value
                .as_str()
                .is_some_and(|value| suspect::looks_random(value) && suspect::variable(name, value))
        };
        texts.extend(
            variables.into_iter().filter(|v| telling(*v)).filter_map(|(_, value)| value.as_str()),
        );
    }
    texts.into_iter().map(str::trim).map(Secret::new).collect()
}

fn holds_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        _ => true,
    }
}

/// A name of a variable or a secret, and nothing that somebody wrote in its place.
fn is_plain_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && !suspect::text(name)
}
