//! What every forge promises that shows commit statuses.

use std::time::Duration;

use crate::model::request::{ForgeName, RepoName};
use crate::model::secret::Secret;
use crate::ports::{CommitStatus, CommitStatuses, StatusState};

/// A status as the forge shows it: name, whether it is good (`None` = nobody knows yet), sentence, and link.
pub type Shown = (String, Option<bool>, String, String);

/// The credential that this world's forge takes.
pub const TOKEN: &str = "a-token-that-may-show-statuses";

/// A forge, and what it shows.
pub trait World {
    fn statuses(&self) -> &dyn CommitStatuses;
    fn forge(&self) -> ForgeName;
    /// The forge refuses the next one: for good, or for so long.
    fn refuse_next(&self, patience: Option<Duration>);
    /// What it was told for a commit of a repository, in order.
    fn shown(&self, repo: &RepoName, commit: &str) -> Vec<Shown>;
}

/// Makes a test of each promise, each in a world of its own.
#[macro_export]
macro_rules! commit_statuses_conformance {
    ($world:expr) => {
        $crate::conformance! {
            commit_statuses, $world,
            a_status_is_shown_on_its_commit,
            a_later_one_takes_the_place_of_the_one_before,
            a_refusal_says_whether_it_passes,
        }
    };
}

/// A status of a commit that nobody else has.
pub fn status(forge: ForgeName, state: StatusState) -> CommitStatus {
    CommitStatus {
        forge,
        repo: RepoName { owner: "owner".to_owned(), name: "a.name".to_owned() },
        commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
        name: "image-builder/shop".to_owned(),
        state,
        description: "A sentence with ünusual marks: \"&?=\".".to_owned(),
        link: Some("https://builds.example.com/builds/b-1?user=u".to_owned()),
    }
}

fn expected(status: &CommitStatus) -> Shown {
    let good = match status.state {
        StatusState::Queued | StatusState::Building => None,
        StatusState::Success => Some(true),
        StatusState::Failure | StatusState::Error | StatusState::Cancelled => Some(false),
    };
    let link = status.link.clone().expect("it has one");
    (status.name.clone(), good, status.description.clone(), link)
}

async fn show(world: &impl World, status: &CommitStatus) {
    world.statuses().show(status, &Secret::new(TOKEN)).await.expect("it is taken");
}

pub async fn a_status_is_shown_on_its_commit(world: &impl World) {
    let status = status(world.forge(), StatusState::Queued);
    show(world, &status).await;
    assert_eq!(world.shown(&status.repo, &status.commit), [expected(&status)]);
}

pub async fn a_later_one_takes_the_place_of_the_one_before(world: &impl World) {
    let states = [
        StatusState::Queued,
        StatusState::Building,
        StatusState::Failure,
        StatusState::Error,
        StatusState::Cancelled,
        StatusState::Success,
    ];
    let all = states.map(|state| status(world.forge(), state));
    for status in &all {
        show(world, status).await;
    }
    let [first, ..] = &all;
    let shown = world.shown(&first.repo, &first.commit);
    assert_eq!(shown, all.iter().map(expected).collect::<Vec<_>>());
    assert!(shown.iter().all(|(name, ..)| *name == first.name), "one name: {shown:?}");
}

pub async fn a_refusal_says_whether_it_passes(world: &impl World) {
    let status = status(world.forge(), StatusState::Success);
    let refused = async || {
        let shown = world.statuses().show(&status, &Secret::new(TOKEN)).await;
        let error = shown.expect_err("it is refused");
        assert!(!error.message.contains(TOKEN), "{error}");
        error
    };
    world.refuse_next(None);
    assert!(!refused().await.passes);
    world.refuse_next(Some(Duration::from_secs(7)));
    let error = refused().await;
    assert!(error.passes && error.retry_after == Some(Duration::from_secs(7)), "{error:?}");
    show(world, &status).await;
    assert_eq!(world.shown(&status.repo, &status.commit), [expected(&status)]);
}
