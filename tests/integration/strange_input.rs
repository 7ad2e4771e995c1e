//! What no publisher of today sends: fields of other types, words of later versions, bodies that
//! cannot be read, ids that fit nowhere. See [`crate::bad_input`] for what is simply wrong.

use std::collections::{BTreeMap, BTreeSet};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::support::canary;
use crate::support::marked::Marked;
use crate::support::unique;
use crate::support::until;
use crate::support::world::{World, full_name, with};

fn with_id(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into())
}

/// A request that would be good with these fields alone.
fn plain(world: &World, fields: Value) -> Value {
    with(json!({"userID": world.user, "repo": "o/n"}), fields)
}

/// The older shape.
fn nested(world: &World, fields: Value) -> Value {
    json!({"pullInfo": plain(world, fields)})
}

/// Publishes each request, and checks that it is told once, for this reason and with this text in
/// the message.
#[track_caller]
fn fail_at_once(requests: Vec<(Value, &str)>, world: &World, reason: &str) {
    let worker = world.worker();
    let published: BTreeMap<String, (Value, &str)> = requests
        .into_iter()
        .map(|(request, said)| {
            let id = unique("strange");
            world.publish_raw(request.to_string().as_bytes(), with_id(&id));
            (id, (request, said))
        })
        .collect();
    for (id, (request, said)) in &published {
        let told = world.outcome(id).failed(reason);
        assert!(told.text("/message").contains(said), "{request}: {}", told.raw);
        assert_eq!((told.text("/fault"), told.text("/stage")), ("user", "listener"), "{request}");
        assert_eq!(told.text("/userID"), world.user, "{request}");
        assert_eq!(told.data()["attempts"], 1, "{request}");
    }
    world.build(&world.request(&Marked::good().repo)).ready();
    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (published.len() + 1, published.len()));
}

#[test]
fn a_field_of_another_type_is_named() {
    let world = World::new();
    let secret = canary::secret("a-secret-of-another-type");
    world.keep_secret(&secret);
    let top = |fields: Value| plain(&world, fields);
    let older = |fields: Value| nested(&world, fields);
    let plan = |fields: Value| plain(&world, json!({"buildPlan": fields}));
    let requests = vec![
        (top(json!({"token": [secret]})), "`token` must be a string; it is a list."),
        (top(json!({"repo": {"name": "n"}})), "`repo` must be a string; it is an object."),
        (top(json!({"type": 1})), "`type` must be a string; it is a number."),
        (top(json!({"connector": ["github"]})), "`connector` must be a string; it is a list."),
        (top(json!({"type": "branch", "branch": 7})), "`branch` must be a string"),
        (top(json!({"type": "tag", "tag": 1.5})), "`tag` must be a string"),
        (top(json!({"type": "release", "release": true})), "`release` must be a string"),
        (top(json!({"type": "commit", "commit": 1234567})), "`commit` must be a string"),
        (top(json!({"applicationID": {}})), "`applicationID` must be a string"),
        (top(json!({"uuid": 7})), "`uuid` must be a string"),
        (top(json!({"force": 1})), "`force` must be true or false; it is a number."),
        (top(json!({"buildPlan": ["dockerfile"]})), "`buildPlan` must be an object; it is a list."),
        (plan(json!({"builder": {}})), "`buildPlan.builder` must be a string"),
        (plan(json!({"rootDirectory": ["web"]})), "`buildPlan.rootDirectory` must be a string"),
        (plan(json!({"dockerfilePath": 1})), "`buildPlan.dockerfilePath` must be a string"),
        (plan(json!({"nixpacksPath": false})), "`buildPlan.nixpacksPath` must be a string"),
        (plan(json!({"target": 0})), "`buildPlan.target` must be a string"),
        (plan(json!({"envs": "A=1"})), "`buildPlan.envs` must be an object, or a list"),
        (plan(json!({"envs": ["A=1"]})), "`buildPlan.envs` must hold only objects"),
        (plan(json!({"envs": {"A": {}}})), "`buildPlan.envs` needs a text for `A`"),
        (plan(json!({"envs": {"A B": "1"}})), "`buildPlan.envs` has a key that is no variable's"),
        (plan(json!({"buildArgs": [{"key": "A"}]})), "`buildPlan.buildArgs` must be an object"),
        (plan(json!({"buildArgs": {"A": [1]}})), "`buildPlan.buildArgs` needs a text for `A`"),
        (plan(json!({"secrets": [secret]})), "`buildPlan.secrets` must be an object"),
        (
            plan(json!({"secrets": {"A": {"b": secret}}})),
            "`buildPlan.secrets` needs a text for `A`",
        ),
        (plan(json!({"nixPkgs": "jq"})), "`buildPlan.nixPkgs` must be a list of strings"),
        (plan(json!({"nixLibs": [1]})), "`buildPlan.nixLibs` must be a list of strings"),
        (plan(json!({"aptPkgs": {}})), "`buildPlan.aptPkgs` must be a list of strings"),
        (plan(json!({"installCommand": ["npm", "ci"]})), "`buildPlan.installCommand` must be a"),
        (plan(json!({"buildCommand": true})), "`buildPlan.buildCommand` must be a string"),
        (plan(json!({"startCommand": {}})), "`buildPlan.startCommand` must be a string"),
        (older(json!({"token": {"value": secret}})), "`pullInfo.token` must be a string"),
        (older(json!({"repo": 7})), "`pullInfo.repo` must be a string"),
        (older(json!({"connector": 7})), "`pullInfo.connector` must be a string"),
        (older(json!({"branch": ["main"]})), "`pullInfo.branch` must be a string"),
        (older(json!({"commit": 7})), "`pullInfo.commit` must be a string"),
    ];
    fail_at_once(requests, &world, "invalid_request");
}

#[test]
fn a_word_of_a_later_version_is_unsupported_and_named() {
    let world = World::new();
    let requests = vec![
        (plain(&world, json!({"type": "merge-queue", "mergeQueue": "main"})), "`merge-queue`"),
        (plain(&world, json!({"type": "Branch", "branch": "main"})), "`Branch`"),
        (plain(&world, json!({"connector": "sourcehut"})), "`sourcehut`"),
        (nested(&world, json!({"connector": "sourcehut"})), "`sourcehut`"),
        (plain(&world, json!({"buildPlan": {"builder": "bazel"}})), "`bazel`"),
        (
            plain(&world, json!({"version": 99, "connector": "gitea", "instance": {"id": 1}})),
            "`gitea`",
        ),
    ];
    fail_at_once(requests, &world, "unsupported");
}

#[test]
fn what_a_later_version_adds_is_ignored() {
    let world = World::new();
    let worker = world.worker();
    let source = Marked::good();
    let deep = (0..50).fold(json!("deep"), |inner, _| json!({"in": [inner]}));
    let later =
        json!({"version": 99, "priority": {"class": "gold", "weight": 1.5e3}, "deep": deep});
    let flat = with(world.request(&source.repo), later.clone());
    let flat = with(
        flat,
        json!({
            "token": null, "type": null, "branch": null, "applicationID": null, "force": null,
            "buildPlan": {
                "version": 99, "cache": {"mode": "max"}, "platforms": ["linux/amd64"],
                "builder": null, "target": "", "secrets": null,
                "envs": [{"key": "A", "value": "1", "scope": "build"}],
            },
        }),
    );
    let info = json!({"userID": world.user, "repo": full_name(&source.repo), "commit": "latest"});
    let older =
        with(json!({"uuid": unique("older"), "pullInfo": with(info, later.clone())}), later);
    for request in [flat, older] {
        world.build(&request).ready().after(1);
    }
    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (2, 0));
}

#[test]
fn a_body_that_cannot_be_read_leaves_a_dead_copy_of_its_size_and_nothing_in_the_way() {
    let world = World::new();
    let worker = world.worker();
    let secret = canary::secret("a-secret-in-what-cannot-be-read");
    world.keep_secret(&secret);
    let good = plain(&world, json!({"token": secret})).to_string();
    let field = |value: &str| good.replacen('{', &format!("{{\"x\": {value}, "), 1).into_bytes();
    let bodies: BTreeMap<String, Vec<u8>> = [
        // Deeper than any reader goes.
        field(&format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))),
        field(&format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000))),
        // Not UTF-8, in the middle of what is JSON otherwise.
        [&field("\"?\"")[..7], &[0xc3, 0x28], &field("\"?\"")[7..]].concat(),
        field("\"\\ud800\""),
        field("1e999"),
        field("NaN"),
        field("'x'"),
        format!("{good}{good}").into_bytes(),
        format!("\u{feff}{good}").into_bytes(),
        format!("{good}\0").into_bytes(),
        good.as_bytes()[..good.len() - 1].to_vec(),
        good.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        format!("{good} {}", "x".repeat(16 << 20)).into_bytes(),
    ]
    .into_iter()
    .map(|body| (unique("unreadable"), body))
    .collect();
    for (id, body) in &bodies {
        world.publish_raw(body, with_id(id));
    }
    until("a line on each", || {
        let given_up = worker.lines().iter().filter(|line| line.contains("given up")).count();
        (given_up == bodies.len()).then_some(())
    });
    world.build(&world.request(&Marked::good().repo)).ready();

    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!(told.len(), 1, "nobody is told of what has no user");
    assert_eq!(letters.len(), bodies.len());
    for letter in letters {
        let letter: Value = serde_json::from_slice(&letter.body).expect("dead letters are JSON");
        assert_eq!(letter["reason"], "invalid_request", "{letter}");
        let id = letter["buildID"].as_str().expect("it has one");
        assert_eq!(letter["request"]["bytes"], bodies[id].len(), "{letter}");
        assert!(letter["request"]["sha256"].is_string(), "{letter}");
    }
}

#[test]
fn a_request_of_many_megabytes_is_told_to_its_user() {
    let world = World::new();
    let text = "x".repeat(16 << 20);
    let requests = vec![
        (plain(&world, json!({"note": text})), "bytes"),
        (plain(&world, json!({"buildPlan": {"buildArgs": {"A": text}}})), "bytes"),
    ];
    fail_at_once(requests, &world, "invalid_request");
}

#[test]
fn an_odd_message_id_is_kept_as_it_is() {
    let world = World::new();
    let worker = world.worker();
    let ids = [
        "../../etc/passwd",
        "\"quoted\"",
        "a=b&c?d#e%0d%0ax:y",
        "{}[];,",
        "two words",
        " ",
        "tab\tid",
        "line\r\nx-evil: 1",
        "\u{fc}n\u{ef}",
        "\u{202e}desrever",
        "\0",
        &"i".repeat(201),
        &"\u{fc}".repeat(127),
        &"i".repeat(255),
    ];
    let good = Marked::good();
    for id in ids {
        // One that is built, and one that is bad and so leaves a dead letter.
        for request in [
            json!({"userID": world.user, "repo": full_name(&good.repo)}),
            json!({"userID": world.user}),
        ] {
            world.publish_raw(request.to_string().as_bytes(), with_id(id));
        }
    }
    until("all are told", || (world.managers.all().len() >= 2 * ids.len()).then_some(()));

    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    let mut webhook_ids = BTreeSet::new();
    for kind in ["image.ready", "build.failed"] {
        let of_kind = told.iter().filter(|told| told.kind() == kind);
        let named: BTreeSet<&str> = of_kind.clone().map(|told| told.build_id()).collect();
        assert_eq!(named, BTreeSet::from(ids));
        webhook_ids.extend(of_kind.map(|told| &told.webhook_id));
    }
    assert_eq!(webhook_ids.len(), 2 * ids.len());
    let kept: BTreeSet<&str> = letters.iter().map(|letter| letter.message_id.as_str()).collect();
    assert_eq!(kept, BTreeSet::from(ids));
}

#[test]
fn an_envelope_that_cannot_be_read_begins_anew() {
    let world = World::new();
    let worker = world.worker();
    let source = Marked::good();
    let later = json!({"requestedAt": "2026-01-01T00:00:00Z", "attempts": [{"version": 99}]});
    let whole = json!({"history": later, "redeliveries": "many"}).to_string();
    let text = |text: &str| AMQPValue::LongString(text.into());
    let strange = [
        ("envelope", text("no JSON")),
        ("envelope", text(&whole)),
        ("envelope", AMQPValue::LongInt(99)),
        ("envelope", AMQPValue::FieldTable(FieldTable::default())),
        // What the version before wrote.
        ("history", text("no JSON")),
        ("history", text(&later.to_string())),
    ];
    let count = strange.len();
    for (name, value) in strange {
        let mut headers = FieldTable::default();
        headers.insert(format!("x-image-builder-{name}").into(), value);
        let request = world.request(&source.repo);
        let properties = BasicProperties::default().with_headers(headers);
        world.publish_raw(request.to_string().as_bytes(), properties);
        world.outcome(request["uuid"].as_str().expect("it has one")).ready().after(1);
    }
    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (count, 0));
}

#[test]
fn what_the_workers_own_queues_hold_of_a_later_version_is_in_nobodys_way() {
    let world = World::new();
    let worker = world.worker();
    let outcome = json!({"version": 99, "type": "image.signed", "data": {}}).to_string();
    let later = unique("later");
    let queue = |name: &str| world.settings[name].clone();
    world.broker.publish(&queue("OUTCOME_QUEUE"), outcome.as_bytes(), with_id(&later));
    world.broker.publish(&queue("FAIL_QUEUE"), b"a failed try of another kind", with_id("failed"));
    worker.wait_for_line_where("it waits", |line| {
        line.contains("cannot read waits for one that can") && line.contains(&later)
    });
    world.build(&world.request(&Marked::good().repo)).ready();
    until("the other one is given up", || {
        worker.lines().iter().any(|line| line.contains("given up")).then_some(())
    });

    assert_eq!(worker.restarts(), [0; 6]);
    worker.stop();
    // It comes from the ladder as often as it is sent there.
    let waiting = until("it is there", || world.broker.get(&queue("OUTCOME_QUEUE")));
    assert_eq!(waiting.body, outcome.as_bytes());
    let (told, letters) = world.finish(&[]);
    assert_eq!((told.len(), letters.len()), (1, 1));
    assert!(letters[0].text.contains("invalid_request"), "{letters:?}");
}
