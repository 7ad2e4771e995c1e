//! The engine goes away in the middle of a build, and comes back.

use serde_json::json;

use crate::rule::{all_ended_in_their_image, fresh_request_passes};
use crate::support::engine::BASE;
use crate::support::managers::Notification;
use crate::support::own_engine::OwnEngine;
use crate::support::slow::Slow;
use crate::support::until;
use crate::support::world::{World, repository};

fn goes_away(end: impl FnOnce(&OwnEngine)) {
    let engine = OwnEngine::new();
    engine.load(BASE);
    let world = World::new().with("DOCKER_HOST", &engine.host());
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);
    let mut ids = vec![slow.build_id.clone()];

    end(&engine);
    slow.let_go();
    worker.wait_for_line("no room to work: the listener pauses");
    worker.wait_for_line("still no room to work");
    engine.start();
    worker.wait_for_line("there is room to work again: the listener resumes");

    // Neither the try that was cut off counts, since it need not have been of this build, nor waiting for
    // the engine.
    world.outcome(&ids[0]).ready().after(1);
    ids.push(fresh_request_passes(&world));
    until("it is ready", || (worker.get("/readyz").0 == 200).then_some(()));
    assert_eq!(worker.restarts(), [0; 6]);
    let all = engine.docker(&["image", "ls", "--all", "--quiet", "--no-trunc"]);
    assert_eq!(all.lines().count(), 3, "the base and two images: {all}");
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]), "");
    assert_eq!(all_ended_in_their_image(&world, &[&worker], &ids), 0);
}

#[test]
fn a_restart_of_the_engine_costs_a_build_nothing_but_time() {
    goes_away(OwnEngine::stop);
}

#[test]
fn an_engine_that_is_killed_costs_a_build_nothing_but_time() {
    goes_away(OwnEngine::kill);
}

#[test]
fn what_an_engine_dies_of_twice_is_given_up_and_nobody_elses_build_is_charged() {
    let engine = OwnEngine::new();
    engine.load(BASE);
    let world = World::new().with("DOCKER_HOST", &engine.host());
    let worker = world.worker();
    let victim = Slow::begin(&world, &worker);
    // Whenever this one runs, the engine dies.
    let killer = Slow::begin_with(&world, &worker, json!({"userID": "mallory"}));
    engine.kill();
    victim.let_go();
    engine.start();
    until("it runs again", || (killer.times_begun(&worker) == 2).then_some(()));
    engine.kill();
    engine.start();

    let told = world.outcome(&killer.build_id).failed("engine_failed").after(2);
    assert_eq!((told.text("/fault"), told.text("/stage")), ("service", "builder"), "{}", told.raw);
    assert!(told.text("/message").contains("crashed twice"), "{}", told.raw);
    world.outcome(&victim.build_id).ready().after(1);
    let fresh = fresh_request_passes(&world);
    assert_eq!((killer.times_begun(&worker), victim.times_begun(&worker)), (2, 2));
    assert_eq!(worker.restarts(), [0; 6]);

    let (told, letters) = world.finish(&[&worker]);
    assert_eq!(letters.len(), 1, "{letters:?}");
    let mut ids: Vec<_> = told.iter().map(Notification::build_id).collect();
    ids.sort_unstable();
    let mut expected = [&killer.build_id, &victim.build_id, &fresh].map(String::as_str);
    expected.sort_unstable();
    assert_eq!(ids, expected);
}

#[test]
fn a_dockerfile_that_would_end_the_engine_never_reaches_it() {
    let engine = OwnEngine::new();
    engine.load(BASE);
    let world = World::new().with("DOCKER_HOST", &engine.host());
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);
    for (text, said) in [
        ("ARG X=1\n", "no stage"),
        ("ARG X=1\rFROM scratch\r", "carriage return"),
        ("# check=skip=all\n# escape=`\nARG X=1 \\\nFROM scratch\n", "no stage"),
        (
            "FROM scratch AS c\nFROM scratch AS a\nCOPY --from=b /x /x\nFROM a AS b\nENV x=1\n",
            "circle",
        ),
    ] {
        let told = world.build(&world.request(&repository("no-stage", &[("Dockerfile", text)])));
        let told = told.failed("invalid_plan");
        assert!(told.text("/message").contains(said), "{text:?}: {}", told.raw);
        assert_eq!(told.text("/fault"), "user", "{}", told.raw);
        assert_eq!(told.data()["attempts"], 1, "{}", told.raw);
    }
    // The engine that had this one in hand is still the same.
    slow.let_go();
    world.outcome(&slow.build_id).ready().after(1);
    assert_eq!(worker.restarts(), [0; 6]);
}
