//! `image-builder dead redrive`.

use std::time::Duration;

use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::parse;
use image_builder_actors::parse::Rules;
use serde_json::{Value, json};

use crate::plain;
use crate::support::worker::Ended;
use crate::world::{World, letter};

/// A request with one credential of each kind.
fn with_credentials() -> Value {
    json!({
        "userID": "u1", "repo": "octo/web", "token": "canary-4b7d-token-0",
        "buildPlan": {
            "secrets": {"npm": "canary-4b7d-secret-0"},
            "envs": {"API_KEY": "k3y-0", "MODE": "production"},
            "buildArgs": {"NPM_TOKEN": "canary-4b7d-arg-0"},
        },
    })
}

fn file(directory: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("it can be written");
    path.to_string_lossy().into_owned()
}

/// The only request on the build queue.
#[track_caller]
fn only_request(world: &World) -> Value {
    let requests = world.take_requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    let (message_id, request) = requests.into_iter().next().expect("one");
    assert_eq!(request["uuid"], message_id.as_str());
    request
}

#[track_caller]
fn refused(world: &World, ended: &Ended, reason: &str) {
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains(reason), "{ended:?}");
    assert!(world.take_requests().is_empty());
}

#[test]
fn a_redriven_build_is_asked_for_under_a_new_id_that_names_the_old_one() {
    let world = World::new();
    let mut asked = plain();
    asked["uuid"] = json!("b1");
    asked["buildPlan"] = json!({"builder": "dockerfile", "envs": [{"key": "A", "value": "b"}]});
    world.dead_letter("b1", Reason::RegistryRefused, &asked);
    world.dead_letter("b2", Reason::RegistryRefused, &plain());

    let stdout = world.good(&["redrive", "b1"]);
    let request = only_request(&world);
    let new_id = request["uuid"].as_str().expect("an id").to_owned();
    assert_eq!(stdout, format!("b1 -> {new_id}\n"));
    assert!(uuid::Uuid::parse_str(&new_id).is_ok(), "{new_id}");

    let rules = Rules::new("https://github.com", Limits::default());
    let read = parse::parse(request.to_string().as_bytes(), &new_id, &rules).expect("good");
    assert_eq!(read.redrive_of.as_deref(), Some("b1"));

    asked["uuid"] = json!(new_id);
    asked["redriveOf"] = json!("b1");
    assert_eq!(request, asked);
    assert_eq!(world.take_dead(), ["b2"]);
}

#[test]
fn a_token_is_read_from_the_standard_input() {
    let world = World::new();
    let asked = json!({"userID": "u1", "repo": "octo/web", "token": "canary-4b7d-old-token"});
    world.dead_letter("b1", Reason::Unauthorized, &asked);
    let ended = world.run_with_input(&["redrive", "b1", "--token-stdin"], "new-token\n");
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(!format!("{ended:?}").contains("new-token"));
    assert_eq!(only_request(&world)["token"], "new-token");
    assert!(world.take_dead().is_empty());
}

#[test]
fn a_token_is_read_from_the_environment_or_a_file() {
    let world = World::new();
    let directory = tempfile::tempdir().expect("a directory");
    let token = file(&directory, "token", "canary-4b7d-from-file\n");
    let asked =
        json!({"pullInfo": {"userID": "u1", "repo": "octo/web", "token": "canary-4b7d-old-token"}});
    for id in ["b1", "b2", "b3"] {
        world.dead_letter(id, Reason::Unauthorized, &asked);
    }
    let ended =
        world.run_with_variable(&["redrive", "b1"], "IMAGE_BUILDER_TOKEN", "canary-4b7d-from-env");
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(only_request(&world)["pullInfo"]["token"], "canary-4b7d-from-env");
    world.run_with_variable(&["redrive", "b2"], "IMAGE_BUILDER_TOKEN_FILE", &token);
    assert_eq!(only_request(&world)["pullInfo"]["token"], "canary-4b7d-from-file");
    world.good(&["redrive", "b3", "--token-file", &token]);
    assert_eq!(only_request(&world)["pullInfo"]["token"], "canary-4b7d-from-file");
}

#[test]
fn a_token_that_is_none_is_a_usage_error_and_changes_nothing() {
    let world = World::new();
    world.dead_letter("b1", Reason::Crashed, &plain());
    for (input, says) in [("\n", "no token"), ("a\nb\n", "one line")] {
        let ended = world.run_with_input(&["redrive", "b1", "--token-stdin"], input);
        assert_eq!(ended.code, 64, "{ended:?}");
        assert!(ended.stderr.contains(says), "{ended:?}");
    }
    assert_eq!(world.run(&["redrive", "b1", "--token-file", "/does/not/exist"]).code, 64);
    assert_eq!(world.take_dead(), ["b1"]);
}

#[test]
fn what_a_letter_lacks_has_to_be_given() {
    let world = World::new();
    let directory = tempfile::tempdir().expect("a directory");
    world.dead_letter("b1", Reason::Crashed, &with_credentials());

    let ended = world.run(&["redrive", "b1"]);
    refused(&world, &ended, "--token-stdin");
    for way in ["--secret npm=FILE", "`API_KEY`: give it with --env-file", "--without-credentials"]
    {
        assert!(ended.stderr.contains(way), "{ended:?}");
    }
    let secret = format!("nmp={}", file(&directory, "npm", "canary-4b7d-secret-1\n"));
    let ended = world.run(&["redrive", "b1", "--secret", &secret]);
    refused(&world, &ended, "no build secret `nmp`");
    assert_eq!(world.ready(), 1);

    let token = file(&directory, "token", "canary-4b7d-token-1");
    let secret = format!("npm={}", file(&directory, "npm", "canary-4b7d-secret-1\n"));
    let envs = file(&directory, "envs", "# all of the application\nAPI_KEY=k3y-1\nMODE=other\n");
    let arguments = file(&directory, "arguments", "NPM_TOKEN=canary-4b7d-arg-1\n");
    world.good(&[
        "redrive",
        "b1",
        "--token-file",
        &token,
        "--secret",
        &secret,
        "--env-file",
        &envs,
        "--build-arg-file",
        &arguments,
    ]);
    let request = only_request(&world);
    assert_eq!(request["token"], "canary-4b7d-token-1");
    assert_eq!(
        request["buildPlan"],
        json!({
            "secrets": {"npm": "canary-4b7d-secret-1"},
            "envs": {"API_KEY": "k3y-1", "MODE": "production"},
            "buildArgs": {"NPM_TOKEN": "canary-4b7d-arg-1"},
        })
    );
    assert_eq!(world.ready(), 0);
}

#[test]
fn a_build_can_be_redriven_without_what_it_lacks() {
    let world = World::new();
    world.dead_letter("b1", Reason::Crashed, &with_credentials());
    world.good(&["redrive", "b1", "--without-credentials"]);
    let request = only_request(&world);
    assert_eq!(request.get("token"), None);
    assert_eq!(
        request["buildPlan"],
        json!({"secrets": {}, "envs": {"MODE": "production"}, "buildArgs": {}})
    );
    let rules = Rules::new("https://github.com", Limits::default());
    parse::parse(request.to_string().as_bytes(), "x", &rules).expect("it breaks no rule");
}

#[test]
fn an_unreadable_request_cannot_be_redriven() {
    let world = World::new();
    let body = letter("b1", Reason::InvalidRequest, b"not JSON").to_json();
    world.put("b1", body, Duration::from_secs(3600));
    let ended = world.run(&["redrive", "b1"]);
    refused(&world, &ended, "only its size and hash were kept");
    assert_eq!(world.take_dead(), ["b1"]);
}

#[test]
fn all_builds_of_a_fault_are_redriven_and_what_lacks_something_is_left() {
    let world = World::new();
    world.dead_letter("b1", Reason::RegistryRefused, &plain());
    world.dead_letter("b2", Reason::BuildFailed, &plain());
    world.dead_letter("b3", Reason::RegistryRefused, &with_credentials());
    world.dead_letter("b4", Reason::Crashed, &json!({"userID": "u4", "repo": "o/n"}));

    let ended = world.run(&["redrive", "--all", "--fault", "service"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("skipped b3: it lacks"), "{ended:?}");
    assert!(ended.stderr.ends_with("2 redriven, 1 skipped\n"), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 2, "{ended:?}");
    let requests = world.take_requests();
    let olds: Vec<_> = requests.iter().map(|(_, request)| &request["redriveOf"]).collect();
    assert_eq!(olds, ["b1", "b4"]);
    assert_ne!(requests[0].0, requests[1].0);

    let ended = world.run(&["redrive", "--all", "--user", "u1", "--without-credentials"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(world.take_requests().len(), 2);
    assert!(world.take_dead().is_empty());
}

#[test]
fn a_dry_run_says_what_would_be_asked_for_and_asks_for_nothing() {
    let world = World::new();
    world.dead_letter("b1", Reason::RegistryRefused, &plain());
    world.dead_letter("b2", Reason::RegistryRefused, &with_credentials());
    let one = world.good(&["redrive", "b1", "--dry-run"]);
    assert!(one.starts_with("would redrive b1 -> "), "{one}");
    let all = world.run(&["redrive", "--all", "--fault", "service", "--dry-run", "--json"]);
    assert_eq!(all.code, 1, "{all:?}");
    assert!(all.stderr.contains("skipped b2: it lacks"), "{all:?}");
    assert!(all.stderr.ends_with("1 would be redriven, 1 skipped\n"), "{all:?}");
    let line: Value = serde_json::from_str(&all.stdout).expect("one line of JSON");
    assert_eq!((&line["buildID"], &line["redriven"]), (&json!("b1"), &json!(false)));
    assert!(world.take_requests().is_empty());
    assert_eq!(world.ready(), 2);

    // The id is the one that it then gets.
    let done = world.good(&["redrive", "b1"]);
    assert_eq!(format!("would redrive {done}"), one);
    assert_eq!(world.take_requests().len(), 1);
}

#[test]
fn with_all_only_builds_that_had_a_token_get_the_new_one() {
    let world = World::new();
    world.dead_letter(
        "b1",
        Reason::Unauthorized,
        &json!({"userID": "u", "repo": "o/n", "token": "canary-4b7d-old"}),
    );
    world.dead_letter("b2", Reason::Unauthorized, &json!({"userID": "u", "repo": "o/n"}));
    let ended = world.run_with_input(&["redrive", "--all", "--token-stdin"], "new-t");
    assert_eq!(ended.code, 0, "{ended:?}");
    let requests = world.take_requests();
    assert_eq!(requests[0].1["token"], "new-t");
    assert_eq!(requests[1].1.get("token"), None);
}

#[test]
fn two_letters_of_one_build_are_one_request() {
    let world = World::new();
    for _ in 0..2 {
        world.dead_letter("b1", Reason::Crashed, &plain());
        world.dead_letter("b2", Reason::Crashed, &plain());
    }
    world.good(&["redrive", "b1"]);
    only_request(&world);
    assert_eq!(world.ready(), 2);
    world.good(&["redrive", "--all"]);
    only_request(&world);
    assert_eq!(world.ready(), 0);
}

#[test]
fn a_letter_that_outlives_its_redrive_asks_for_the_same_build() {
    let world = World::new();
    let dead = world.dead_letter("b1", Reason::Crashed, &plain());
    world.good(&["redrive", "b1"]);
    // As if the first command had died before it removed the letter.
    world.put("b1", dead.to_json(), Duration::from_secs(3600));
    world.good(&["redrive", "--all"]);
    let requests = world.take_requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0], requests[1]);
}

#[test]
fn a_letter_stays_where_its_request_finds_no_queue() {
    let world = World::new();
    world.dead_letter("b1", Reason::Crashed, &plain());
    world.delete_build_queue();
    for arguments in [&["redrive", "b1"], &["redrive", "--all"]] {
        let ended = world.run(arguments);
        assert_eq!(ended.code, 69, "{ended:?}");
        assert!(ended.stderr.contains("did not take the request"), "{ended:?}");
        world.wait_until_ready(1);
    }
    assert_eq!(world.take_dead(), ["b1"]);
}
