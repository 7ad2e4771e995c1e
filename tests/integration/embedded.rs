//! A worker with no RabbitMQ: its queue is a file of its own, and it is asked over HTTP.

use std::collections::BTreeSet;

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::marked::Marked;
use crate::support::turnstile::Steps;
use crate::support::worker::{Ended, Settings, Worker, run, run_with_input};
use crate::support::world::{World, held_repository};
use crate::support::{client, free_port, runtime, until};

/// What worker and commands are told: no broker, one directory and one address for all processes after each
/// other.
fn embedded(world: &World) -> Settings {
    let mut settings = world.settings();
    settings.remove("RABBITMQ_URI").expect("the world has one");
    let address = format!("127.0.0.1:{}", free_port());
    settings.insert("IMAGE_BUILDER_URL".to_owned(), format!("http://{address}"));
    settings.insert("HTTP_ADDR".to_owned(), address);
    settings
}

fn submit(settings: &Settings, request: &Value) -> Ended {
    let ended = run_with_input(&["submit", "--file", "-"], settings, &request.to_string());
    assert_eq!(ended.code, 0, "{ended:?}");
    ended
}

/// The messages of a queue that wait, by `image-builder queue`.
fn waiting(settings: &Settings, queue: &str) -> u64 {
    let ended = run(&["queue", "--json"], settings);
    assert_eq!(ended.code, 0, "{ended:?}");
    let lines = ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let mut lines = lines.filter(|line: &Value| line["name"] == queue);
    let line = lines.next().unwrap_or_else(|| panic!("no queue {queue}: {ended:?}"));
    line["ready"].as_u64().expect("a count")
}

#[test]
fn what_a_killed_worker_had_is_done_by_its_next_process_and_told_once() {
    let world = World::new().with("BUILDER_CONCURRENCY", "1");
    let settings = embedded(&world);
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let requests: Vec<Value> = (0..3).map(|_| world.held_request(&repo, &world.user)).collect();
    let killed = Worker::start(&settings);
    killed.wait_for_line("the embedded queue in DATA_DIR");
    for request in &requests {
        submit(&settings, request);
    }
    steps.turnstile.until("one builds", |count| count.inside().len() == 1);
    killed.kill();
    killed.wait();
    steps.turnstile.let_all_go();
    let worker = Worker::start(&settings);
    for request in &requests {
        world.outcome(request["uuid"].as_str().expect("it has an id")).ready();
    }
    worker.stop();
    assert_eq!(world.managers.all().len(), 3);
    for queue in ["build", "backlog", "fail", "outcome"] {
        assert_eq!(waiting(&settings, queue), 0, "{queue}");
    }
}

#[test]
fn dead_letters_are_shown_and_redriven_whether_the_worker_runs_or_not() {
    let world = World::new();
    let settings = embedded(&world);
    let worker = Worker::start(&settings);
    let source = Marked::failing();
    let request = world.request(&source.repo);
    let id = request["uuid"].as_str().expect("it has an id").to_owned();
    submit(&settings, &request);
    world.outcome_where("it fails", |told| told.kind() == "build.failed");
    let over_http = run(&["dead", "show", &id], &settings);
    assert!(over_http.code == 0 && over_http.stdout.contains("build_failed"), "{over_http:?}");
    worker.stop();
    let mut alone = settings.clone();
    alone.remove("IMAGE_BUILDER_URL");
    let redriven = run(&["dead", "redrive", &id], &alone);
    assert_eq!(redriven.code, 0, "{redriven:?}");
    assert_eq!((waiting(&alone, "build"), waiting(&alone, "dead")), (1, 0));
    let worker = Worker::start(&settings);
    until("it fails again", || (world.managers.all().len() == 2).then_some(()));
    worker.stop();
}

#[test]
fn the_queue_is_moved_to_rabbitmq_and_goes_on_there() {
    let world = World::new().with("BUILDER_CONCURRENCY", "1");
    let settings = embedded(&world);
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let requests: Vec<Value> = (0..3).map(|_| world.held_request(&repo, &world.user)).collect();
    let first = Worker::start(&settings);
    for request in &requests {
        submit(&settings, request);
    }
    let in_use = run(&["queue", "move", "--to", &world.settings["RABBITMQ_URI"]], &settings);
    assert_eq!(in_use.code, 75, "a worker is at work: {in_use:?}");
    steps.turnstile.until("one builds", |count| count.inside().len() == 1);
    first.kill();
    first.wait();
    let uri = format!("{}\n", world.settings["RABBITMQ_URI"]);
    let moved = run_with_input(&["queue", "move", "--to", "-", "--json"], &settings, &uri);
    assert_eq!(moved.code, 0, "{moved:?}");
    let moved: Value = serde_json::from_str(&moved.stdout).expect("one line of JSON");
    assert_eq!(
        (&moved["moved"], &moved["unreadable"]),
        (&json!(3), &json!(0)),
        "what was in hand as well"
    );
    steps.turnstile.let_all_go();
    let worker = world.worker();
    for request in &requests {
        world.outcome(request["uuid"].as_str().expect("it has an id")).ready();
    }
    // RabbitMQ takes more from now on.
    world.publish_raw(b"nonsense", BasicProperties::default());
    worker.wait_for_line("is not JSON");
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (3, 1));
}

#[test]
fn no_kill_takes_the_end_of_a_build_from_the_history() {
    const BUILDS: usize = 120;
    let world = World::new();
    let settings = embedded(&world);
    let mut worker = Worker::start(&settings);
    worker.wait_for_line("the embedded queue in DATA_DIR");
    let url = format!("http://{}/v1/builds", settings["HTTP_ADDR"]);
    let client = runtime().block_on(async { client() });
    for number in 0..BUILDS {
        let request = json!({
            "uuid": format!("{}-{number}", world.user),
            "userID": world.user,
            "repo": "nobody/missing",
        });
        let sent = async { client.post(&url).json(&request).send().await };
        let status = runtime().block_on(sent).expect("the worker answers").status();
        assert_eq!(status, 202);
    }
    // Whoever is notified at this moment is known to have ended a moment later, or never.
    for told in [5, 25, 50, 80] {
        until("some are told", || (world.managers.all().len() >= told).then_some(()));
        worker.kill();
        worker.wait();
        worker = Worker::start(&settings);
        worker.wait_for_line("the embedded queue in DATA_DIR");
    }
    let told =
        || world.managers.all().iter().map(|told| told.webhook_id.clone()).collect::<BTreeSet<_>>();
    until("all are told", || (told().len() == BUILDS).then_some(()));
    let (status, failed) = worker.get(&format!("/v1/builds?state=failed&limit={BUILDS}"));
    let failed: Value = serde_json::from_str(&failed).expect("JSON");
    assert_eq!((status, failed["builds"].as_array().map(Vec::len)), (200, Some(BUILDS)));
    worker.stop();
}
