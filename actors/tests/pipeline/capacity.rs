//! Whom a lack of capacity holds up, and for how long.

use std::time::{Duration, Instant};

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::scope::{Fingerprint, Scope};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::pipeline::PipelineSettings;
use image_builder_actors::ports::Queue;
use image_builder_actors::testing::source::HOST;
use image_builder_actors::testing::world::{
    World, fault, request, request_with, settings, with_pipeline,
};
use serde_json::{Value, json};

/// For so long the other side asks to be left alone.
const ASKED: Duration = Duration::from_secs(2);

fn limited(scope: Scope) -> Fault {
    fault(StageName::Connector, Reason::RateLimited).retry_after(Some(ASKED)).concerning(scope)
}

fn anonymous(uuid: &str, kind: &str) -> Value {
    json!({"uuid": uuid, "userID": "bob", "repo": "owner/name", "type": kind, "release": "v1"})
}

/// The first request meets this lack. The `held` ones then wait for as long as was asked, unseen by the
/// forge, while `others` are built.
fn holds_up(scope: Scope, first: Value, held: Value, others: Vec<Value>) {
    with_pipeline(settings(), async move |world| {
        world.forge.script.fail(1, limited(scope));
        let begun = Instant::now();
        world.request(&first).await;
        // It is decided upon.
        world.broker.wait_published(2, |published| published.queue == Queue::Build).await;
        world.request(&held).await;
        for other in &others {
            world.request(other).await;
        }
        let count = others.len();
        let notified = world.notified(count).await;
        assert!(begun.elapsed() < ASKED, "nobody else waits");
        let ids = |notified: &[(String, Value)]| {
            notified.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>()
        };
        for other in &others {
            let id = format!("{}.image.ready", other["uuid"].as_str().expect("an id"));
            assert!(ids(&notified).contains(&id), "{id} is not in {notified:?}");
        }
        assert_eq!(world.forge.calls.all().len(), 1 + count, "the held one was not begun");

        let notified = world.notified(count + 2).await;
        assert!(begun.elapsed() >= ASKED);
        for (id, body) in notified {
            assert!(id.ends_with(".image.ready"), "{body}");
            assert_eq!(body["data"]["attempts"], 1, "{body}");
        }
        assert!(world.probe.probes.all().is_empty(), "the listener never paused");
    });
}

#[test]
fn a_repository_that_is_rate_limited_waits_and_all_others_are_built() {
    holds_up(
        Scope::Repository("owner/name".to_owned()),
        request("b1"),
        request_with("b2", "userID", "bob"),
        vec![request_with("b3", "repo", "owner/other"), request_with("b4", "repo", "a/b")],
    );
}

#[test]
fn a_token_that_is_rate_limited_waits_and_all_others_are_built() {
    let token = Fingerprint::of(HOST, &Secret::new("hunter2hunter2"));
    holds_up(
        Scope::Token(token),
        request("b1"),
        request_with("b2", "repo", "owner/other"),
        vec![request_with("b3", "token", "another-token"), anonymous("b4", "repo")],
    );
}

#[test]
fn the_limit_of_those_without_a_token_holds_up_only_what_asks_the_forge_so() {
    let mut with_token = anonymous("b3", "release");
    with_token["token"] = "hunter2hunter2".into();
    holds_up(
        Scope::Anonymous(HOST.to_owned()),
        anonymous("b1", "release"),
        anonymous("b2", "release"),
        vec![with_token, anonymous("b4", "repo")],
    );
}

#[test]
fn while_a_host_is_down_one_job_at_a_time_finds_out_and_the_others_wait_uncounted() {
    with_pipeline(settings(), async |world| {
        let down = fault(StageName::Connector, Reason::ForgeDown);
        world.forge.script.fail(4, down.concerning(Scope::Host(HOST.to_owned())));
        for number in 1..=4 {
            world.request(&request(&format!("b{number}"))).await;
        }
        for (id, body) in world.notified(4).await {
            assert!(id.ends_with(".image.ready"), "{body}");
            assert_eq!(body["data"]["attempts"], 1, "{body}");
        }
        assert!(world.probe.probes.all().is_empty(), "the listener never paused");
    });
}

#[test]
fn a_lack_that_the_worker_does_not_see_pauses_nobody_and_is_given_up_in_the_end() {
    for (reason, told) in [
        (Reason::DiskLow, "engine_failed"),
        (Reason::EngineDown, "engine_failed"),
        (Reason::RegistryDown, "registry_failed"),
    ] {
        with_pipeline(settings(), async |world| {
            // The first time it waits, uncounted; then it has as many tries as others.
            world.engine.next().fail(4, fault(StageName::Builder, reason));
            let (id, body) = world.outcome_of(&request("b1")).await;
            assert_eq!(id, "b1.build.failed");
            assert_eq!(body["data"]["reason"], told);
            assert_eq!(body["data"]["fault"], "service");
            assert_eq!(body["data"]["attempts"], 3);
            assert!(world.probe.probes.all().is_empty(), "nothing was pruned, nothing paused");
        });
    }
}

#[test]
fn patience_that_the_registry_asks_for_without_a_time_costs_no_try_and_pauses_nobody() {
    with_pipeline(settings(), async |world| {
        world.registry.pushes.fail(9, fault(StageName::Pusher, Reason::RateLimited));
        let (id, body) = world.outcome_of(&request("b1")).await;
        assert_eq!((id.as_str(), &body["data"]["attempts"]), ("b1.image.ready", &json!(1)));
        assert!(world.probe.probes.all().is_empty());
    });
}

/// Settings of a worker on which nothing waits for longer than this.
fn impatient(max_age: Duration) -> PipelineSettings {
    let mut settings = settings();
    settings.retry.max_age = max_age;
    settings
}

/// A request is told that it waited for too long, and for what.
async fn told_too_old(world: &World, waited_for: &str) {
    let notified = world.notified(1).await;
    let (id, body) = &notified[0];
    let data = &body["data"];
    assert!(id.ends_with(".build.failed"), "{body}");
    assert_eq!((&data["reason"], &data["fault"]), (&json!("timeout"), &json!("service")));
    assert_eq!(data["attempts"], 1);
    let message = data["message"].as_str().expect("a sentence");
    assert!(message.contains(waited_for), "{message}");
    assert_eq!(world.dead_letters.letters().len(), 1);
}

#[test]
fn a_request_that_waits_through_a_pause_for_too_long_is_told() {
    with_pipeline(impatient(Duration::from_secs(1)), async |world| {
        world.probe.set_room(false);
        world.registry.set_down(Some(fault(StageName::Pusher, Reason::RegistryDown)));
        world.request(&request_with("b1", "force", true)).await;
        told_too_old(&world, "the registry, which cannot be reached").await;
        assert!(world.pipeline.capacity.lacking().is_some(), "the pause goes on");
    });
}

#[test]
fn a_request_that_is_held_up_for_too_long_is_told() {
    with_pipeline(impatient(Duration::from_millis(500)), async |world| {
        let scope = Scope::Repository("owner/name".to_owned());
        let hours = Some(Duration::from_secs(3600));
        world.forge.script.fail(1, limited(scope).retry_after(hours));
        world.request(&request("b1")).await;
        told_too_old(&world, "the server of the repository to take more requests").await;
        assert_eq!(world.forge.calls.all().len(), 1);
    });
}

#[test]
fn a_request_that_only_waits_for_its_turn_for_too_long_is_told() {
    let mut settings = impatient(Duration::from_millis(100));
    // It goes back to the queue after half of that.
    settings.job_timeout = Duration::from_secs(1);
    settings.connector.concurrency = 1;
    with_pipeline(settings, async |world| {
        let gate = world.forge.script.wait();
        world.request(&request("b1")).await;
        gate.reached().await;
        world.request(&request_with("b2", "userID", "bob")).await;
        told_too_old(&world, "its turn").await;
        assert_eq!(world.engine.built(), 0);
    });
}
