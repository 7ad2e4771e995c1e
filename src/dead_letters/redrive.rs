//! From a letter to a fresh request.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Message;
use time::OffsetDateTime;

use super::letter::Found;
use crate::text::plain;

/// Where a letter says that it lacks a build secret; its id follows.
const SECRETS: &str = "buildPlan.secrets.";
const ENVS: &str = "buildPlan.envs.";
const BUILD_ARGS: &str = "buildPlan.buildArgs.";
const TOKEN: &str = "token";

/// Values by their names.
pub(crate) type Values = BTreeMap<String, Secret>;

/// What is given for what was taken out of a letter.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) token: Option<Secret>,
    pub(crate) secrets: Values,
    pub(crate) envs: Values,
    pub(crate) build_args: Values,
    /// Go on without what is missing.
    pub(crate) without_credentials: bool,
}

/// Which requests get the token that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The one that an operator named, whether it had one before or not.
    Always,
    /// Those that had one.
    WhereNeeded,
}

/// Why there is no request to be made of a letter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it is not a letter of this version")]
    NoLetter,
    #[error(
        "the request could not be read or was too long, and only its size and hash were kept: its client \
         has to publish it again"
    )]
    NotKept,
    #[error("{}, or --without-credentials to go on without", ways(.0))]
    Lacking(Vec<String>),
    #[error("the request has no build secret `{0}`")]
    UnknownSecret(String),
}

/// The id of the request that is made of a letter. It looks like a random one, but is the same each
/// time: where a command dies between a request and the removal of its letter, the next one asks
/// for the same build, and not for a second one.
pub(crate) fn new_id(found: &Found) -> String {
    let mut hash = Sha256::new();
    hash.update(b"redrive\0");
    hash.update(&found.body);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// Whether the letter has use for every build secret that was given: a slip in an id would
/// otherwise show in the build at the earliest.
pub(crate) fn check_secrets(found: &Found, given: &Given) -> Result<(), Refusal> {
    let Some(letter) = &found.letter else { return Ok(()) };
    let has_use = |id: &&String| letter.removed.contains(&format!("{SECRETS}{id}"));
    match given.secrets.keys().find(|id| !has_use(id)) {
        Some(id) => Err(Refusal::UnknownSecret(id.clone())),
        None => Ok(()),
    }
}

/// The body of a fresh request.
pub(crate) fn request(
    found: &Found,
    given: &Given,
    token: Token,
    new_id: &str,
) -> Result<Vec<u8>, Refusal> {
    let letter = found.letter.as_ref().ok_or(Refusal::NoLetter)?;
    if !letter.holds_the_request() {
        return Err(Refusal::NotKept);
    }
    let mut request = letter.request.clone();
    let mut lacking = Vec::new();
    for path in &letter.removed {
        if !fill(&mut request, path, given) {
            lacking.push(path.clone());
        }
    }
    if !lacking.is_empty() && !given.without_credentials {
        return Err(Refusal::Lacking(lacking));
    }
    if token == Token::Always {
        fill(&mut request, TOKEN, given);
    }
    leave_out_empty(&mut request);
    request.insert("uuid".to_owned(), Value::from(new_id));
    request.insert("redriveOf".to_owned(), Value::from(letter.build_id.as_str()));
    Ok(Value::Object(request).to_string().into_bytes())
}

/// The message that carries a fresh request.
pub(crate) fn message(body: Vec<u8>, id: &str) -> Message {
    Message {
        body,
        message_id: Some(id.to_owned()),
        timestamp: Some(OffsetDateTime::now_utc()),
        envelope: Some(Envelope::of_request(true, None).encode()),
        ..Message::default()
    }
}

/// Puts a value in its place; `false` = it was not given, or its place is gone.
fn fill(request: &mut Map<String, Value>, path: &str, given: &Given) -> bool {
    if path == TOKEN {
        let Some(token) = &given.token else { return false };
        let token = Value::from(token.expose());
        match request.get_mut("pullInfo") {
            Some(Value::Object(nested)) => nested.insert(TOKEN.to_owned(), token),
            _ => request.insert(TOKEN.to_owned(), token),
        };
        return true;
    }
    let kinds: [(&str, &str, &Values); 3] = [
        (SECRETS, "secrets", &given.secrets),
        (ENVS, "envs", &given.envs),
        (BUILD_ARGS, "buildArgs", &given.build_args),
    ];
    let place = kinds.iter().find_map(|(prefix, field, values)| {
        let name = path.strip_prefix(prefix)?;
        Some((*field, name, values.get(name)?.expose()))
    });
    let Some((field, name, value)) = place else { return false };
    match request.get_mut("buildPlan").and_then(|plan| plan.get_mut(field)) {
        Some(Value::Object(map)) => {
            map.insert(name.to_owned(), Value::from(value));
            true
        }
        Some(Value::Array(pairs)) => {
            let mut filled = false;
            for pair in pairs.iter_mut().filter(|pair| pair["key"] == name) {
                pair["value"] = Value::from(value);
                filled = true;
            }
            filled
        }
        _ => false,
    }
}

/// What was given for what was taken out of a letter, as the HTTP API takes it, from a request that was made with
/// it.
pub(crate) fn given_in(request: &[u8], removed: &[String]) -> Value {
    let request: Value = serde_json::from_slice(request).unwrap_or_default();
    let nested = &request["pullInfo"][TOKEN];
    let token = if nested.is_null() { &request[TOKEN] } else { nested };
    let mut given = json!({TOKEN: token, "withoutCredentials": true});
    for (prefix, field) in [(SECRETS, "secrets"), (ENVS, "envs"), (BUILD_ARGS, "buildArgs")] {
        let place = &request["buildPlan"][field];
        let value = |name: &str| match place.as_array() {
            Some(pairs) => pairs.iter().find(|pair| pair["key"] == name).map(|pair| &pair["value"]),
            None => place.get(name),
        };
        let names = removed.iter().filter_map(|path| path.strip_prefix(prefix));
        let values = names.filter_map(|name| Some((name.to_owned(), value(name)?.clone())));
        given[field] = values.collect::<Map<_, _>>().into();
    }
    given
}

/// A place without a value would be a mistake of the request.
fn leave_out_empty(request: &mut Map<String, Value>) {
    let Some(plan) = request.get_mut("buildPlan").and_then(Value::as_object_mut) else { return };
    for field in ["secrets", "envs", "buildArgs"] {
        match plan.get_mut(field) {
            Some(Value::Object(map)) => map.retain(|_, value| !value.is_null()),
            Some(Value::Array(pairs)) => pairs.retain(|pair| !pair["value"].is_null()),
            _ => {}
        }
    }
}

/// What is missing, and how each of it is given.
fn ways(lacking: &[String]) -> String {
    let way = |path: &String| {
        let named = plain(path);
        if path == TOKEN {
            "its token: give one with --token-file or --token-stdin".to_owned()
        } else if let Some(id) = path.strip_prefix(SECRETS) {
            format!("the secret `{0}`: give it with --secret {0}=FILE", plain(id))
        } else if let Some(name) = path.strip_prefix(ENVS) {
            format!("the value of `{}`: give it with --env-file", plain(name))
        } else if let Some(name) = path.strip_prefix(BUILD_ARGS) {
            format!("the value of `{}`: give it with --build-arg-file", plain(name))
        } else {
            format!(
                "`{named}`, which held a credential or could not be read and cannot be given here"
            )
        }
    };
    let ways: Vec<_> = lacking.iter().map(way).collect();
    format!("it lacks {}", ways.join("; "))
}

#[cfg(test)]
mod tests {
    use image_builder_actors::dead_letter::DeadLetter;
    use image_builder_actors::model::fault::{Fault, Reason, StageName};
    use image_builder_actors::model::history::History;

    use super::*;

    fn found(request: &Value) -> Found {
        let fault = Fault::new(StageName::Connector, Reason::Unauthorized, "No.");
        let history = History::new(OffsetDateTime::UNIX_EPOCH);
        let letter = DeadLetter::new("old", request.to_string().as_bytes(), &history, &fault);
        let body = letter.to_json();
        let letter = Some(Box::new(letter));
        Found { id: "old".to_owned(), tag: 1, body, letter, kept_until: None }
    }

    fn full() -> Value {
        json!({
            "userID": "u", "repo": "o/n", "token": "t0", "uuid": "old",
            "buildPlan": {
                "secrets": {"npm": "s0"},
                "envs": [{"key": "API_KEY", "value": "e0"}, {"key": "A", "value": "b"}],
                "buildArgs": {"NPM_TOKEN": "a0", "C": "d"},
            },
        })
    }

    fn values(name: &str, value: &str) -> Values {
        [(name.to_owned(), Secret::new(value))].into()
    }

    fn given() -> Given {
        Given {
            token: Some(Secret::new("t1")),
            secrets: values("npm", "s1"),
            envs: values("API_KEY", "e1"),
            build_args: values("NPM_TOKEN", "a1"),
            without_credentials: false,
        }
    }

    fn made(found: &Found, given: &Given, token: Token) -> Value {
        let body = request(found, given, token, "new").expect("a request");
        serde_json::from_slice(&body).expect("JSON")
    }

    #[test]
    fn what_was_taken_out_is_put_back_in_its_place() {
        let request = made(&found(&full()), &given(), Token::WhereNeeded);
        assert_eq!(
            request,
            json!({
                "userID": "u", "repo": "o/n", "token": "t1", "uuid": "new", "redriveOf": "old",
                "buildPlan": {
                    "secrets": {"npm": "s1"},
                    "envs": [{"key": "API_KEY", "value": "e1"}, {"key": "A", "value": "b"}],
                    "buildArgs": {"NPM_TOKEN": "a1", "C": "d"},
                },
            })
        );
    }

    #[test]
    fn what_was_given_is_found_again_in_the_request() {
        let letter = found(&full());
        let removed = letter.letter.as_ref().expect("a letter").removed.clone();
        let body = request(&letter, &given(), Token::Always, "new").expect("a request");
        assert_eq!(
            given_in(&body, &removed),
            json!({
                "token": "t1", "secrets": {"npm": "s1"}, "envs": {"API_KEY": "e1"},
                "buildArgs": {"NPM_TOKEN": "a1"}, "withoutCredentials": true,
            })
        );
    }

    #[test]
    fn what_is_not_given_is_named_with_the_way_to_give_it() {
        let refused = request(&found(&full()), &Given::default(), Token::Always, "new");
        let text = refused.expect_err("nothing was given").to_string();
        for way in [
            "--token-file",
            "--secret npm=FILE",
            "`API_KEY`: give it with --env-file",
            "`NPM_TOKEN`: give it with --build-arg-file",
            "--without-credentials",
        ] {
            assert!(text.contains(way), "{way} is missing in: {text}");
        }
    }

    #[test]
    fn without_credentials_the_places_are_left_out() {
        let given = Given { without_credentials: true, ..Given::default() };
        assert_eq!(
            made(&found(&full()), &given, Token::Always),
            json!({
                "userID": "u", "repo": "o/n", "uuid": "new", "redriveOf": "old",
                "buildPlan": {
                    "secrets": {}, "envs": [{"key": "A", "value": "b"}], "buildArgs": {"C": "d"},
                },
            })
        );
    }

    #[test]
    fn the_older_shape_gets_its_token_where_it_had_it() {
        let body = json!({"pullInfo": {"userID": "u", "repo": "o/n", "token": "t0"}});
        let request = made(&found(&body), &given(), Token::WhereNeeded);
        assert_eq!(request["pullInfo"]["token"], "t1");
        assert_eq!(request.get("token"), None);
    }

    #[test]
    fn a_request_without_a_token_gets_one_only_where_it_is_named() {
        let anonymous = found(&json!({"userID": "u", "repo": "o/n"}));
        assert_eq!(made(&anonymous, &given(), Token::Always)["token"], "t1");
        assert_eq!(made(&anonymous, &given(), Token::WhereNeeded).get("token"), None);
    }

    #[test]
    fn what_was_not_kept_cannot_be_redriven() {
        let refused = request(&found(&json!("x")), &given(), Token::Always, "new");
        assert_eq!(refused, Err(Refusal::NotKept));
        let held = found(&json!({"userID": "u", "repo": "https://me:hunter2@github.com/o/n"}));
        let refused = request(&held, &given(), Token::Always, "new").expect_err("no repository");
        assert!(refused.to_string().contains("`repo`, which held a credential"), "{refused}");
    }

    #[test]
    fn a_slip_in_a_secrets_id_is_noticed() {
        let given = Given { secrets: values("nmp", "s1"), ..given() };
        let refused = check_secrets(&found(&full()), &given);
        assert_eq!(refused, Err(Refusal::UnknownSecret("nmp".to_owned())));
    }

    #[test]
    fn a_letter_always_makes_the_same_request_and_another_letter_another_one() {
        let (one, other) = (found(&full()), found(&json!({"userID": "u", "repo": "o/n"})));
        assert_eq!(new_id(&one), new_id(&one));
        assert_ne!(new_id(&one), new_id(&other));
        let id: uuid::Uuid = new_id(&one).parse().expect("a UUID");
        assert_eq!(id.get_version(), Some(uuid::Version::Random));
    }
}
