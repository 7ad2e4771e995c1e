//! The engine goes away in the middle of a build, and comes back.

use crate::rule::{all_ended_in_their_image, fresh_request_passes};
use crate::support::engine::BASE;
use crate::support::own_engine::OwnEngine;
use crate::support::slow::Slow;
use crate::support::until;
use crate::support::world::{World, repository};

fn goes_away(end: impl FnOnce(&OwnEngine)) {
    let engine = OwnEngine::new();
    engine.load(BASE);
    let world = World::new().with("DOCKER_HOST", &engine.host()).with("BUILDER_NETWORK", "none");
    let worker = world.worker();
    let slow = Slow::begin(5, &world, &worker);
    let mut ids = vec![slow.build_id];

    end(&engine);
    worker.wait_for_line("no room to work: the listener pauses");
    worker.wait_for_line("still no room to work");
    engine.start();
    worker.wait_for_line("there is room to work again: the listener resumes");

    // The try that was cut off counts, since the build itself may be what ends its engine; waiting for
    // the engine does not.
    world.outcome(&ids[0]).ready().after(2);
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
fn a_dockerfile_that_would_end_the_engine_never_reaches_it() {
    let engine = OwnEngine::new();
    engine.load(BASE);
    let world = World::new().with("DOCKER_HOST", &engine.host()).with("BUILDER_NETWORK", "none");
    let worker = world.worker();
    let slow = Slow::begin(5, &world, &worker);
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
    world.outcome(&slow.build_id).ready().after(1);
    assert_eq!(worker.restarts(), [0; 6]);
}
