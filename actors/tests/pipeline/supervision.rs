//! Panics of adapters and of actors: the job ends well, the siblings notice nothing.

use image_builder_actors::telemetry::health::ActorName;

use image_builder_actors::testing::world::{request, settings, with_pipeline};

const NONE: [u64; 6] = [0; 6];

fn only(name: ActorName) -> [u64; 6] {
    ActorName::ALL.map(|actor| u64::from(actor == name))
}

#[test]
fn a_panic_in_a_job_of_the_connector_costs_one_try() {
    with_pipeline(settings(), async |world| {
        world.forge.panic_on_next();
        world.request(&request("b1")).await;
        let (_, body) = world.told_once().await;
        assert_eq!(body["data"]["attempts"], 2);
        assert_eq!(world.restarts(), only(ActorName::Connector));
        assert_eq!(world.workspaces_left().await, 0);
    });
}

#[test]
fn a_panic_in_a_job_of_the_builder_costs_one_try_and_its_neighbour_nothing() {
    with_pipeline(settings(), async |world| {
        world.engine.hold();
        world.engine.panic_next();
        world.request(&request("b1")).await;
        world.engine.until_running("b1").await;
        let mut neighbour = request("b2");
        neighbour["userID"] = "bob".into();
        world.request(&neighbour).await;
        world.engine.until_running("b2").await;
        world.engine.release();
        let told = world.told(2).await;
        let attempts = |id: &str| {
            let found = told.iter().find(|(told, _)| told == id).expect("told");
            found.1["data"]["attempts"].clone()
        };
        assert_eq!(attempts("b1.image.ready"), 2);
        assert_eq!(attempts("b2.image.ready"), 1);
        assert_eq!(world.restarts(), only(ActorName::Builder));
    });
}

#[test]
fn a_panic_in_a_notification_costs_no_build() {
    with_pipeline(settings(), async |world| {
        world.managers.panic();
        world.request(&request("b1")).await;
        world.told_once().await;
        assert_eq!(world.engine.built(), 1);
        assert_eq!(world.restarts(), only(ActorName::Notifier));
    });
}

#[test]
fn a_job_that_panics_every_time_is_given_up_as_crashed() {
    with_pipeline(settings(), async |world| {
        for _ in 0..3 {
            world.planner.panic();
        }
        world.request(&request("b1")).await;
        let (id, body) = world.told_once().await;
        assert_eq!(id, "b1.build.failed");
        assert_eq!(body["data"]["reason"], "crashed");
        assert_eq!(body["data"]["fault"], "service");
        assert_eq!(body["data"]["attempts"], 3);
        assert_eq!(world.dead_letters.letters().len(), 1);
        assert_ne!(world.restarts(), NONE);
    });
}

#[test]
fn an_actor_that_dies_too_often_escalates() {
    let mut settings = settings();
    settings.intensity.max_restarts = 1;
    with_pipeline(settings, async |world| {
        for _ in 0..2 {
            world.planner.panic();
        }
        world.request(&request("b1")).await;
        let cause = world.pipeline.escalated().await;
        assert!(cause.starts_with("builder: panic: "), "{cause}");
    });
}
