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
    assert_eq!(told.data().get("fault"), None, "nobody is at fault: {}", told.raw);
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
    let user = |n| format!("{}-{n}", world.user);
    let publish = |n| world.publish(&world.held_request(&repo, &user(n)));
    let running = publish(1);
    steps.turnstile.until("it runs", |count| count.inside().contains(&running));
    let [waiting, queued] = [2, 3].map(publish);
    until_waiting(&worker, 1);

    world.cancel_of(&user(3), &queued);
    world.cancel_of(&user(2), &waiting);
    // One was fetched, the other was not touched.
    world.outcome(&waiting).cancelled("cancelled").after(1);
    world.outcome(&queued).cancelled("cancelled").after(0);
    assert_eq!(steps.turnstile.count().inside(), [running.clone()].into());
    steps.turnstile.let_all_go();
    world.outcome(&running).ready();
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (3, 2));
    assert_eq!(steps.turnstile.count().came, [running]);
}

#[test]
fn a_cancellation_leaves_the_build_alone_that_another_user_has_under_the_same_id() {
    let world = world().with("BUILDER_CONCURRENCY", "2");
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    let mut request = world.held_request(&repo, &world.user);
    let id = world.publish(&request);
    let other = format!("{}-other", world.user);
    // Under the same id, and through the turnstile by another name.
    let step = unique("step");
    request["userID"] = json!(other);
    request["buildPlan"]["buildArgs"]["STEP"] = json!(step);
    world.publish(&request);
    let both = [id.clone(), step].into();
    steps.turnstile.until("both run", |count| count.inside() == both);

    world.cancel_raw(&json!({"buildID": id}));
    world.cancel_raw(&json!({"buildID": id, "userID": format!("{other}\n")}));
    world.cancel_of(&other, &id);
    let told = world.outcome(&id).cancelled("cancelled");
    assert_eq!(told.text("/userID"), other);
    steps.turnstile.until("it alone is gone", |count| count.inside() == [id.clone()].into());
    steps.turnstile.let_all_go();
    let told = world.outcome_where("the other", |told| told.text("/userID") == world.user).ready();
    assert_eq!((told.build_id(), &told.webhook_id), (&*id, &told.own_id()));
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (2, 1));
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
