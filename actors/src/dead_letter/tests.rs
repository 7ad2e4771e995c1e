use serde_json::json;

use super::*;

fn letter(body: &Value) -> DeadLetter {
    letter_of(body.to_string().as_bytes())
}

fn letter_of(body: &[u8]) -> DeadLetter {
    let fault = Fault::new(StageName::Builder, Reason::BuildFailed, "It failed.");
    DeadLetter::new("id", body, &History::new(OffsetDateTime::UNIX_EPOCH), &fault)
}

fn json_of(letter: &DeadLetter) -> String {
    String::from_utf8(letter.to_json()).expect("JSON is text")
}

#[test]
fn a_letter_holds_the_request_without_its_credentials_and_says_what_it_lacks() {
    let letter = letter(&json!({
        "userID": "u", "repo": "o/n", "token": "hunter2", "other": "hunter2", "force": true,
        "buildPlan": {
            "secrets": {"npm": "hunter2"}, "buildArgs": {"NPM_TOKEN": "hunter2", "A": "b"},
            "envs": [{"key": "PASSWORD", "value": "hunter2"}, {"key": "C", "value": "d"}],
            "aptPkgs": ["curl"], "buildCommand": "make",
        },
    }));
    assert!(!json_of(&letter).contains("hunter2"), "{letter:?}");
    assert_eq!(
        Value::Object(letter.request.clone()),
        json!({
            "userID": "u", "repo": "o/n", "force": true,
            "buildPlan": {
                "secrets": {"npm": null}, "buildArgs": {"NPM_TOKEN": null, "A": "b"},
                "envs": [{"key": "PASSWORD", "value": null}, {"key": "C", "value": "d"}],
                "aptPkgs": ["curl"], "buildCommand": "make",
            },
        })
    );
    let removed = &letter.removed;
    assert_eq!(
        *removed,
        [
            "buildPlan.buildArgs.NPM_TOKEN",
            "buildPlan.envs.PASSWORD",
            "buildPlan.secrets.npm",
            "token"
        ]
    );
    assert!(letter.holds_the_request());
}

#[test]
fn a_request_without_credentials_is_kept_whole() {
    let body = json!({
        "applicationID": "a", "uuid": "x", "redriveOf": "y",
        "pullInfo": {"userID": "u", "repo": "o/n", "branch": "dev", "token": ""},
        "buildPlan": {"envs": {"A": 1, "B": true}, "nixPkgs": ["...", "jq"]},
    });
    let letter = letter(&body);
    let mut expected = body;
    expected["pullInfo"].as_object_mut().expect("an object").remove("token");
    assert_eq!(Value::Object(letter.request), expected);
    assert_eq!(letter.removed, Vec::<String>::new());
}

#[test]
fn no_credential_stays_wherever_it_is_put() {
    const SECRET: &str = "hunter2-Zx81";
    let hiding_places = [
        json!({"pullInfo": {"token": SECRET, "userID": "u"}}),
        json!({"pullInfo": SECRET}),
        json!({"pullInfo": {"pullInfo": {"token": SECRET}}}),
        json!({"pullInfo": {"buildPlan": {"secrets": {"a": SECRET}}}}),
        json!({"Token": SECRET, "TOKEN": SECRET}),
        json!({"token": {"value": SECRET}}),
        json!({"token": [SECRET]}),
        json!({"token": SECRET, "userID": SECRET}),
        json!({"token": SECRET, "branch": format!("a-{SECRET}-b")}),
        json!({"repo": format!("https://me:{SECRET}@github.com/o/n")}),
        json!({"repo": format!("https://{SECRET}@github.com/o/n")}),
        json!({"repo": {"token": SECRET}}),
        json!({"repo": [SECRET]}),
        json!({"force": SECRET}),
        json!({"buildPlan": SECRET}),
        json!({"buildPlan": [SECRET]}),
        json!({"buildPlan": {"token": SECRET}}),
        json!({"buildPlan": {"secrets": SECRET}}),
        json!({"buildPlan": {"secrets": [SECRET]}}),
        json!({"buildPlan": {"secrets": {"a": {"b": SECRET}}}}),
        json!({"buildPlan": {"secrets": {(format!("npm={SECRET}")): ""}}}),
        json!({"buildPlan": {"secrets": {"a": SECRET}, "installCommand": format!("x {SECRET}")}}),
        json!({"buildPlan": {"envs": format!("TOKEN={SECRET}")}}),
        json!({"buildPlan": {"envs": [format!("TOKEN={SECRET}")]}}),
        json!({"buildPlan": {"envs": [{"name": "TOKEN", "val": SECRET}]}}),
        json!({"buildPlan": {"envs": [{"key": "A", "value": "b", "token": SECRET}]}}),
        json!({"buildPlan": {"envs": [{"key": {"a": SECRET}, "value": "b"}]}}),
        json!({"buildPlan": {"envs": {"A": {"token": SECRET}}}}),
        json!({"buildPlan": {"envs": {"A": [SECRET]}}}),
        json!({"buildPlan": {"envs": {(format!("TOKEN={SECRET}")): "x"}}}),
        json!({"buildPlan": {"buildArgs": [{"key": "MY_TOKEN", "value": SECRET}]}}),
        json!({"buildPlan": {"buildArgs": {"A": format!("https://me:{SECRET}@host/")}}}),
        json!({"token": SECRET, "buildPlan": {"buildArgs": {"A": SECRET}}}),
        json!({"buildPlan": {"installCommand": format!("NPM_TOKEN={SECRET} npm ci")}}),
        json!({"buildPlan": {"installCommand": {"token": SECRET}}}),
        json!({"buildPlan": {"nixPkgs": [{"token": SECRET}]}}),
        json!({"buildPlan": {"aptPkgs": {"token": SECRET}}}),
        json!({"token": SECRET, "buildPlan": {"aptPkgs": [SECRET]}}),
        json!({"buildPlan": {"target": {"token": SECRET}}}),
    ];
    for body in hiding_places {
        let text = json_of(&letter(&body));
        assert!(!text.contains(SECRET), "{body}\n{text}");
    }
    let twice = format!(r#"{{"token":"{SECRET}","token":"{SECRET}2","token":null,"userID":"u"}}"#);
    assert!(!json_of(&letter_of(twice.as_bytes())).contains(SECRET));
    for depth in [2, 100, 1000] {
        let (opened, closed) = (r#"{"buildPlan":"#.repeat(depth), "}".repeat(depth));
        let deep = format!(r#"{opened}"{SECRET}"{closed}"#);
        assert!(!json_of(&letter_of(deep.as_bytes())).contains(SECRET));
    }
}

#[test]
fn what_others_wrote_is_freed_of_the_requests_credentials() {
    let mut history = History::new(OffsetDateTime::UNIX_EPOCH);
    let said = "cannot use hunter2 at https://me:pw@example.com/x";
    let fault = Fault::new(StageName::Builder, Reason::BuildFailed, said).at_step("RUN hunter2");
    history.record(&fault, true);
    history.log = vec!["npm: hunter2".to_owned()];
    let body = json!({"token": "hunter2", "userID": "u"}).to_string();
    let text = json_of(&DeadLetter::new("id", body.as_bytes(), &history, &fault));
    assert!(!text.contains("hunter2") && !text.contains("me:pw"), "{text}");
}

#[test]
fn of_an_unreadable_body_only_size_and_hash_are_kept() {
    let bodies: [&[u8]; 5] =
        [b"hunter2", b"", b"[\"hunter2\"]", b"\"hunter2\"", b"{\"token\":\"hunter2\""];
    for body in bodies {
        let letter = letter_of(body);
        assert_eq!(letter.request.keys().collect::<Vec<_>>(), ["bytes", "sha256"]);
        assert_eq!(letter.request["bytes"], body.len());
        assert!(!letter.holds_the_request());
        assert!(!json_of(&letter).contains("hunter2"));
    }
}

#[test]
fn a_letter_is_bounded_whatever_the_request_and_the_messages_are() {
    let huge = "x".repeat(8 << 20);
    let body = json!({"userID": "u", "applicationID": huge, "token": "t", "repo": "o/n"});
    let mut history = History::new(OffsetDateTime::UNIX_EPOCH);
    let fault = Fault::new(StageName::Builder, Reason::BuildFailed, huge);
    history.record(&fault, true);
    let letter = DeadLetter::new("id", body.to_string().as_bytes(), &history, &fault);
    assert!(json_of(&letter).len() < 16 * 1024);
    assert_eq!(letter.request["userID"], "u");
    assert!(!letter.holds_the_request());
}

#[test]
fn of_a_request_with_countless_credentials_only_the_owner_is_kept() {
    let secrets: Map<_, _> =
        (0..20_000).map(|n| (format!("s{n}"), json!(format!("hunter2-{n:08}-x")))).collect();
    let body = json!({"userID": "u", "repo": "o/n", "buildPlan": {"secrets": secrets}});
    let letter = letter(&Value::Object(body.as_object().cloned().unwrap_or_default()));
    assert!(!json_of(&letter).contains("hunter2"));
    assert!(!letter.holds_the_request() && letter.request["repo"] == "o/n");
}

#[test]
fn a_letter_is_read_as_it_was_written() {
    let written = letter(&json!({"userID": "u", "repo": "o/n", "token": "t"}));
    let read: DeadLetter = serde_json::from_slice(&written.to_json()).expect("a letter");
    assert_eq!(read, written);
}
