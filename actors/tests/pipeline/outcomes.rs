//! How requests end when nothing, or only the request, is at fault.

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{RegistryImage, digest_of};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::shutdown::ShutdownPhase;
use image_builder_actors::ports::{NotifyError, Queue, Registry};
use image_builder_actors::testing::builder::End;
use image_builder_actors::testing::world::{request, request_with, settings, with_pipeline};
use serde_json::json;

#[test]
fn a_request_becomes_an_image_and_the_container_manager_is_notified() {
    with_pipeline(settings(), async |world| {
        let (id, body) = world.outcome_of(&request("b1")).await;
        assert_eq!(id, "b1.image.ready");
        let data = &body["data"];
        assert_eq!(body["type"], "image.ready");
        assert_eq!(data["buildID"], "b1");
        assert_eq!(data["attempts"], 1);
        assert_eq!(data["reused"], false);
        assert_eq!(data["builder"], "dockerfile");
        assert_eq!(data["image"]["repository"], "registry.test/alice/name");
        assert_eq!(data["image"]["tag"], data["commit"]);
        let pushed = world.registry.pushed.all();
        assert_eq!(pushed.len(), 1);
        let mut tags = world.registry.tags(&pushed[0]);
        tags.retain(|tag| *tag != pushed[0].tag);
        let [build, key, seals @ ..] = &tags[..] else { panic!("further tags: {tags:?}") };
        assert!(build.starts_with("build-") && key.starts_with("key-"), "{tags:?}");
        assert!(seals.len() == 2 && seals.iter().all(|seal| seal.starts_with("seal-")), "{tags:?}");
        assert_eq!(world.workspaces_left().await, 0);
    });
}

#[test]
fn an_image_that_shows_a_secret_of_its_request_is_not_pushed() {
    with_pipeline(settings(), async |world| {
        let secret = "hush-hush-hush";
        let showing = || End::Showing(format!("_authToken={secret}"));
        world.engine.script("b1", "", showing());
        let plan = json!({"secrets": {"npm": secret}});
        let (id, body) = world.outcome_of(&request_with("b1", "buildPlan", plan)).await;
        assert_eq!(id, "b1.build.failed");
        let data = &body["data"];
        assert_eq!((&data["reason"], &data["fault"]), (&json!("secret_in_image"), &json!("user")));
        assert_eq!((&data["stage"], &data["attempts"]), (&json!("pusher"), &json!(1)));
        let message = data["message"].as_str().expect("a text");
        for part in ["the request's secret `npm`", "the file `/scripted`"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(!body.to_string().contains(secret), "{body}");
        assert_eq!(world.registry.pushed.all(), []);

        // Of a request without that secret it is nobody's.
        world.engine.script("b2", "", showing());
        world.request(&request("b2")).await;
        assert_eq!(world.notified(2).await[1].0, "b2.image.ready");
    });
}

#[test]
fn a_request_without_any_id_gets_one_and_keeps_it() {
    with_pipeline(settings(), async |world| {
        let (id, body) = world.outcome_of(&json!({"userID": "alice", "repo": "owner/name"})).await;
        let build_id = body["data"]["buildID"].as_str().expect("an id");
        assert!(uuid::Uuid::parse_str(build_id).is_ok(), "{build_id}");
        assert_eq!(id, format!("{build_id}.image.ready"));
    });
}

#[test]
fn an_image_of_the_same_inputs_is_reused_unless_it_is_forced() {
    with_pipeline(settings(), async |world| {
        world.request(&request("b1")).await;
        world.notified(1).await;
        world.request(&request("b2")).await;
        let notified = world.notified(2).await;
        assert_eq!(notified[1].1["data"]["reused"], true);
        assert_eq!(notified[1].1["data"]["image"], notified[0].1["data"]["image"]);
        assert_eq!(world.engine.built(), 1);

        world.request(&request_with("b3", "force", true)).await;
        assert_eq!(world.notified(3).await[2].1["data"]["reused"], false);
        assert_eq!(world.engine.built(), 2);
    });
}

#[test]
fn a_tag_that_somebody_moved_to_an_image_of_other_inputs_is_not_reused() {
    with_pipeline(settings(), async |world| {
        world.request(&request("b1")).await;
        world.request(&request_with("b2", "applicationID", "other")).await;
        world.notified(2).await;
        let [first, other] = ["name", "other"].map(|application| {
            let pushed = world.registry.pushed.all();
            let of = |it: &ImageReference| it.repository.ends_with(application);
            pushed.into_iter().find(of).expect("it was pushed")
        });
        let foreign = world.registry.find(&other).await.expect("it is up").expect("it is there");
        let labels = world.registry.labels(&other, &foreign).await.expect("it is up");
        let tags = world.registry.tags(&first);
        let key = tags.iter().find(|tag| tag.starts_with("key-")).expect("it has one");
        world.registry.store(&foreign, &first.with_tag(key), labels).expect("it is up");

        world.request(&request("b3")).await;
        let third = &world.notified(3).await[2].1["data"];
        assert_eq!(third["reused"], false);
        assert_ne!(third["image"]["digest"], foreign.digest);
    });
}

/// Whoever may push can copy all that is public of an image: its labels, and the names of its tags.
#[test]
fn an_image_that_somebody_else_put_under_the_names_of_a_build_is_never_told_as_its_own() {
    with_pipeline(settings(), async |world| {
        world.request(&request("b1")).await;
        world.notified(1).await;
        let first = world.registry.pushed.all().remove(0);
        let own = world.registry.find(&first).await.expect("it is up").expect("it is there");
        let labels = world.registry.labels(&first, &own).await.expect("it is up");
        let evil = digest_of(b"evil");
        let foreign = RegistryImage { digest: evil.clone(), image_id: evil.clone(), ..own };
        for tag in world.registry.tags(&first) {
            let moved = first.with_tag(&tag);
            world.registry.store(&foreign, &moved, labels.clone()).expect("it is up");
        }

        // What the second one builds is the service's own again.
        for (count, id) in [(2, "b2"), (3, "b3")] {
            world.request(&request(id)).await;
            let data = &world.notified(count).await[count - 1].1["data"];
            assert_eq!(data["reused"], id == "b3", "{data}");
            assert_ne!(data["image"]["digest"], evil);
        }
        assert_eq!(world.engine.built(), 2);
    });
}

#[test]
fn a_commit_that_changes_nothing_that_the_build_sees_is_told_with_the_image_there_is() {
    with_pipeline(settings(), async |world| {
        let of_branch = |id: &str, branch: &str| {
            let mut body = request_with(id, "type", "branch");
            body["branch"] = branch.into();
            body
        };
        world.engine.sees(Some("one"));
        world.request(&of_branch("b1", "one")).await;
        world.notified(1).await;
        world.request(&of_branch("b2", "two")).await;
        let notified = world.notified(2).await;
        let [first, second] = [0, 1].map(|n| notified[n].1["data"].clone());
        assert_eq!(second["reused"], true);
        assert_ne!(first["commit"], second["commit"]);
        assert_eq!(first["image"]["digest"], second["image"]["digest"]);
        assert_eq!(second["image"]["tag"], second["commit"]);
        assert_eq!(world.engine.built(), 1);
        // The image's labels name the other commit: it is not the second build's own.
        let pushed = world.registry.pushed.all();
        let builds = world.registry.tags(&pushed[0]);
        assert_eq!(builds.iter().filter(|tag| tag.starts_with("build-")).count(), 1, "{builds:?}");

        world.engine.sees(Some("another"));
        world.request(&of_branch("b3", "one")).await;
        assert_eq!(world.notified(3).await[2].1["data"]["reused"], false);
        world.engine.sees(None);
        for (at, (id, branch)) in [("b4", "one"), ("b5", "two")].into_iter().enumerate() {
            world.request(&of_branch(id, branch)).await;
            assert_eq!(world.notified(4 + at).await[3 + at].1["data"]["reused"], false);
        }
    });
}

#[test]
fn the_same_request_twice_at_once_is_built_once_and_notified_under_one_id() {
    with_pipeline(settings(), async |world| {
        world.engine.hold();
        world.request(&request("b1")).await;
        world.request(&request("b1")).await;
        world.engine.until_running("b1").await;
        world.until(|world| world.builds.whole_log("b1").contains("is under way")).await;
        world.engine.release();
        let notified = world.notified(2).await;
        assert_eq!(notified[0].0, notified[1].0);
        assert_eq!(notified[0].1["data"]["image"], notified[1].1["data"]["image"]);
        assert_eq!(world.engine.built(), 1);
    });
}

#[test]
fn two_users_never_share_an_image() {
    with_pipeline(settings(), async |world| {
        world.request(&request("b1")).await;
        world.request(&request_with("b2", "userID", "bob")).await;
        let notified = world.notified(2).await;
        assert_eq!(world.engine.built(), 2);
        let repository = |n: usize| &notified[n].1["data"]["image"]["repository"];
        assert_ne!(repository(0), repository(1));
    });
}

#[test]
fn bad_input_is_a_user_fault_notified_once_and_never_retried() {
    let long = request_with("long", "padding", "x".repeat(1 << 20));
    let cases = [
        (json!({"uuid": "types", "userID": "u", "repo": 7}), "repo"),
        (json!({"uuid": "missing", "userID": "u"}), "repo"),
        (json!({"uuid": "connector", "userID": "u", "repo": "o/n", "connector": "x"}), "connector"),
        (long, "bytes"),
    ];
    with_pipeline(settings(), async |world| {
        for (count, (body, named)) in cases.iter().enumerate() {
            world.request(body).await;
            let notified = world.notified(count + 1).await;
            let data = &notified[count].1["data"];
            assert_eq!(data["fault"], "user", "{data}");
            assert_eq!(data["stage"], "listener");
            assert_eq!(data["attempts"], 1);
            assert!(data["message"].as_str().is_some_and(|text| text.contains(named)), "{data}");
        }
        assert!(world.broker.delays().is_empty());
        assert_eq!(world.dead_letters.letters().len(), cases.len());
        assert_eq!(world.restarts(), [0; 6]);
    });
}

#[test]
fn a_body_that_names_no_user_leaves_a_dead_letter_and_notifies_nobody() {
    with_pipeline(settings(), async |world| {
        for (count, body) in [b"".as_slice(), b"{", b"[]", b"\xff\xfe", b"{\"repo\":\"o/n\"}"]
            .into_iter()
            .enumerate()
        {
            world.publish(body).await;
            world.dead_letters.wait_for(count + 1).await;
        }
        world.quiet().await;
        assert!(world.managers.taken.all().is_empty());
        world.outcome_of(&request("good")).await;
    });
}

#[test]
fn no_credential_leaves_the_build_and_fail_queues() {
    with_pipeline(settings(), async |world| {
        let body = request_with("b1", "buildPlan", json!({"secrets": {"npm": "s3cr3t-value"}}));
        let message = "it said hunter2hunter2 and s3cr3t-value";
        world.engine.next().fail(2, Fault::new(StageName::Builder, Reason::BuildFailed, message));
        let (_, notified) = world.outcome_of(&body).await;
        let dead = world.dead_letters.wait_for(1).await;
        for text in [notified.to_string(), String::from_utf8_lossy(&dead[0]).into_owned()] {
            assert!(!text.contains("hunter2hunter2") && !text.contains("s3cr3t-value"), "{text}");
        }
        assert!(notified["data"]["message"].as_str().is_some_and(|text| text.contains("[secret]")));
    });
}

#[test]
fn a_manager_that_does_not_answer_costs_no_build() {
    with_pipeline(settings(), async |world| {
        let error = NotifyError { message: "it answered 500".to_owned(), retry_after: None };
        world.managers.script.fail(6, error);
        world.outcome_of(&request("b1")).await;
        assert_eq!(world.managers.calls.all().len(), 7);
        assert_eq!(world.engine.built(), 1);
        assert_eq!(world.registry.pushed.all().len(), 1);
        let millis: Vec<_> = world.broker.delays().iter().map(|delay| delay.as_millis()).collect();
        assert_eq!(millis, [10, 20, 40, 40, 40, 40]);
    });
}

#[test]
fn a_manager_that_is_about_to_answer_when_the_worker_hands_back_is_not_notified_twice() {
    with_pipeline(settings(), |mut world| async move {
        let gate = world.managers.script.wait();
        world.request(&request("b1")).await;
        gate.reached().await;
        world.shutdown.enter(ShutdownPhase::HandingBack);
        gate.open();
        world.pipeline.settled().await;
        assert_eq!(world.managers.taken.all().len(), 1);
        assert_eq!(world.broker.unsettled(Queue::Outcome), 0);
        assert!(world.broker.messages(Queue::Outcome).is_empty(), "nobody is notified again");
    });
}

#[test]
fn messages_whose_properties_cannot_be_read_are_set_aside_by_size_and_hash() {
    with_pipeline(settings(), async |world| {
        let body = request("b1").to_string();
        for queue in [Queue::Build, Queue::Fail, Queue::Outcome] {
            world.broker.store_unreadable(queue, body.as_bytes());
        }
        let letters = world.dead_letters.wait_for(3).await;
        for letter in &letters {
            let letter: serde_json::Value = serde_json::from_slice(letter).expect("JSON");
            let id = letter["buildID"].as_str().expect("an id to call it by");
            assert!(uuid::Uuid::parse_str(id).is_ok(), "{id}");
            assert_eq!(letter["reason"], "invalid_request");
            let sha256 = "sha256".to_owned();
            let kept: Vec<_> = letter["request"].as_object().expect("one").keys().collect();
            assert_eq!(kept, [&"bytes".to_owned(), &sha256]);
            assert_eq!(letter["request"]["bytes"], body.len());
        }
        world.quiet().await;
        assert_eq!(world.broker.published(), []);
        world.outcome_of(&request("b2")).await;
    });
}
