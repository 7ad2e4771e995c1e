//! Notifications: tried until they are taken, and nothing is ever rebuilt for them.

use std::time::Duration;

use crate::support::world::{World, dockerfile, repository};

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
