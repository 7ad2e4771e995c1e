//! What forges show on commits of how their builds stand.

use image_builder_actors::model::fault::{Reason, StageName};
use image_builder_actors::ports::{CommitStatus, StatusState};
use image_builder_actors::scheduling::admission::Cancellation;
use image_builder_actors::testing::world::{
    PATIENCE, World, fault, request_with, settings, with_pipeline,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Waits until a commit is said to be so, and returns all that was said of it.
async fn until(world: &World, state: StatusState) -> Vec<CommitStatus> {
    let said = async {
        let mut all = world.statuses.taken.wait_for(1).await;
        while all.last().is_none_or(|last| last.state != state) {
            all = world.statuses.taken.wait_for(all.len() + 1).await;
        }
        all
    };
    tokio::time::timeout(PATIENCE, said).await.expect("the commit says so in time")
}

fn asking(id: &str) -> Value {
    request_with(id, "commitStatus", true)
}

/// A request of a commit that no fetch has to find.
fn pinned(id: &str) -> Value {
    let mut request = asking(id);
    request["type"] = json!("commit");
    request["commit"] = json!(COMMIT);
    request
}

#[test]
fn a_commit_says_that_it_is_built_and_then_that_its_image_is_ready() {
    with_pipeline(settings(), async |world| {
        world.hold_build(&asking("b1")).await;
        let building = until(&world, StatusState::Building).await;
        let commit = building[0].commit.clone();
        world.engine.release();
        let all = until(&world, StatusState::Success).await;
        let (_, told) = world.notified_once().await;
        assert_eq!(told["data"]["commit"], commit);
        let last = all.last().expect("there is one");
        assert_eq!((&last.commit, &*last.name), (&commit, "image-builder/name"));
        assert!(last.description.starts_with("The image is ready after"), "{last:?}");
        assert_eq!(last.link.as_deref(), Some("https://builds.test/b1"));
    });
}

#[test]
fn a_commit_says_whose_affair_a_failure_is() {
    for (reason, state) in [
        (Reason::RepositoryNotFound, StatusState::Failure),
        (Reason::ForgeFailed, StatusState::Error),
    ] {
        with_pipeline(settings(), async |world| {
            world.forge.script.fail(3, fault(StageName::Connector, reason));
            world.outcome_of(&pinned("b1")).await;
            let all = until(&world, state).await;
            let last = all.last().expect("there is one");
            assert_eq!((&*last.commit, &*last.description), (COMMIT, "the test wants it so"));
            let before = all.iter().rev().skip(1).map(|status| status.state);
            assert!(before.into_iter().all(|state| state == StatusState::Queued), "{all:?}");
        });
    }
}

#[test]
fn a_commit_says_that_its_build_was_cancelled() {
    with_pipeline(settings(), async |world| {
        world.hold_build(&asking("b1")).await;
        let (build_id, user_id) = ("b1".to_owned(), Some("alice".to_owned()));
        let at = OffsetDateTime::now_utc();
        world.pipeline.admission.cancel(Cancellation { build_id, user_id, at });
        until(&world, StatusState::Cancelled).await;
    });
}

#[test]
fn a_forge_that_takes_no_status_holds_no_build_up() {
    with_pipeline(settings(), async |world| {
        // Nobody ever opens it.
        let _gate = world.statuses.script.wait();
        let (id, _) = world.outcome_of(&pinned("b1")).await;
        assert_eq!(id, "b1.image.ready");
        assert!(world.statuses.taken.all().is_empty());
    });
}
