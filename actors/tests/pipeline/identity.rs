//! A build is a user and an id: what one user's build is, no other user's is.

use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::fault::{Reason, StageName};
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::notification::{NotificationType, notification_id};
use image_builder_actors::telemetry::health::ActorName;
use image_builder_actors::testing::world::{
    World, fault, request, request_with, settings, with_pipeline,
};
use serde_json::{Value, json};

/// The `webhook-id`s that were sent, in order.
fn webhook_ids(world: &World) -> Vec<String> {
    world.managers.taken.all().into_iter().map(|notification| notification.id).collect()
}

fn cancel(world: &World, body: &Value) {
    world.broker.send_cancellation(body.to_string().as_bytes());
}

#[test]
fn two_users_who_chose_one_id_have_two_builds() {
    with_pipeline(settings(), async |world| {
        let (_, alices) = world.outcome_of(&request("b1")).await;
        world.request(&request_with("b1", "userID", "bob")).await;
        let bobs = &world.notified(2).await[1].1;
        for (body, user) in [(&alices, "alice"), (bobs, "bob")] {
            assert_eq!(body["data"]["userID"], user);
            assert_eq!(body["data"]["reused"], false);
            let repository = format!("registry.test/{user}/name");
            assert_eq!(body["data"]["image"]["repository"], repository);
        }
        assert_eq!(world.engine.built(), 2);
        let id = |user| {
            notification_id(&BuildIdentity::new(Some(user), "b1"), NotificationType::ImageReady)
        };
        assert_eq!(webhook_ids(&world), [id("alice"), id("bob")]);
    });
}

#[test]
fn a_cancellation_stops_the_build_of_the_user_that_it_names_and_no_other() {
    with_pipeline(settings(), async |world| {
        world.hold_build(&request("b1")).await;
        world.request(&request_with("b1", "userID", "bob")).await;
        world.until(|world| world.health(ActorName::Builder).in_hand == 2).await;
        // Nobody knows whose is meant; and nobody has the last one.
        cancel(&world, &json!({"buildID": "b1"}));
        cancel(&world, &json!({"buildID": "b1", "userID": ""}));
        cancel(&world, &json!({"buildID": "b1", "userID": "alice\n"}));
        cancel(&world, &json!({"buildID": "b1", "userID": "bob"}));
        let cancelled = world.notified(1).await.remove(0);
        assert_eq!(cancelled.0, "b1.build.cancelled");
        assert_eq!(cancelled.1["data"]["userID"], "bob");
        assert_eq!(cancelled.1["data"].get("fault"), None, "nobody is at fault");
        world.engine.release();
        let ready = world.notified(2).await.remove(1);
        assert_eq!(
            (ready.0.as_str(), &ready.1["data"]["userID"]),
            ("b1.image.ready", &json!("alice"))
        );
    });
}

#[test]
fn a_cancellation_in_advance_is_of_one_user_s_build() {
    with_pipeline(settings(), async |world| {
        cancel(&world, &json!({"buildID": "b1", "userID": "bob"}));
        cancel(&world, &json!({"buildID": "b1"}));
        // Cancellations come one after another: once this one is heard, those before are.
        world.hold_build(&request("last")).await;
        cancel(&world, &json!({"buildID": "last", "userID": "alice"}));
        world.notified(1).await;
        world.engine.release();
        world.request(&request("b1")).await;
        assert_eq!(world.notified(2).await[1].0, "b1.image.ready");
        world.request(&request_with("b1", "userID", "bob")).await;
        let (id, body) = world.notified(3).await.remove(2);
        assert_eq!(id, "b1.build.cancelled");
        assert_eq!(body["data"]["attempts"], 0, "no try was begun");
    });
}

#[test]
fn an_id_that_a_worker_gave_needs_no_user_to_be_cancelled() {
    with_pipeline(settings(), async |world| {
        world.engine.hold();
        world.request(&json!({"userID": "alice", "repo": "owner/name"})).await;
        world.until(|world| world.engine.running().len() == 1).await;
        let id = world.engine.running().remove(0);
        cancel(&world, &json!({"buildID": id}));
        assert_eq!(world.notified_once().await.0, format!("{id}.build.cancelled"));
    });
}

#[test]
fn a_newer_request_of_another_user_supersedes_nothing() {
    let mut settings = settings();
    settings.supersede = true;
    settings.builder.concurrency = 1;
    with_pipeline(settings, async |world| {
        world.hold_build(&request_with("busy", "applicationID", "busy")).await;
        for (id, user) in [("b1", "alice"), ("b1", "bob"), ("b2", "carol")] {
            world.request(&request_with(id, "userID", user)).await;
        }
        world.broker.wait_until(|broker| broker.backlog().len() == 3).await;
        world.engine.release();
        let notified = world.notified(4).await;
        assert!(notified.iter().all(|(id, _)| id.ends_with(".image.ready")), "{notified:?}");
    });
}

#[test]
fn a_later_request_under_an_id_is_not_told_of_the_image_that_the_earlier_one_made() {
    with_pipeline(settings(), async |world| {
        let of_repo = |repo: &str| {
            let mut body = request_with("b1", "applicationID", "shop");
            body["repo"] = json!(repo);
            body
        };
        let (_, first) = world.outcome_of(&of_repo("owner/one")).await;
        assert_eq!(first["type"], "image.ready");
        // Its last try ends in the fail queue, where the image of the build is looked for.
        let tries = settings().retry.max_attempts as usize;
        world.forge.script.fail(tries, fault(StageName::Connector, Reason::ForgeFailed));
        world.request(&of_repo("owner/other")).await;
        let (id, second) = world.notified(2).await.remove(1);
        assert_eq!(id, "b1.build.failed", "{second}");
        assert_eq!(second["data"]["repo"], "owner/other");
        assert_eq!(second["data"]["attempts"], tries);
    });
}

#[test]
fn a_request_that_names_two_users_is_nobody_s() {
    with_pipeline(settings(), async |world| {
        let bodies = [
            r#"{"uuid":"b1","userID":"alice","userID":"bob","repo":"owner/name"}"#,
            r#"{"uuid":"b2","userID":"alice","pullInfo":{"userID":"bob","repo":"owner/name"}}"#,
        ];
        for (before, body) in bodies.into_iter().enumerate() {
            world.publish(body.as_bytes()).await;
            world.until(|world| world.dead_letters.letters().len() == before + 1).await;
        }
        world.quiet().await;
        assert!(world.managers.taken.all().is_empty());
        assert!(world.forge.calls.all().is_empty());
        let letter = &world.dead_letters.letters()[0];
        let letter: DeadLetter = serde_json::from_slice(letter).expect("a dead letter");
        assert!(!letter.holds_the_request(), "there is nothing that could be asked for again");
    });
}

#[test]
fn a_request_is_told_as_whom_it_names_byte_by_byte() {
    with_pipeline(settings(), async |world| {
        let (id, body) = world.outcome_of(&request_with("b1", "userID", "alice\n")).await;
        assert_eq!(id, "b1.build.failed");
        assert_eq!(body["data"]["userID"], "alice\n");
        assert_eq!(
            (&body["data"]["reason"], &body["data"]["attempts"]),
            (&json!("invalid_request"), &json!(1))
        );
    });
}
