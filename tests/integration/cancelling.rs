//! Builds that nobody wants any more: cancelled, or superseded by a newer request.

use lapin::BasicProperties;
use serde_json::json;

use crate::support::turnstile::Steps;
use crate::support::unique;
use crate::support::world::{World, dockerfile, held_repository, repository, with};

/// A world with one builder a worker, whose builds may come to the turnstile.
fn world() -> World {
    World::new().with("BUILDER_CONCURRENCY", "1").with("LISTENER_CONCURRENCY", "1")
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
    world.until_in_lanes(1);

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
fn builds_that_wait_in_a_lane_are_never_begun() {
    let world = world();
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    let user = |n| format!("{}-{n}", world.user);
    let publish = |n| world.publish(&world.held_request(&repo, &user(n)));
    let running = publish(1);
    steps.turnstile.until("it runs", |count| count.inside().contains(&running));
    // A first one, and one of the next few of its user.
    let waiting = [publish(2), publish(3), publish(3)];
    world.until_in_lanes(3);

    for (user_number, build_id) in [2, 3, 3].into_iter().zip(&waiting) {
        world.cancel_of(&user(user_number), build_id);
    }
    worker.wait_for_line_where("it hears of the last one", |line| {
        line.contains("asked to cancel") && line.contains(&waiting[2])
    });
    assert_eq!(steps.turnstile.count().inside(), [running.clone()].into());
    steps.turnstile.let_all_go();
    for build_id in &waiting {
        world.outcome(build_id).cancelled("cancelled").after(0);
    }
    world.outcome(&running).ready();
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (4, 3));
    assert_eq!(steps.turnstile.count().came, [running]);
}

/// Builds nothing, and has been cancelled before it is told of this build.
#[track_caller]
fn is_cancelled_by_the_next_worker(world: &World, build_id: &str, attempts: u64) {
    let worker = world.worker();
    world.outcome(build_id).cancelled("cancelled").after(attempts);
    assert!(!worker.lines().iter().any(|line| line.contains("\"image built\"")));
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 1));
}

/// A world that a worker has been in.
fn without_a_worker() -> World {
    let world = world();
    world.worker().stop();
    world
}

#[test]
fn a_build_that_is_cancelled_while_no_worker_is_there_is_never_begun() {
    let world = without_a_worker();
    let repo = repository("cancelled", &[("Dockerfile", &dockerfile("RUN true"))]);
    let build_id = world.publish(&world.request(&repo));
    world.cancel(&build_id);
    is_cancelled_by_the_next_worker(&world, &build_id, 0);
}

#[test]
fn a_cancellation_that_nobody_hears_comes_before_its_request() {
    let world = without_a_worker();
    let repo = repository("cancelled", &[("Dockerfile", &dockerfile("RUN true"))]);
    let request = world.request(&repo);
    world.cancel(request["uuid"].as_str().expect("it has an id"));
    let build_id = world.publish(&request);
    is_cancelled_by_the_next_worker(&world, &build_id, 0);
}

#[test]
fn a_build_in_the_fail_queue_is_cancelled() {
    let world = without_a_worker();
    let repo = repository("cancelled", &[("Dockerfile", &dockerfile("RUN true"))]);
    let request = world.request(&repo);
    let build_id = request["uuid"].as_str().expect("it has an id");
    let failed = request.to_string();
    world.broker.publish(
        &world.settings["FAIL_QUEUE"],
        failed.as_bytes(),
        BasicProperties::default(),
    );
    world.cancel(build_id);
    // What is there without a history had its worker killed.
    is_cancelled_by_the_next_worker(&world, build_id, 1);
}

#[test]
fn builds_in_a_lane_and_in_hand_are_cancelled_while_their_worker_is_dead() {
    let world = world();
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let killed = world.worker();
    let in_hand = world.publish(&world.held_request(&repo, &world.user));
    steps.turnstile.until("it runs", |count| count.inside().contains(&in_hand));
    let in_lane = world.publish(&world.held_request(&repo, &world.user));
    world.until_in_lanes(1);
    killed.kill();
    killed.wait();
    world.cancel(&in_hand);
    world.cancel(&in_lane);
    let worker = world.worker();
    world.outcome(&in_hand).cancelled("cancelled");
    world.outcome(&in_lane).cancelled("cancelled").after(0);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (2, 2));
    assert_eq!(steps.turnstile.count().came, [in_hand], "nothing was built again");
}

#[test]
fn a_build_on_the_ladder_is_cancelled_while_no_worker_is_there() {
    let world = world().with("RETRY_INITIAL_DELAY", "3s").with("RETRY_MAX_DELAY", "3s");
    let worker = world.worker();
    let repo = repository("failing", &[("Dockerfile", &dockerfile("RUN false"))]);
    let build_id = world.publish(&world.request(&repo));
    worker.wait_for_line("to be tried again");
    worker.stop();
    world.cancel(&build_id);
    is_cancelled_by_the_next_worker(&world, &build_id, 1);
}

#[test]
fn a_build_on_the_ladder_is_cancelled_when_its_delay_is_over() {
    let world = world().with("RETRY_INITIAL_DELAY", "3s").with("RETRY_MAX_DELAY", "3s");
    let worker = world.worker();
    let mark = unique("fails");
    let repo =
        repository("failing", &[("Dockerfile", &dockerfile(&format!("RUN echo {mark}; false")))]);
    let build_id = world.publish(&world.request(&repo));
    worker.wait_for_line("to be tried again");
    world.cancel(&build_id);
    world.outcome(&build_id).cancelled("cancelled").after(1);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 1));
}

#[test]
fn a_cancellation_leaves_the_build_alone_that_another_user_has_under_the_same_id() {
    let world = world().with("BUILDER_CONCURRENCY", "2").with("LISTENER_CONCURRENCY", "2");
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
    let world = world();
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
    world.until_in_lanes(2);
    let newer = of_one();
    world.until_in_lanes(3);

    steps.turnstile.let_all_go();
    world.outcome(&older).cancelled("superseded").after(0);
    for build_id in [&building, &elsewhere, &newer] {
        world.outcome(build_id).ready();
    }
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (4, 1));
    assert!(!steps.turnstile.count().came.contains(&older));
}

#[test]
fn the_newer_request_is_the_one_that_was_made_later_and_not_the_one_that_came_later() {
    let world = world().with("LISTENER_SUPERSEDE", "true");
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    let application = unique("app");
    let first = world.publish(&world.held_request(&repo, &world.user));
    steps.turnstile.until("it runs", |count| count.inside().contains(&first));
    let made_at = |second| {
        let request = world.held_request(&repo, &world.user);
        let request = with(request, json!({"applicationID": application}));
        let properties = BasicProperties::default().with_timestamp(second);
        world.publish_raw(request.to_string().as_bytes(), properties);
        request["uuid"].as_str().expect("it has an id").to_owned()
    };
    let newer = made_at(1_700_000_020);
    world.until_in_lanes(1);
    let older = made_at(1_700_000_010);
    world.until_in_lanes(2);

    steps.turnstile.let_all_go();
    world.outcome(&older).cancelled("superseded").after(0);
    world.outcome(&newer).ready();
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (3, 1));
    assert!(!steps.turnstile.count().came.contains(&older));
}
