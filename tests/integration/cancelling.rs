//! Builds that nobody wants any more: cancelled, or superseded by a newer request.

use serde_json::json;

use crate::support::turnstile::Steps;
use crate::support::worker::Worker;
use crate::support::world::{World, held_repository, with};
use crate::support::{unique, until};

/// A world with one builder a worker, whose builds may come to the turnstile.
fn world() -> World {
    World::new().with("BUILDER_NETWORK", "host").with("BUILDER_CONCURRENCY", "1")
}

#[track_caller]
fn until_waiting(worker: &Worker, jobs: usize) {
    until("jobs wait for the builder", || (worker.waiting("builder") == jobs).then_some(()));
}

#[test]
fn a_build_that_runs_is_gone_from_the_engine_and_its_slot_goes_to_the_next() {
    let world = world();
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    let cancelled = world.publish(&world.held_request(&repo, &world.user));
    steps.turnstile.until("it runs", |count| count.inside().contains(&cancelled));
    let next = world.publish(&world.held_request(&repo, &world.user));
    until_waiting(&worker, 1);

    world.cancel(&cancelled);
    // The connection of its step ends with its process.
    let count = steps.turnstile.until("the next one runs", |count| count.inside().contains(&next));
    assert_eq!(count.came, [cancelled.as_str(), &next]);
    steps.turnstile.until("its process is gone", |count| !count.inside().contains(&cancelled));
    let told = world.outcome(&cancelled).cancelled("cancelled");
    assert_eq!(told.text("/stage"), "builder");
    assert_eq!(told.data()["attempts"], 1);

    steps.turnstile.let_all_go();
    world.outcome(&next).ready();
    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (2, 1));
    assert_eq!(steps.turnstile.count().came.len(), 2, "nothing was built again");
}

#[test]
fn builds_that_wait_in_the_worker_or_in_the_queue_are_never_begun() {
    let world = world().with("LISTENER_CONCURRENCY", "2");
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    // Of three users, so that none of them is throttled.
    let publish = |n| world.publish(&world.held_request(&repo, &format!("{}-{n}", world.user)));
    let running = publish(1);
    steps.turnstile.until("it runs", |count| count.inside().contains(&running));
    let [waiting, queued] = [2, 3].map(publish);
    until_waiting(&worker, 1);

    world.cancel(&queued);
    world.cancel(&waiting);
    for build_id in [&waiting, &queued] {
        world.outcome(build_id).cancelled("cancelled").after(1);
    }
    assert_eq!(steps.turnstile.count().inside(), [running.clone()].into());
    steps.turnstile.let_all_go();
    world.outcome(&running).ready();
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (3, 2));
    assert_eq!(steps.turnstile.count().came, [running]);
}

#[test]
fn every_replica_hears_of_a_cancellation_and_the_one_that_builds_stops() {
    let world = world().with("LISTENER_CONCURRENCY", "1");
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let workers = [(); 3].map(|()| world.worker());
    let mut running =
        [(); 3].map(|()| world.publish(&world.held_request(&repo, &world.user))).to_vec();
    steps.turnstile.until("each worker builds one", |count| count.inside().len() == 3);

    while let Some(cancelled) = running.pop() {
        world.cancel(&cancelled);
        world.outcome(&cancelled).cancelled("cancelled");
        let left = running.iter().cloned().collect();
        steps.turnstile.until("it alone is gone", |count| count.inside() == left);
        for worker in &workers {
            worker.wait_for_line_where("it hears of it", |line| {
                line.contains("asked to cancel") && line.contains(&cancelled)
            });
        }
    }
    let (told, letters) = world.finish(&workers.each_ref());
    assert_eq!((told.len(), letters.len()), (3, 3));
    assert_eq!(steps.turnstile.count().came.len(), 3, "nothing was built again");
}

#[test]
fn a_newer_request_supersedes_the_older_one_that_waits_and_only_that() {
    let world = world().with("LISTENER_SUPERSEDE", "true");
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    let application = unique("app");
    let of_one = || {
        let request = world.held_request(&repo, &world.user);
        world.publish(&with(request, json!({"applicationID": application})))
    };
    let building = of_one();
    steps.turnstile.until("it runs", |count| count.inside().contains(&building));
    let elsewhere = world.publish(&world.held_request(&repo, &world.user));
    let older = of_one();
    until_waiting(&worker, 2);
    let newer = of_one();
    world.outcome(&older).cancelled("superseded").after(1);

    steps.turnstile.let_all_go();
    for build_id in [&building, &elsewhere, &newer] {
        world.outcome(build_id).ready();
    }
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (4, 1));
    assert!(!steps.turnstile.count().came.contains(&older));
}
