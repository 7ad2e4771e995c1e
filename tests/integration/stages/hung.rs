//! What is stuck: an actor whose thread is blocked, and a job that a service keeps waiting.
//!
//! | what is stuck | restarts | the job |
//! |---|---|---|
//! | the thread of the listener, connector, builder or pusher | 1 | is taken away from it: one try counted |
//! | the thread of the notifier or retry | 1 | the delivery is taken away from it, and comes again |
//! | a job of the connector, builder or pusher | 0 | is stopped when its time is up: one try counted |
//! | a notification | 0 | is sent again; nothing is built for it |
//!
//! Builds and pushes that outlast their time are in [`crate::failures`].

use serde_json::Value;

use super::finish;
use crate::support::managers::Notification;
use crate::support::marked::Marked;
use crate::support::worker::Worker;
use crate::support::world::World;
use crate::support::{Door, git_server, until};

const ACTORS: [&str; 6] = ["listener", "connector", "builder", "pusher", "notifier", "retry"];

/// Blocks an actor's thread with a job in its hands, for longer than it may; returns how the job is
/// told.
#[track_caller]
fn is_replaced(actor: &str, source: &Marked) -> Notification {
    let world = World::new()
        .with("FAILPOINTS", &format!("{actor}::handle=1*sleep(20000)"))
        // Long enough for a thread that only has to wait for a processor.
        .with("SUPERVISOR_HEALTH_INTERVAL", "2s");
    let worker = world.worker();
    let build_id = world.publish(&world.request(&source.repo));
    let told = world.outcome(&build_id);

    assert_eq!(worker.restarts(), ACTORS.map(|name| u64::from(name == actor)), "{actor}");
    let deaths = worker.lines().into_iter().filter(|line| line.contains("an actor died"));
    let deaths: Vec<Value> =
        deaths.map(|line| serde_json::from_str(&line).expect("log lines are JSON")).collect();
    let [death] = &deaths[..] else { panic!("one line on it: {deaths:?}") };
    assert_eq!(death["actor"], actor);
    assert_eq!(death["cause"], "hung: it did not get to its messages");

    let (all, _) = finish(&world, &[&worker]);
    assert_eq!(all.len(), 1, "{actor}: {all:?}");
    assert_eq!(source.builds(&[&worker]) as u64, builds_of(&told), "{actor}");
    told
}

/// How often it has to have been built.
fn builds_of(told: &Notification) -> u64 {
    match told.kind() {
        "image.ready" => 1,
        _ => told.data()["attempts"].as_u64().expect("a number"),
    }
}

#[track_caller]
fn counts_one_try(actor: &str) {
    is_replaced(actor, &Marked::good()).ready().after(2);
}

#[test]
fn the_listeners_thread() {
    counts_one_try("listener");
}

#[test]
fn the_connectors_thread() {
    counts_one_try("connector");
}

#[test]
fn the_builders_thread() {
    counts_one_try("builder");
}

#[test]
fn the_pushers_thread() {
    counts_one_try("pusher");
}

#[test]
fn the_notifiers_thread() {
    is_replaced("notifier", &Marked::good()).ready().after(1);
}

#[test]
fn the_thread_of_retry() {
    is_replaced("retry", &Marked::failing()).failed("build_failed").after(2);
}

#[test]
fn a_job_that_the_forge_keeps_waiting_is_stopped_and_tried_again() {
    let forge = Door::deaf();
    let world = World::new()
        .with("GITHUB_URL", &format!("http://127.0.0.1:{}", forge.port))
        .with("CONNECTOR_TIMEOUT", "5s");
    let worker = world.worker();
    let source = Marked::good();
    let build_id = world.publish(&world.request(&source.repo));
    worker.wait_for_line_where("the first try's time is up", |line| {
        line.contains("\"timeout\"") && line.contains("within 5 s")
    });
    forge.open(git_server::server_url().trim_start_matches("http://"));
    world.outcome(&build_id).ready().after(2);
    assert_eq!(worker.restarts(), [0; 6]);
    let (told, _) = finish(&world, &[&worker]);
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn a_manager_that_keeps_a_notification_waiting_costs_no_build() {
    let manager = Door::deaf();
    let world = World::new();
    let mut settings = world.settings();
    let url = format!("http://127.0.0.1:{}/container", manager.port);
    settings.extend([
        ("CONTAINER_MANAGER_URL".to_owned(), url),
        ("NOTIFIER_TIMEOUT".to_owned(), "1s".to_owned()),
    ]);
    let first = Worker::start(&settings);
    let source = Marked::good();
    let build_id = world.publish(&world.request(&source.repo));
    let late = |line: &&String| line.contains("cannot notify") && line.contains("within 1 s");
    until("it was tried four times", || {
        (first.lines().iter().filter(late).count() >= 4).then_some(())
    });
    assert_eq!(first.restarts(), [0; 6]);
    first.stop();
    let second = world.worker();
    world.outcome(&build_id).ready().after(1);
    let (told, _) = finish(&world, &[&second]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(source.builds(&[&first, &second]), 1);
}
