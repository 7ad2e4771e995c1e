//! Panics of adapters and of actors: the job ends well, the siblings notice nothing.

use std::time::Duration;

use image_builder_actors::telemetry::health::ActorName;
use image_builder_actors::testing::builder::End;
use image_builder_actors::testing::world::{World, request, request_with, settings, with_pipeline};

/// So many jobs crashed with this actor, and no actor died of it.
async fn assert_crashed(world: &World, name: ActorName, jobs: u64) {
    let expected = ActorName::ALL.map(|actor| if actor == name { jobs } else { 0 });
    world.until(|world| world.crashed() == expected).await;
    assert_eq!(world.restarts(), [0; 6]);
}

#[test]
fn a_panic_in_a_job_of_the_connector_costs_one_try() {
    with_pipeline(settings(), async |world| {
        world.forge.script.panic();
        let (_, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(body["data"]["attempts"], 2);
        assert_crashed(&world, ActorName::Connector, 1).await;
        assert_eq!(world.workspaces_left().await, 0);
    });
}

#[test]
fn a_panic_in_a_job_of_the_builder_costs_one_try_and_its_neighbour_nothing() {
    with_pipeline(settings(), async |world| {
        world.engine.next().panic();
        world.hold_build(&request("b1")).await;
        world.hold_build(&request_with("b2", "userID", "bob")).await;
        world.engine.release();
        let notified = world.notified(2).await;
        let attempts = |id: &str| {
            let found = notified.iter().find(|(notified, _)| notified == id).expect("notified");
            found.1["data"]["attempts"].clone()
        };
        assert_eq!(attempts("b1.image.ready"), 2);
        assert_eq!(attempts("b2.image.ready"), 1);
        assert_crashed(&world, ActorName::Builder, 1).await;
    });
}

#[test]
fn a_panic_in_a_notification_costs_no_build() {
    with_pipeline(settings(), async |world| {
        world.managers.script.panic();
        world.outcome_of(&request("b1")).await;
        assert_eq!(world.engine.built(), 1);
        assert_crashed(&world, ActorName::Notifier, 1).await;
    });
}

#[test]
fn a_job_that_panics_every_time_is_given_up_as_crashed() {
    with_pipeline(settings(), async |world| {
        for _ in 0..3 {
            world.planner.script.panic();
        }
        let (id, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(id, "b1.build.failed");
        assert_eq!(body["data"]["reason"], "crashed");
        assert_eq!(body["data"]["fault"], "service");
        assert_eq!(body["data"]["attempts"], 3);
        assert_eq!(world.dead_letters.letters().len(), 1);
        assert_crashed(&world, ActorName::Builder, 3).await;
    });
}

#[test]
fn a_hundred_panics_in_a_row_cost_the_neighbours_nothing() {
    const BAD: usize = 4;
    const TRIES: u32 = 25;
    const NEIGHBOURS: usize = 20;
    let mut settings = settings();
    settings.retry.max_attempts = TRIES;
    settings.retry.max_delay = Duration::from_millis(1);
    settings.intensity.max_restarts = 0;
    with_pipeline(settings, async |world| {
        let of = |user: &str, build_id: &str| request_with(build_id, "userID", user);
        let gate = world.planner.script.wait();
        world.request(&of("bob", "in-hand")).await;
        gate.reached().await;
        // There is one slot left, which the others have in turns.
        for number in 0..BAD {
            let build_id = format!("bad-{number}");
            world.engine.script(&build_id, "", End::Panic);
            world.request(&of("mallory", &build_id)).await;
        }
        for number in 0..NEIGHBOURS {
            world.request(&of(&format!("user-{number}"), &format!("good-{number}"))).await;
        }
        world.notified(BAD + NEIGHBOURS).await;
        assert_crashed(&world, ActorName::Builder, BAD as u64 * u64::from(TRIES)).await;
        gate.open();
        let notified = world.notified(BAD + NEIGHBOURS + 1).await;
        for (id, body) in &notified {
            let (end, attempts) = match id.starts_with("bad") {
                true => ("build.failed", TRIES),
                false => ("image.ready", 1),
            };
            assert!(id.ends_with(end), "{id}");
            assert_eq!(body["data"]["attempts"], attempts, "{id}");
        }
        // The worker goes on.
        world.request(&of("bob", "after")).await;
        assert_eq!(world.notified(notified.len() + 1).await[notified.len()].0, "after.image.ready");
    });
}
