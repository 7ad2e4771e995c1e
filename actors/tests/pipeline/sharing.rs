//! Users share a worker; requests take each other's place; builds are cancelled.

use std::time::Duration;

use image_builder_actors::model::fault::Reason;
use image_builder_actors::scheduling::admission::Cancellation;
use serde_json::{Value, json};
use time::OffsetDateTime;

use image_builder_actors::telemetry::health::ActorName;
use image_builder_actors::testing::world::{request, request_with, settings, with_pipeline};

fn cancellation(build_id: &str, user_id: Option<&str>) -> Cancellation {
    let user_id = user_id.map(str::to_owned);
    Cancellation { build_id: build_id.to_owned(), user_id, at: OffsetDateTime::now_utc() }
}

fn of_user(user: &str, number: usize) -> Value {
    let mut body = request_with(&format!("{user}-{number}"), "userID", user);
    body["applicationID"] = json!(format!("app-{number}"));
    body
}

#[test]
fn a_user_who_floods_the_queue_does_not_hold_up_another() {
    with_pipeline(settings(), async |world| {
        for number in [0, 1] {
            world.hold_build(&of_user("flood", number)).await;
        }
        for number in 2..50 {
            world.request(&of_user("flood", number)).await;
        }
        world.request(&of_user("other", 0)).await;
        world.broker.wait_until(|broker| broker.backlog().len() == 49).await;
        assert_eq!(world.forge.calls.all().len(), 2, "nothing is taken ahead");
        // One build ends: its slot goes to the user who has none.
        world.pipeline.admission.cancel(cancellation("flood-0", Some("flood")));
        world.engine.until_running("other-0").await;
        world.engine.release();
        let notified = world.notified(51).await;
        for (_, body) in &notified {
            assert_eq!(body["data"]["attempts"], 1);
        }
    });
}

#[test]
fn the_next_job_is_fetched_while_the_image_of_one_is_stored() {
    let mut settings = settings();
    settings.builder.concurrency = 1;
    with_pipeline(settings, async |world| {
        world.hold_build(&of_user("one", 0)).await;
        for user in ["two", "three"] {
            world.request(&of_user(user, 0)).await;
        }
        world.broker.wait_until(|broker| broker.backlog().len() == 2).await;
        world.engine.store("one-0");
        world.forge.calls.wait_for(2).await;
        world.broker.wait_until(|broker| broker.backlog().len() == 1).await;
        assert_eq!(world.engine.running(), ["one-0"]);
        world.engine.release();
        for (_, body) in &world.notified(3).await {
            assert_eq!(body["data"]["attempts"], 1);
        }
    });
}

#[test]
fn the_builder_of_a_source_that_takes_long_to_fetch_is_another_users_and_no_further_one_of_a_flood()
{
    with_pipeline(settings(), async |world| {
        world.forge.hold(&["one-0", "two-0"]);
        world.engine.hold();
        for user in ["one", "two"] {
            world.request(&of_user(user, 0)).await;
            world.until_fetched(&format!("{user}-0")).await;
        }
        for number in 1..10 {
            for user in ["one", "two"] {
                world.request(&of_user(user, number)).await;
            }
        }
        world.request(&of_user("three", 0)).await;
        world.engine.until_running("three-0").await;
        assert_eq!(world.forge.calls.all().len(), 3, "none of the floods is fetched ahead");
        for user in ["one", "two"] {
            world.forge.let_go(&format!("{user}-0"));
        }
        world.engine.until_running("one-0").await;
        world.engine.release();
        world.notified(21).await;
    });
}

#[test]
fn who_has_none_in_hand_goes_before_another_users_second_job_that_waits_for_a_builder() {
    with_pipeline(settings(), async |world| {
        world.forge.hold(&["flood-1"]);
        for (user, number) in [("flood", 0), ("flood", 1), ("two", 0)] {
            world.engine.hold();
            world.request(&of_user(user, number)).await;
            world.until_fetched(&format!("{user}-{number}")).await;
        }
        for id in ["flood-0", "two-0"] {
            world.engine.until_running(id).await;
        }
        world.forge.let_go("flood-1");
        world.until(|world| world.health(ActorName::Builder).waiting == 1).await;
        world.request(&of_user("three", 0)).await;
        world.until(|world| world.health(ActorName::Builder).waiting == 2).await;
        world.pipeline.admission.cancel(cancellation("two-0", Some("two")));
        world.engine.until_running("three-0").await;
        assert_eq!(world.engine.running(), ["flood-0", "three-0"]);
        world.engine.release();
        world.notified(4).await;
    });
}

#[test]
fn what_one_user_has_in_hand_that_is_pushed_for_long_keeps_nobody_else_waiting() {
    let mut settings = settings();
    settings.most_in_hand = 4;
    settings.pusher.concurrency = 1;
    with_pipeline(settings, async |world| {
        world.registry.hold();
        for number in 0..10 {
            world.request(&of_user("flood", number)).await;
        }
        world.until(|world| world.engine.built() == 3).await;
        world.request(&of_user("other", 0)).await;
        world.until_fetched("other-0").await;
        assert_eq!(world.forge.calls.all().len(), 4);
        world.registry.release();
        world.notified(11).await;
    });
}

#[test]
fn a_build_that_waits_for_one_of_the_same_inputs_keeps_no_builder_and_its_time() {
    let mut settings = settings();
    settings.builder.timeout = Duration::from_secs(2);
    with_pipeline(settings, async |world| {
        world.hold_build(&request("first")).await;
        world.request(&request("equal")).await;
        world.until(|world| world.health(ActorName::Builder).waiting == 1).await;
        // The second of two builders.
        world.request(&request_with("other", "repo", "o/other")).await;
        world.engine.until_running("other").await;
        // The first one is stopped for its time, of which the second one has all left.
        world.engine.until_running("equal").await;
        world.engine.release();
        let notified = world.notified(3).await;
        let attempts = |id: &str| {
            let told = notified.iter().find(|(_, body)| body["data"]["buildID"] == id);
            told.expect("it is told").1["data"]["attempts"].clone()
        };
        assert_eq!((attempts("first"), attempts("equal")), (json!(2), json!(1)), "{notified:?}");
    });
}

#[test]
fn one_user_holds_no_more_than_their_share_of_the_builders() {
    let mut settings = settings();
    settings.builds_per_user = 1;
    with_pipeline(settings, async |world| {
        world.hold_build(&of_user("slow", 0)).await;
        for number in 1..3 {
            world.request(&of_user("slow", number)).await;
        }
        world.request(&of_user("other", 0)).await;
        world.engine.until_running("other-0").await;
        assert_eq!(world.engine.running(), ["other-0", "slow-0"]);
        world.engine.release();
        world.notified(4).await;
    });
}

#[test]
fn a_newer_request_takes_the_place_of_an_older_one_that_does_not_build_yet() {
    let mut settings = settings();
    settings.supersede = true;
    settings.builder.concurrency = 1;
    settings.builds_per_user = 1;
    with_pipeline(settings, async |world| {
        world.hold_build(&of_user("busy", 0)).await;
        for (waiting, id) in [(1, "old"), (2, "new")] {
            world.request(&request(id)).await;
            world.broker.wait_until(|broker| broker.backlog().len() == waiting).await;
        }
        world.engine.release();
        let notified = world.notified(3).await;
        let old = notified.iter().find(|(_, body)| body["data"]["buildID"] == "old");
        let (_, old) = old.expect("the older one is told");
        assert_eq!(old["type"], "build.cancelled");
        assert_eq!(old["data"]["reason"], "superseded");
        assert!(notified.iter().any(|(id, _)| id == "new.image.ready"));
        assert_eq!(world.engine.built(), 2);
    });
}

#[test]
fn neither_its_own_second_copy_nor_what_is_redriven_supersedes_a_request() {
    let mut settings = settings();
    settings.supersede = true;
    settings.builder.concurrency = 1;
    with_pipeline(settings, async |world| {
        world.hold_build(&of_user("busy", 0)).await;
        let mut old = request("old");
        old["redriveOf"] = json!("older");
        for (waiting, body) in [request("twin"), request("twin"), old].iter().enumerate() {
            world.request(body).await;
            world.broker.wait_until(|broker| broker.backlog().len() == waiting + 1).await;
        }
        world.engine.release();
        world.quiet().await;
        let notified = world.notified(3).await;
        assert!(notified.iter().all(|(id, _)| id.ends_with(".image.ready")), "{notified:?}");
        for id in ["twin", "old"] {
            assert!(notified.iter().any(|(told, _)| *told == format!("{id}.image.ready")), "{id}");
        }
    });
}

#[test]
fn a_request_can_ask_for_that_itself_and_means_its_branch_then() {
    let mut settings = settings();
    settings.builder.concurrency = 1;
    settings.builds_per_user = 1;
    with_pipeline(settings, async |world| {
        world.hold_build(&of_user("busy", 0)).await;
        let push = |id: &str, branch: &str, supersede: bool| {
            let commit = format!("{:0>40}", id.len());
            serde_json::json!({
                "uuid": id, "supersede": supersede,
                "pullInfo": {"userID": "alice", "repo": "o/n", "branch": branch, "commit": commit},
            })
        };
        let pushes = [
            push("kept", "main", false),
            push("old", "main", true),
            push("other", "dev", true),
            push("newest", "main", true),
        ];
        for (waiting, push) in pushes.iter().enumerate() {
            world.request(push).await;
            world.broker.wait_until(|broker| broker.backlog().len() == waiting + 1).await;
        }
        world.engine.release();
        let notified = world.notified(5).await;
        let ended = |id: &str| {
            let of = notified.iter().find(|(_, body)| body["data"]["buildID"] == id);
            of.expect("it is told").1["type"].clone()
        };
        assert_eq!(ended("old"), "build.cancelled");
        for id in ["other", "newest"] {
            assert_eq!(ended(id), "image.ready", "{id}");
        }
    });
}

#[test]
fn a_build_that_has_begun_is_not_superseded() {
    let mut settings = settings();
    settings.supersede = true;
    with_pipeline(settings, async |world| {
        world.hold_build(&request("old")).await;
        world.request(&request_with("new", "force", true)).await;
        world.engine.until_running("new").await;
        world.engine.release();
        let notified = world.notified(2).await;
        assert!(notified.iter().all(|(id, _)| id.ends_with(".image.ready")), "{notified:?}");
    });
}

#[test]
fn a_cancelled_build_stops_and_is_notified_as_cancelled() {
    with_pipeline(settings(), async |world| {
        world.hold_build(&request("b1")).await;
        world.pipeline.admission.cancel(cancellation("b1", Some("alice")));
        world.engine.until_stopped("b1").await;
        let (id, body) = world.notified_once().await;
        assert_eq!(id, "b1.build.cancelled");
        assert_eq!(body["data"]["reason"], Reason::Cancelled.as_str());
        assert_eq!(world.engine.built(), 0);
        assert_eq!(world.workspaces_left().await, 0);
        assert!(world.broker.delays().is_empty());
    });
}

#[test]
fn a_cancellation_that_the_broker_hands_out_is_heard() {
    with_pipeline(settings(), async |world| {
        world.hold_build(&request("b1")).await;
        for body in [r#"{"buildID": 7}"#, "no JSON", r#"{"buildID": "b1", "userID": "alice"}"#] {
            world.broker.send_cancellation(body.as_bytes());
        }
        assert_eq!(world.notified_once().await.0, "b1.build.cancelled");
    });
}

#[test]
fn a_cancellation_of_long_ago_does_not_stop_a_new_request_of_the_same_id() {
    with_pipeline(settings(), async |world| {
        let long_ago = OffsetDateTime::now_utc() - time::Duration::hours(1);
        let old = Cancellation { at: long_ago, ..cancellation("b1", Some("alice")) };
        world.pipeline.admission.cancel(old.clone());
        world.hold_build(&request("b1")).await;
        // It is read back from the broker after every lost connection.
        world.pipeline.admission.cancel(old);
        world.engine.release();
        assert_eq!(world.notified_once().await.0, "b1.image.ready");
    });
}

#[test]
fn a_build_can_be_cancelled_before_it_comes_into_sight() {
    with_pipeline(settings(), async |world| {
        world.pipeline.admission.cancel(cancellation("b1", Some("alice")));
        let (id, _) = world.outcome_of(&request("b1")).await;
        assert_eq!(id, "b1.build.cancelled");
        assert!(world.forge.calls.all().is_empty());
        assert_eq!(world.dead_letters.letters().len(), 1);
    });
}
