//! What is no good request: told to its user where there is one, never retried, and never in the way
//! of the good ones.

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::canary;
use crate::support::unique;
use crate::support::world::{World, dockerfile, repository};

/// Properties with a message id, as a publisher sends them that has no `uuid`.
fn with_id(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into())
}

#[test]
fn bad_requests_are_told_to_their_user_once_and_good_ones_go_on() {
    let world = World::new();
    let worker = world.worker();
    let repo = repository("good", &[("Dockerfile", &dockerfile("RUN true"))]);
    let user = world.user.as_str();
    let bad = [
        (json!({"userID": user}), "invalid_request", "`repo` is required"),
        (json!({"userID": user, "repo": 7}), "invalid_request", "`repo` must be a string"),
        (json!({"userID": user, "repo": "no-owner"}), "invalid_request", "owner/name"),
        (json!({"userID": user, "repo": "o/n", "force": "yes"}), "invalid_request", "`force`"),
        (json!({"userID": user, "repo": "o/n", "type": "branch"}), "invalid_request", "`branch`"),
        (json!({"userID": user, "repo": "o/n", "type": "wish"}), "unsupported", "`wish`"),
        (json!({"userID": user, "repo": "o/n", "connector": "cvs"}), "unsupported", "`cvs`"),
        (
            json!({"userID": user, "repo": "o/n", "type": "commit", "commit": "xyz"}),
            "invalid_request",
            "`commit`",
        ),
        (
            json!({"userID": user, "repo": "o/n", "buildPlan": {"buildArgs": []}}),
            "invalid_request",
            "buildArgs",
        ),
        (
            json!({"userID": user, "repo": "o/n", "buildPlan": "all"}),
            "invalid_request",
            "buildPlan",
        ),
        (json!({"userID": user, "repo": "o/n", "pullInfo": 1}), "invalid_request", "pullInfo"),
        (
            json!({"userID": user, "repo": "http://169.254.169.254/o/n"}),
            "forbidden_source",
            "169.254.169.254",
        ),
        (
            json!({"userID": user, "repo": "o/n", "big": "x".repeat(1 << 20)}),
            "invalid_request",
            "bytes",
        ),
    ];
    let published: Vec<_> = bad
        .into_iter()
        .map(|(mut request, reason, said)| {
            request["uuid"] = Value::from(unique("bad"));
            (world.publish(&request), reason, said)
        })
        .collect();
    for (build_id, reason, said) in &published {
        let told = world.outcome(build_id).failed(reason);
        assert!(told.text("/message").contains(said), "{said}: {}", told.raw);
        assert_eq!(told.text("/stage"), "listener", "{}", told.raw);
        assert_eq!(told.text("/fault"), "user", "{}", told.raw);
        assert_eq!(told.text("/userID"), user, "{}", told.raw);
        assert_eq!(told.data()["attempts"], 1, "{}", told.raw);
    }
    world.build(&world.request(&repo)).ready();

    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!(told.len(), published.len() + 1, "each was told once");
    assert_eq!(letters.len(), published.len(), "each bad one has its dead letter");
}

#[test]
fn what_has_no_user_is_kept_as_a_dead_copy_and_nothing_more() {
    let world = World::new();
    let worker = world.worker();
    let repo = repository("good", &[("Dockerfile", &dockerfile("RUN true"))]);
    let secret = canary::secret("a-secret-in-rubbish");
    world.keep_secret(&secret);
    let bodies: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"this is no JSON".to_vec(),
        format!("{{\"token\": \"{secret}\", ").into_bytes(),
        b"[1, 2]".to_vec(),
        b"null".to_vec(),
        vec![0xff, 0x00, 0xfe],
        vec![b'['; 1 << 20],
        json!({"repo": "o/n", "token": secret}).to_string().into_bytes(),
        json!({"repo": "o/n", "userID": ""}).to_string().into_bytes(),
        json!({"repo": "o/n", "userID": ["u"]}).to_string().into_bytes(),
    ];
    for body in &bodies {
        world.publish_raw(body, with_id(&unique("rubbish")));
    }
    // One without any id goes another way round.
    world.publish_raw(b"neither JSON nor an id", BasicProperties::default());
    for _ in 0..=bodies.len() {
        crate::support::until("a line on each", || {
            let given_up = worker.lines().iter().filter(|line| line.contains("given up")).count();
            (given_up == bodies.len() + 1).then_some(())
        });
    }
    world.build(&world.request(&repo)).ready();

    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!(told.len(), 1, "nobody is told of rubbish");
    assert_eq!(letters.len(), bodies.len() + 1);
    for letter in letters {
        let letter: Value = serde_json::from_slice(&letter.body).expect("dead letters are JSON");
        assert_eq!(letter["reason"], "invalid_request", "{letter}");
        let request = &letter["request"];
        assert!(request["sha256"].is_string() || request["repo"] == "o/n", "{letter}");
    }
}
