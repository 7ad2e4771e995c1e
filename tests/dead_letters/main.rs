//! `image-builder dead …` and `image-builder queue …` on a real RabbitMQ.

#![allow(unreachable_pub, reason = "a test's modules are for the test")]

mod queues;
mod redriving;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use image_builder_actors::model::fault::Reason;
use serde_json::{Value, json};
use support::broker::uri;
use support::raw_amqp::Properties;
use support::unique;
use support::worker::{Settings, run};
use world::{World, letter};

fn plain() -> Value {
    json!({"userID": "u1", "repo": "octo/web", "applicationID": "shop"})
}

fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("build-{n:04}")).collect()
}

#[test]
fn a_list_has_a_line_for_each_letter_newest_last() {
    let world = World::new();
    world.dead_letter("b1", Reason::RegistryRefused, &plain());
    world.dead_letter("b2", Reason::BuildFailed, &json!({"userID": "u2", "repo": "octo/api"}));
    let stdout = world.good(&["list"]);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{stdout}");
    assert!(lines[0].starts_with("ID "), "{stdout}");
    for part in [
        "b1 ",
        " u1 ",
        " shop (octo/web) ",
        " builder ",
        " registry_refused ",
        " 1 ",
        "story of b1.",
    ] {
        assert!(lines[1].contains(part), "{part} is missing in: {}", lines[1]);
    }
    assert!(lines[2].starts_with("b2 ") && lines[2].contains(" (octo/api) "), "{stdout}");
}

#[test]
fn a_list_can_be_read_by_programs() {
    let world = World::new();
    let letters = [
        world.dead_letter("b1", Reason::RegistryRefused, &plain()),
        world.dead_letter(
            "b2",
            Reason::BuildFailed,
            &json!({"userID": "u2", "token": "canary-4b7d-token"}),
        ),
    ];
    let stdout = world.good(&["list", "--json"]);
    let listed: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let put: Vec<Value> =
        letters.iter().map(|letter| serde_json::to_value(letter).expect("JSON")).collect();
    assert_eq!(listed, put);
    assert_eq!(listed[1]["removed"], json!(["token"]));
}

#[test]
fn a_list_may_be_of_some_faults_or_of_one_user() {
    let world = World::new();
    world.dead_letter("b1", Reason::RegistryRefused, &plain());
    world.dead_letter("b2", Reason::BuildFailed, &json!({"userID": "u2", "repo": "o/n"}));
    world.dead_letter("b3", Reason::Crashed, &json!({"pullInfo": {"userID": "u2", "repo": "o/n"}}));
    let ids = |arguments: &[&str]| -> Vec<String> {
        let stdout = world.good(&[&["list", "--json"], arguments].concat());
        let id = |line: &str| {
            let letter: Value = serde_json::from_str(line).expect("JSON");
            letter["buildID"].as_str().expect("an id").to_owned()
        };
        stdout.lines().map(id).collect()
    };
    assert_eq!(ids(&["--fault", "service"]), ["b1", "b3"]);
    assert_eq!(ids(&["--fault", "user"]), ["b2"]);
    assert_eq!(ids(&["--fault", "crashed", "--fault", "build_failed"]), ["b2", "b3"]);
    assert_eq!(ids(&["--user", "u2"]), ["b2", "b3"]);
    assert_eq!(ids(&["--user", "u2", "--fault", "service"]), ["b3"]);
}

#[test]
fn an_empty_queue_is_said_to_be_empty() {
    let world = World::new();
    let ended = world.run(&["list"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""));
    assert_eq!(ended.stderr, "no dead letters\n");
}

#[test]
fn looking_changes_neither_the_letters_nor_their_order() {
    let world = World::new();
    let ids = numbered(400);
    world.put_many(&ids, "It failed.");
    for _ in 0..2 {
        let stdout = world.good(&["list"]);
        let listed: Vec<_> =
            stdout.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(listed, ids);
        world.good(&["show", "build-0123"]);
        // All are back before the command ends.
        assert_eq!(world.ready(), ids.len());
    }
    assert_eq!(world.take_dead(), ids);
}

#[test]
fn a_letter_is_shown_with_its_tries_its_log_and_its_request() {
    let world = World::new();
    let mut request = plain();
    request["token"] = json!("canary-4b7d");
    request["redriveOf"] = json!("earlier");
    world.dead_letter("0a1b2c", Reason::BuildFailed, &request);
    let stdout = world.good(&["show", "0a1"]);
    for part in [
        "build        0a1b2c\n",
        "redrive of   earlier\n",
        "user         u1\n",
        "repository   octo/web\n",
        "reason       build_failed (user) in the builder\n",
        "message      The story of 0a1b2c.\n",
        "redrive      needs token\n",
        "  1.         ",
        "at step RUN make\n",
        "  the last line\n",
        "\"applicationID\": \"shop\"",
    ] {
        assert!(stdout.contains(part), "{part:?} is missing in:\n{stdout}");
    }
    assert!(stdout.contains("kept until"), "{stdout}");
    let stdout = world.good(&["show", "--json", "0a1b2c"]);
    let shown: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(shown["history"]["attempts"][0]["step"], "RUN make");
}

#[test]
fn an_id_that_is_unknown_or_not_unique_is_a_clear_failure() {
    let world = World::new();
    world.dead_letter("ab1", Reason::Crashed, &plain());
    world.dead_letter("ab2", Reason::Crashed, &plain());
    for verb in ["show", "drop", "redrive"] {
        let unknown = world.run(&[verb, "x"]);
        assert_eq!(unknown.code, 1, "{unknown:?}");
        assert!(unknown.stderr.contains("no dead letter of a build `x`"), "{unknown:?}");
        let ambiguous = world.run(&[verb, "ab"]);
        assert_eq!(ambiguous.code, 1, "{ambiguous:?}");
        assert!(ambiguous.stderr.contains("2 builds begin with `ab`, among them ab1, ab2"));
    }
    assert_eq!(world.take_dead(), ["ab1", "ab2"]);
    assert!(world.take_requests().is_empty());
}

#[test]
fn dropping_a_letter_leaves_all_others_in_their_order() {
    let world = World::new();
    let mut ids = numbered(120);
    world.put_many(&ids, "It failed.");
    assert_eq!(world.good(&["drop", "build-0060"]), "dropped build-0060\n");
    ids.remove(60);
    assert_eq!(world.take_dead(), ids);
}

#[test]
fn letters_are_dropped_by_the_filters_of_a_list() {
    let world = World::new();
    world.dead_letter("b1", Reason::RegistryRefused, &plain());
    world.dead_letter("b2", Reason::BuildFailed, &json!({"userID": "u2", "repo": "o/n"}));
    world.dead_letter("b3", Reason::Crashed, &json!({"userID": "u2", "repo": "o/n"}));
    let dry = world.run(&["drop", "--user", "u2", "--dry-run"]);
    assert_eq!((dry.code, dry.stdout.as_str()), (0, "would drop b2\nwould drop b3\n"), "{dry:?}");
    assert!(dry.stderr.contains("2 would be dropped"), "{dry:?}");
    assert_eq!(world.good(&["drop", "b1", "--dry-run"]), "would drop b1\n");
    assert_eq!(world.ready(), 3);

    let json = world.good(&["drop", "--user", "u2", "--fault", "service", "--json"]);
    let line: Value = serde_json::from_str(&json).expect("one line of JSON");
    assert_eq!(line, json!({"buildID": "b3", "dropped": true}));
    assert_eq!(world.ready(), 2);
    assert_eq!(world.run(&["drop"]).code, 64);
    assert_eq!(world.run(&["drop", "b1", "--all"]).code, 64);
    assert_eq!(world.ready(), 2);
    assert_eq!(world.good(&["drop", "--all"]), "dropped b1\ndropped b2\n");
    assert!(world.take_dead().is_empty());
}

#[test]
fn what_is_no_letter_is_listed_and_can_be_dropped() {
    let world = World::new();
    world.put("strange", b"\x1b[2Jwhat".to_vec(), Duration::from_secs(3600));
    let stdout = world.good(&["list"]);
    assert!(stdout.contains("strange ") && stdout.contains("not a letter of this version"));
    assert_eq!(world.run(&["redrive", "strange"]).code, 1);
    assert_eq!(world.ready(), 1);
    world.good(&["drop", "strange"]);
    assert_eq!(world.ready(), 0);
}

#[test]
fn a_message_whose_properties_cannot_be_read_is_listed_among_the_letters_and_can_be_dropped() {
    let world = World::new();
    world.put_many(&numbered(2), "It failed.");
    world.put_raw(&Properties::default().text("app_id", b"caf\xe9"), b"who knows");
    let stdout = world.good(&["list"]);
    assert!(numbered(2).iter().all(|id| stdout.contains(id)), "{stdout}");
    let line = stdout.lines().find(|line| line.starts_with("sha256-")).expect("it is listed");
    world.good(&["drop", line.split_whitespace().next().expect("its name")]);
    assert_eq!(world.take_dead(), numbered(2));
}

#[test]
fn a_list_that_is_killed_loses_nothing() {
    let world = World::new();
    let ids = numbered(300);
    // More than a pipe holds: the program waits for its reader with letters in hand.
    world.put_many(&ids, &"long ".repeat(700));
    let mut child = world.spawn(&["list", "--json"]);
    let mut stdout = BufReader::new(child.stdout.take().expect("it is a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("it writes");
    assert!(line.contains("build-0000"), "{line}");
    assert!(world.ready() < ids.len(), "no letter is in hand");
    child.kill().expect("it can be killed");
    child.wait().expect("it is dead");
    world.wait_until_ready(ids.len());
    assert_eq!(world.take_dead(), ids);
}

#[test]
fn a_reader_that_goes_away_ends_the_list_quietly() {
    let world = World::new();
    let ids = numbered(300);
    world.put_many(&ids, &"long ".repeat(700));
    let mut child = world.spawn(&["list", "--json"]);
    let mut stdout = BufReader::new(child.stdout.take().expect("it is a pipe"));
    stdout.read_line(&mut String::new()).expect("it writes");
    drop(stdout);
    let ended = child.wait_with_output().expect("it ends");
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]));
    world.wait_until_ready(ids.len());
    assert_eq!(world.take_dead(), ids);
}

#[test]
fn one_command_at_a_time_reads_the_queue() {
    let world = World::new();
    world.put_many(&numbered(300), &"long ".repeat(700));
    let mut first = world.spawn(&["list", "--json"]);
    let mut stdout = BufReader::new(first.stdout.take().expect("it is a pipe"));
    stdout.read_line(&mut String::new()).expect("it writes");
    let second = world.run(&["list"]);
    assert_eq!((second.code, second.stdout.as_str()), (75, ""), "{second:?}");
    assert!(second.stderr.contains("another command is at work"), "{second:?}");
    // A third one comes while the first is at work, and has its turn when that has ended.
    let third = world.spawn(&["list", "--json"]);
    stdout.read_to_string(&mut String::new()).expect("it writes");
    assert!(first.wait().expect("it ends").success());
    let third = third.wait_with_output().expect("it ends");
    assert_eq!(third.stdout.iter().filter(|byte| **byte == b'\n').count(), 300);
}

#[test]
fn looking_does_not_prolong_a_letters_life() {
    const LIFE: Duration = Duration::from_secs(5);
    let world = World::new();
    let begun = Instant::now();
    world.put("short", letter("short", Reason::Crashed, b"{}").to_json(), LIFE);
    world.dead_letter("long", Reason::Crashed, &plain());
    let mut looks = 0;
    while begun.elapsed() < LIFE * 3 / 5 {
        let stdout = world.good(&["list"]);
        assert!(stdout.contains("\nshort ") || begun.elapsed() >= LIFE, "{stdout}");
        looks += 1;
    }
    assert!(looks > 0);
    world.wait_until_ready(1);
    // Had a look begun its life anew, it would end three fifths later at the earliest.
    assert!(begun.elapsed() < LIFE * 8 / 5, "it lived for {:?}", begun.elapsed());
    assert_eq!(world.take_dead(), ["long"]);
}

#[test]
fn a_queue_that_somebody_else_declared_is_read_with_a_warning() {
    let world = World::after(|broker, names| broker.declare_classic(&names.dead_queue));
    world.dead_letter("b1", Reason::Crashed, &plain());
    let ended = world.run(&["list"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("\nb1 "), "{ended:?}");
    assert!(ended.stderr.contains("x-delivery-limit"), "{ended:?}");
}

#[test]
fn a_broker_that_is_down_is_not_available() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let uri = format!("amqp://me:canary-4b7d@127.0.0.1:{port}/%2f");
    let ended = run(&["dead", "list"], &settings(&[("RABBITMQ_URI", &uri)]));
    let stderr = &ended.stderr;
    assert_eq!(ended.code, 69, "{stderr}");
    assert!(stderr.contains("cannot reach the broker at amqp://me@127.0.0.1:"), "{stderr}");
    assert!(!stderr.contains("canary-4b7d"), "{stderr}");
}

#[test]
fn a_broker_without_the_queue_is_not_what_was_meant() {
    let name = unique("test.dead.none");
    let settings = settings(&[("RABBITMQ_URI", &uri()), ("DEAD_QUEUE", &name)]);
    let ended = run(&["dead", "list"], &settings);
    let stderr = &ended.stderr;
    assert_eq!(ended.code, 69, "{stderr}");
    assert!(stderr.contains(&format!("there is no queue `{name}`")), "{stderr}");
}

#[test]
fn bad_settings_and_a_bad_command_line_have_codes_of_their_own() {
    let code = |pairs: &[(&str, &str)], arguments: &[&str]| run(arguments, &settings(pairs)).code;
    assert_eq!(code(&[("DEAD_QUEUE_TTL", "soon")], &["dead", "list"]), 78);
    let refused = uri().replacen("guest:guest", "guest:wrong", 1);
    assert_eq!(code(&[("RABBITMQ_URI", &refused)], &["dead", "list"]), 78);
    for wrong in [
        &["dead"][..],
        &["dead", "show"],
        &["dead", "show", ""],
        &["dead", "redrive"],
        &["dead", "redrive", "x", "--all"],
        &["dead", "redrive", "x", "--fault", "user"],
        &["dead", "redrive", "--fault", "user"],
        &["dead", "list", "--fault", "nobody"],
        &["dead", "redrive", "x", "--secret", "npm"],
        &["dead", "redrive", "x", "--token", "t"],
    ] {
        assert_eq!(code(&[("RABBITMQ_URI", &uri())], wrong), 64, "{wrong:?}");
    }
    assert_eq!(code(&[], &["dead", "redrive", "--help"]), 0);
}
