//! What is known of builds, and that no build waits for it.

use std::sync::Arc;
use std::time::Duration;

use image_builder_actors::model::build_log::BuildEvent;
use image_builder_actors::model::fault::{Reason, StageName};
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::notification::{NotificationType, Subject};
use image_builder_actors::ports::build_store::{BuildState, BuildStore, Change, StoredBuild};
use image_builder_actors::telemetry::history::Recorder;
use image_builder_actors::testing::build_store::FakeBuildStore;
use image_builder_actors::testing::world::{
    World, fault, request, request_with, settings, with_pipeline,
};
use time::OffsetDateTime;

const PATIENCE: Duration = Duration::from_secs(20);

/// The build, once it is in this state.
async fn in_state(world: &World, build_id: &str, state: BuildState) -> StoredBuild {
    let known = world.builds.until(build_id, |build| build.state == state);
    tokio::time::timeout(PATIENCE, known)
        .await
        .unwrap_or_else(|_| panic!("not {}: {:?}", state.as_str(), world.builds.build(build_id)))
}

#[test]
fn a_build_is_known_from_its_request_to_its_outcome() {
    with_pipeline(settings(), async |world| {
        world.hold_build(&request("b1")).await;
        let building = in_state(&world, "b1", BuildState::Building).await;
        assert_eq!(building.requested.build, BuildIdentity::new(Some("alice"), "b1"));
        assert_eq!(building.requested.repo.as_deref(), Some("owner/name"));
        world.engine.release();
        let (_, body) = world.notified_once().await;

        // Whoever was notified can ask: it is known already.
        let ready = world.builds.build("b1").expect("known");
        assert_eq!(ready.state, BuildState::Ready);
        assert_eq!(ready.commit.as_deref(), body["data"]["commit"].as_str());
        let outcome: serde_json::Value =
            serde_json::from_str(&ready.outcome.expect("an outcome")).expect("JSON");
        assert_eq!(outcome, body["data"]);
        assert_eq!(ready.attempts.len(), 1);
        let attempt = &ready.attempts[0];
        let stages: Vec<_> = attempt.stages.iter().map(|(stage, _)| *stage).collect();
        assert_eq!(stages, [StageName::Connector, StageName::Builder, StageName::Pusher]);
        assert_eq!((attempt.number, attempt.worker.as_str()), (1, "worker"));
        assert!(attempt.ended_at.is_some() && attempt.fault.is_none());
    });
}

#[test]
fn failed_attempts_are_known_with_what_they_failed_of() {
    with_pipeline(settings(), async |world| {
        world.forge.script.fail(1, fault(StageName::Connector, Reason::ForgeFailed));
        world.request(&request("b1")).await;
        world.notified_once().await;
        let ready = in_state(&world, "b1", BuildState::Ready).await;
        let faults: Vec<_> = ready
            .attempts
            .iter()
            .map(|attempt| (attempt.number, attempt.fault.as_ref().map(|fault| fault.reason)))
            .collect();
        assert_eq!(faults, [(1, Some(Reason::ForgeFailed)), (2, None)]);
    });
}

#[test]
fn a_request_that_cannot_be_read_is_known_where_it_has_an_owner() {
    with_pipeline(settings(), async |world| {
        world.request(&request_with("b1", "repo", "no repository")).await;
        world.notified_once().await;
        let failed = in_state(&world, "b1", BuildState::Failed).await;
        assert!(failed.attempts.is_empty() && failed.outcome.is_some());
    });
}

#[test]
fn no_build_waits_for_the_history_and_it_is_written_later() {
    with_pipeline(settings(), async |world| {
        world.builds.set_away(true);
        let (id, _) = world.outcome_of(&request("b1")).await;
        assert_eq!(id, "b1.image.ready");
        assert_eq!(world.builds.build("b1"), None);
        world.builds.set_away(false);
        let ready = in_state(&world, "b1", BuildState::Ready).await;
        assert_eq!(ready.attempts.len(), 1);
    });
}

fn subject(build: &BuildIdentity) -> Subject {
    Subject {
        build_id: build.build_id.clone(),
        user_id: build.user_id.clone(),
        ..Subject::default()
    }
}

#[tokio::test]
async fn lines_that_cannot_be_kept_are_a_gap_and_states_are_never_lost() {
    const LINES: usize = 40_000;
    let store = FakeBuildStore::default();
    let recorder = Recorder::start(Arc::new(store.clone()), "worker");
    let build = BuildIdentity::new(Some("ann"), "b");
    recorder.requested(&subject(&build), b"{}", OffsetDateTime::now_utc());
    let log = recorder.listener(build.clone());
    log.hear(&BuildEvent::Output("before".to_owned()));
    recorder.flush(PATIENCE).await;
    assert_eq!(store.whole_log("b"), "before\n");

    store.set_away(true);
    recorder.stage(&build, 1, StageName::Builder);
    // 16 MB, of which half are kept.
    for number in 0..LINES {
        log.hear(&BuildEvent::Output(format!("{number} {}", "x".repeat(400))));
    }
    recorder.stage(&build, 1, StageName::Pusher);
    log.hear(&BuildEvent::Output("after".to_owned()));
    store.set_away(false);
    recorder.flush(PATIENCE).await;

    let log = store.whole_log("b");
    let mut lines = log.lines();
    assert_eq!(lines.next(), Some("before"));
    let lines: Vec<_> = lines.collect();
    let gaps: Vec<_> = lines.iter().filter(|line| line.starts_with('…')).collect();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    let lost: usize = gaps[0].split(' ').nth(1).expect("a number").parse().expect("a number");
    // What was on its way when the store went is not lost, the marker and the last line are lines as well.
    assert_eq!(lines.len() - 2 + lost, LINES);
    assert!((LINES / 3..LINES * 2 / 3).contains(&lost), "{lost}");
    assert!(log.ends_with("x\nafter\n"));
    let known = store.build("b").expect("known");
    assert_eq!(known.state, BuildState::Pushing);
    assert_eq!(known.attempts[0].stages.len(), 2);
    assert!(log.len() < 9 * 1024 * 1024, "{}", log.len());
}

#[tokio::test]
async fn what_is_told_while_the_store_is_away_for_long_is_bounded() {
    let store = FakeBuildStore::default();
    store.set_away(true);
    let recorder = Recorder::start(Arc::new(store.clone()), "worker");
    let build = BuildIdentity::new(Some("ann"), "b");
    recorder.requested(&subject(&build), b"{}", OffsetDateTime::now_utc());
    for attempt in 1..=5_000 {
        recorder.stage(&build, attempt, StageName::Connector);
        recorder.tell(&build, Change::Waiting);
    }
    recorder.stage(&build, 5_001, StageName::Connector);
    store.set_away(false);
    recorder.flush(PATIENCE).await;
    let known = store.build("b").expect("known");
    assert_eq!(known.state, BuildState::Fetching);
    assert_eq!(known.attempts.last().map(|attempt| attempt.number), Some(5_001));
    assert!(known.attempts.len() <= StoredBuild::MOST_ATTEMPTS);
    assert_eq!(store.look().await, Ok(()));
}

#[tokio::test]
async fn a_store_that_is_away_does_not_hold_up_the_end_for_longer_than_it_may() {
    let store = FakeBuildStore::default();
    store.set_away(true);
    let recorder = Recorder::start(Arc::new(store), "worker");
    let build = BuildIdentity::new(Some("ann"), "b");
    recorder.requested(&subject(&build), b"{}", OffsetDateTime::now_utc());
    let begun = std::time::Instant::now();
    recorder.flush(Duration::from_millis(100)).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn the_end_of_a_build_is_waited_for_but_not_on_a_store_that_is_away() {
    let store = FakeBuildStore::default();
    let recorder = Recorder::start(Arc::new(store.clone()), "worker");
    let build = |number: usize| BuildIdentity::new(Some("ann"), &format!("b{number}"));
    let ended = || Change::Ended { kind: NotificationType::BuildFailed, data: "{}".to_owned() };
    // More than are written at once, and what is waited for comes last.
    for number in 0..2_000 {
        recorder.requested(&subject(&build(number)), b"{}", OffsetDateTime::now_utc());
    }
    recorder.tell_and_wait(&build(1_999), ended()).await;
    assert_eq!(store.build("b1999").map(|build| build.state), Some(BuildState::Failed));

    store.set_away(true);
    recorder.tell_and_wait(&build(0), ended()).await;
    // The first one has waited, to no avail; the others know.
    let begun = std::time::Instant::now();
    for number in 1..100 {
        recorder.tell_and_wait(&build(number), ended()).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    store.set_away(false);
    recorder.flush(PATIENCE).await;
    assert_eq!(store.build("b99").map(|build| build.state), Some(BuildState::Failed));
}
