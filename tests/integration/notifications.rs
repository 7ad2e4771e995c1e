//! Notifications: tried until they are taken, and nothing is ever rebuilt for them.

use std::time::Duration;

use serde_json::Value;

use crate::support::marked::Marked;
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, repository};
use crate::support::{Door, until};

#[test]
fn a_refused_notification_is_sent_again_as_it_was_and_patience_is_honoured() {
    let world = World::new();
    let worker = world.worker();
    let repo = repository("deaf", &[("Dockerfile", &dockerfile("RUN true"))]);
    let request = world.request(&repo);
    let build_id = request["uuid"].as_str().expect("it has one");
    world.managers.refuse(build_id, &[(500, None), (503, Some(2)), (302, None), (429, Some(1))]);
    world.build(&request).ready();

    let tries = world.managers.of(build_id);
    assert_eq!(
        tries.iter().map(|told| told.answered).collect::<Vec<_>>(),
        [500, 503, 302, 429, 204]
    );
    for told in &tries {
        assert_eq!(told.raw, tries[0].raw, "the body is the same on every try");
        assert_eq!(told.webhook_id, tries[0].webhook_id);
    }
    let pause = |n: usize| tries[n + 1].at - tries[n].at;
    assert!(pause(1) >= Duration::from_secs(2), "{:?}", pause(1));
    assert!(pause(3) >= Duration::from_secs(1), "{:?}", pause(3));

    let (told, letters) = world.finish(&[&worker]);
    assert_eq!(told.len(), 1);
    assert!(letters.is_empty());
    let lines = worker.lines();
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("\"image built\""), 1, "it was built once");
    assert_eq!(count("\"image is ready\""), 1, "it was pushed once");
}

/// The delays after which notifications that failed are tried again, in seconds.
fn delays(worker: &Worker) -> Vec<f64> {
    let lines = worker.lines();
    let lines = lines.iter().filter(|line| line.contains("\"cannot notify"));
    let lines = lines.map(|line| serde_json::from_str(line).expect("log lines are JSON"));
    lines.filter_map(|line: Value| line["delay_seconds"].as_f64()).collect()
}

#[test]
fn an_outcome_waits_for_a_manager_that_is_away_for_longer_than_the_ladder_is_long() {
    let manager = Door::closed();
    let world = World::new();
    // Each has a directory of its own: the second one has nothing but the queues.
    let worker = || {
        let mut settings = world.settings();
        let url = format!("http://127.0.0.1:{}/container", manager.port);
        settings.insert("CONTAINER_MANAGER_URL".to_owned(), url);
        Worker::start(&settings)
    };
    let first = worker();
    let source = Marked::good();
    let build_id = world.publish(&world.request(&source.repo));
    // The ladder has two rungs.
    until("the last rung was used again and again", || (delays(&first).len() >= 5).then_some(()));
    first.stop();
    let second = worker();
    until("the next worker tries as well", || (delays(&second).len() >= 2).then_some(()));
    assert!(world.managers.all().is_empty());

    let container = world.managers.container_url();
    let (address, _) =
        container.trim_start_matches("http://").split_once('/').expect("it has a path");
    manager.open(address);
    world.outcome(&build_id).ready().after(1);
    let (told, letters) = world.finish(&[&second]);
    assert_eq!((told.len(), letters.len()), (1, 0), "{told:?}");
    assert_eq!(source.builds(&[&first, &second]), 1);
    let all = [delays(&first), delays(&second)].concat();
    assert_eq!(all[0], 0.2);
    assert!(all[1..].iter().all(|delay| *delay == 0.6), "{all:?}");
}

#[test]
fn outcomes_are_published_to_the_result_queue_as_well() {
    let mut world = World::new();
    let results = format!("{}.results", world.user);
    world = world.with("RESULT_QUEUE", &results);
    let worker = world.worker();
    let repo = repository("results", &[("Dockerfile", &dockerfile("RUN true"))]);
    let ready = world.build(&world.request(&repo)).ready();
    let mut missing = world.request(&repo);
    missing["type"] = "branch".into();
    missing["branch"] = "missing".into();
    let failed = world.build(&missing).failed("ref_not_found");
    world.finish(&[&worker]);

    let bodies: Vec<_> =
        world.broker.drain(&results).into_iter().map(|result| result.body).collect();
    assert_eq!(bodies, [ready.raw.into_bytes(), failed.raw.into_bytes()]);
}

#[test]
fn without_managers_an_outcome_is_logged() {
    let world = World::new().with("CONTAINER_MANAGER_URL", "").with("CONNECTOR_MANAGER_URL", "");
    let worker = world.worker();
    let repo = repository("nobody", &[("Dockerfile", &dockerfile("RUN true"))]);
    let build_id = world.publish(&world.request(&repo));
    worker.wait_for_line_where("the notification", |line| {
        line.contains("only logged") && line.contains(&build_id) && line.contains("image.ready")
    });
    let (told, _) = world.finish(&[&worker]);
    assert!(told.is_empty());
}
