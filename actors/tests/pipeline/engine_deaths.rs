//! An engine that dies with builds in hand: whoever it died of is found, and nobody else is charged.

use std::time::Duration;

use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::shutdown::ShutdownPhase;
use image_builder_actors::ports::{Broker, ImageBuilder, Message, Queue};
use image_builder_actors::testing::builder::End;
use image_builder_actors::testing::world::{
    PATIENCE, World, request, request_with, settings, with_pipeline,
};
use serde_json::{Value, json};

/// Publishes two requests of two users, and waits until the engine has both in hand.
async fn hold_two(world: &World) {
    world.hold_build(&request("killer")).await;
    world.hold_build(&request_with("innocent", "userID", "bob")).await;
}

fn told<'a>(notified: &'a [(String, Value)], id: &str) -> &'a Value {
    let told = notified.iter().find(|(told, _)| told == id);
    &told.unwrap_or_else(|| panic!("no {id} in {notified:?}")).1["data"]
}

#[test]
fn what_an_engine_dies_of_again_when_it_runs_alone_is_given_up_and_the_others_are_built() {
    with_pipeline(settings(), async |world| {
        world.engine.script("killer", "last words", End::EngineDies);
        hold_two(&world).await;
        world.engine.die();
        world.engine.release();

        let notified = world.notified(2).await;
        world.quiet().await;
        assert_eq!(world.managers.taken.all().len(), 2);
        let failed = told(&notified, "killer.build.failed");
        assert_eq!(
            (&failed["fault"], &failed["stage"], &failed["reason"], &failed["attempts"]),
            (&json!("service"), &json!("builder"), &json!("engine_failed"), &json!(2))
        );
        let message = failed["message"].as_str().expect("a sentence");
        assert!(message.contains("crashed twice"), "{message}");
        assert!(message.contains("nothing else in hand"), "{message}");
        assert!(failed["log"].to_string().contains("last words"), "{failed}");
        assert_eq!(told(&notified, "innocent.image.ready")["attempts"], 1);

        assert_eq!(world.engine.deaths(), [vec!["innocent", "killer"], vec!["killer"]]);
        let letters = world.dead_letters.letters();
        assert_eq!(letters.len(), 1, "of the killer alone: {letters:?}");
    });
}

#[test]
fn all_that_an_engine_had_in_hand_when_it_died_are_built_one_by_one_and_no_try_is_counted() {
    with_pipeline(settings(), async |world| {
        // It is back only after the worker has looked.
        world.probe.set_room(false);
        hold_two(&world).await;
        world.engine.die();
        world.engine.until_stopped("killer").await;
        world.engine.until_stopped("innocent").await;
        world.probe.probes.wait_for(1).await;
        world.probe.set_room(true);
        // The first one is held, so that another would be seen beside it.
        world.until(|world| world.engine.running().len() == 1).await;
        let first = world.engine.running();
        world.request(&request_with("third", "userID", "carol")).await;
        world.broker.wait_until(|broker| broker.backlog().len() == 2).await;
        assert_eq!(world.engine.running(), first);
        world.engine.release();
        for (id, body) in world.notified(3).await {
            assert!(id.ends_with(".image.ready"), "{body}");
            assert_eq!(body["data"]["attempts"], 1, "{body}");
        }
    });
}

#[test]
fn a_build_that_the_engine_may_have_died_of_waits_while_another_worker_runs_one() {
    with_pipeline(settings(), async |world| {
        let claim = world.engine.claim().await.expect("it is up").expect("it is free");
        world.hold_build(&request("b1")).await;
        world.engine.die();
        world.engine.release();
        // To the fail queue, back to wait, and twice back since another worker has the claim.
        world.broker.wait_published(4, |published| published.queue == Queue::Build).await;
        assert_eq!(world.engine.built(), 0);
        world.request(&request_with("b2", "userID", "bob")).await;
        let notified = world.notified(1).await;
        assert_eq!(notified[0].0, "b2.image.ready", "it holds up nobody else");
        drop(claim);
        assert_eq!(told(&world.notified(2).await, "b1.image.ready")["attempts"], 1);
    });
}

#[test]
fn an_engine_that_dies_once_and_then_fails_otherwise_has_its_tries_as_ever() {
    with_pipeline(settings(), async |world| {
        let engine = world.engine.next();
        engine.fail(1, Fault::of_dead_engine(StageName::Builder, "the engine died"));
        engine.fail(2, Fault::new(StageName::Builder, Reason::EngineFailed, "no"));
        let (id, body) = world.outcome_of(&request("b1")).await;
        assert_eq!((id.as_str(), &body["data"]["attempts"]), ("b1.image.ready", &json!(3)));
    });
}

/// What may have taken down its worker waits until nothing else is in hand; a worker that is asked to end then does not
/// forget what it was suspected of.
#[test]
fn what_was_to_run_alone_is_given_back_by_a_worker_that_drains_and_is_suspected_still() {
    with_pipeline(settings(), async |mut world| {
        world.hold_build(&request("innocent")).await;
        let suspected = Envelope { redeliveries: 2, ..Envelope::default() };
        let message = Message {
            body: request("suspect").to_string().into_bytes(),
            envelope: Some(suspected.encode()),
            ..Message::default()
        };
        world.broker.publish(Queue::Build, message, Duration::ZERO).await.expect("published");
        world.broker.wait_until(|broker| broker.taken() == 2).await;
        world.shutdown.enter(ShutdownPhase::Draining);
        let given_back = world.broker.wait_until(|broker| broker.messages(Queue::Build).len() == 1);
        tokio::time::timeout(PATIENCE, given_back)
            .await
            .expect("it does not wait for the other one");
        let [message] = &world.broker.messages(Queue::Build)[..] else { panic!("one message") };
        assert_eq!(Envelope::decode(message).redeliveries, 2);
        world.engine.release();
        world.drain().await;
        assert_eq!(world.engine.built(), 1);
    });
}
