//! Has forges show on commits how their builds stand, for requests that ask for it. No build waits for it, and none
//! fails of it: what a forge does not take is tried a few times, and then left alone.
//!
//! Each build has one task, which shows one status after the other, so that none that is late takes the place of a
//! later one. What was not shown yet when the next comes is left out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::model::build_log::cut;
use crate::model::fault::Kind;
use crate::model::identity::BuildIdentity;
use crate::model::request::{BuildRequest, PlanRequest, Target};
use crate::model::secret::Secret;
use crate::ports::{CommitStatus, CommitStatuses, Credentials, StatusError, StatusState};

/// Builds whose statuses are to be shown; of further ones nothing is.
const MOST_BUILDS: usize = 2000;
/// Statuses that are shown at once.
const AT_ONCE: usize = 8;
/// Longest that a forge may take for one.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Pauses before further tries of one.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(15), Duration::from_secs(60)];
/// A forge that asks for more patience than this gets none of it: the status is left out.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Where a build is shown to people.
pub type Link = Arc<dyn Fn(&BuildIdentity) -> Option<String> + Send + Sync>;

/// Told of how builds stand. Clones are the same; the default one shows nothing.
#[derive(Clone, Default)]
pub struct StatusReporter(Option<Arc<Shared>>);

struct Shared {
    forges: Arc<dyn CommitStatuses>,
    credentials: Arc<dyn Credentials>,
    link: Link,
    /// The builds that have a task, with what it is to show next.
    builds: Mutex<HashMap<BuildIdentity, Option<Order>>>,
    turns: Semaphore,
}

/// A status that is to be shown.
struct Order {
    status: CommitStatus,
    /// What it takes to get a credential.
    request: BuildRequest,
}

impl fmt::Debug for StatusReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatusReporter").field(&self.0.is_some()).finish()
    }
}

impl StatusReporter {
    pub fn new(
        forges: Arc<dyn CommitStatuses>,
        credentials: Arc<dyn Credentials>,
        link: Link,
    ) -> Self {
        let (builds, turns) = (Mutex::default(), Semaphore::new(AT_ONCE));
        Self(Some(Arc::new(Shared { forges, credentials, link, builds, turns })))
    }

    /// A build stands so. It is shown on the commit that is known, or that the request names in full.
    pub fn tell(
        &self,
        request: &BuildRequest,
        commit: Option<&str>,
        state: StatusState,
        description: &str,
    ) {
        let Some(shared) = self.0.as_ref().filter(|_| request.commit_status) else { return };
        let named = match &request.target {
            Target::Commit { id, .. } if id.len() == 40 => Some(&**id),
            _ => None,
        };
        let Some(commit) = commit.or(named) else { return };
        let build = request.identity();
        let line = description.split_whitespace().collect::<Vec<_>>().join(" ");
        let status = CommitStatus {
            forge: request.forge,
            repo: request.repo.clone(),
            commit: commit.to_owned(),
            name: format!("image-builder/{}", request.application_id),
            state,
            description: cut(line, CommitStatus::LONGEST_DESCRIPTION - '…'.len_utf8()),
            link: (shared.link)(&build),
        };
        let request = BuildRequest { plan: PlanRequest::default(), ..request.clone() };
        let order = Order { status, request };
        let mut builds = shared.builds();
        let room = builds.len() < MOST_BUILDS;
        match builds.entry(build.clone()) {
            Entry::Occupied(mut waiting) => drop(waiting.insert(Some(order))),
            Entry::Vacant(place) if room => {
                place.insert(Some(order));
                tokio::spawn(shared.clone().work(build));
            }
            Entry::Vacant(_) => tracing::debug!("too many commit statuses wait: one is left out"),
        }
    }
}

impl Shared {
    /// Shows what there is to show of a build, until there is nothing more.
    async fn work(self: Arc<Self>, build: BuildIdentity) {
        while let Some(order) = self.take(&build) {
            let mut pauses = PAUSES.iter();
            loop {
                let Err(error) = self.show(&order).await else { break };
                let pause = pauses.next().filter(|_| error.passes);
                let pause = pause.map(|pause| error.retry_after.unwrap_or_default().max(*pause));
                let Some(pause) = pause.filter(|pause| *pause <= LONGEST_PATIENCE) else {
                    let (build_id, state) = (&build.build_id, order.status.state);
                    tracing::warn!(build_id, ?state, %error, "a commit status cannot be shown");
                    break;
                };
                tokio::time::sleep(pause).await;
                if self.is_outdated(&build) {
                    break;
                }
            }
        }
    }

    /// What is to be shown next; where there is nothing, the build has no task any more.
    fn take(&self, build: &BuildIdentity) -> Option<Order> {
        let mut builds = self.builds();
        let next = builds.get_mut(build)?.take();
        if next.is_none() {
            builds.remove(build);
        }
        next
    }

    fn is_outdated(&self, build: &BuildIdentity) -> bool {
        self.builds().get(build).is_some_and(Option::is_some)
    }

    async fn show(&self, order: &Order) -> Result<(), StatusError> {
        let _turn = self.turns.acquire().await;
        let shown = async {
            let token = self.token(&order.request).await?;
            self.forges.show(&order.status, &token).await
        };
        tokio::time::timeout(TIMEOUT, shown).await.unwrap_or_else(|_| {
            let message = format!("the forge gave no answer within {} s", TIMEOUT.as_secs());
            Err(StatusError { message, passes: true, retry_after: None })
        })
    }

    async fn token(&self, request: &BuildRequest) -> Result<Secret, StatusError> {
        let Some(reference) = &request.token_ref else {
            return request.token.clone().ok_or_else(|| StatusError {
                message: "the request has no credential".to_owned(),
                passes: false,
                retry_after: None,
            });
        };
        self.credentials.status_token(request, reference).await.map_err(|fault| StatusError {
            message: fault.message,
            passes: fault.reason.kind() != Kind::User,
            retry_after: fault.retry_after,
        })
    }

    fn builds(&self) -> MutexGuard<'_, HashMap<BuildIdentity, Option<Order>>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::request::RepoName;
    use crate::testing::commit_statuses::FakeCommitStatuses;
    use crate::testing::conformance::source;
    use crate::testing::credentials::FakeCredentials;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn request() -> BuildRequest {
        let repo = RepoName { owner: "o".to_owned(), name: "n".to_owned() };
        let request = source::request(&repo, Target::DefaultBranch, Some(Secret::new("t0ken")));
        BuildRequest { commit_status: true, ..request }
    }

    fn reporter() -> (StatusReporter, FakeCommitStatuses) {
        let forges = FakeCommitStatuses::default();
        let link: Link = Arc::new(|build| Some(format!("https://b.example/{}", build.build_id)));
        let credentials = Arc::new(FakeCredentials::default());
        (StatusReporter::new(Arc::new(forges.clone()), credentials, link), forges)
    }

    fn refused(passes: bool) -> StatusError {
        StatusError { message: "not now".to_owned(), passes, retry_after: None }
    }

    async fn states(forges: &FakeCommitStatuses, most: usize) -> Vec<StatusState> {
        // Under a clock that stands still but when everybody waits.
        tokio::time::sleep(Duration::from_secs(600)).await;
        let shown = forges.shown();
        assert!(shown.len() <= most, "{shown:?}");
        shown.into_iter().map(|status| status.state).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_is_late_never_takes_the_place_of_a_later_one() {
        let (reporter, forges) = reporter();
        forges.script.fail(1, refused(true));
        let request = request();
        reporter.tell(&request, Some(COMMIT), StatusState::Building, "Building.");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(forges.shown(), [], "it is refused once");
        reporter.tell(&request, Some(COMMIT), StatusState::Success, "It\n is ready.");
        assert_eq!(states(&forges, 1).await, [StatusState::Success]);
        let [status] = &forges.shown()[..] else { panic!("one status") };
        assert_eq!((&*status.name, &*status.description), ("image-builder/n", "It is ready."));
        assert_eq!(status.link, Some(format!("https://b.example/{}", request.build_id)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_for_good_is_left_alone_and_what_may_pass_is_tried_again() {
        let (reporter, forges) = reporter();
        forges.script.fail(1, refused(false));
        reporter.tell(&request(), Some(COMMIT), StatusState::Building, "");
        assert_eq!(states(&forges, 0).await, []);
        forges.script.fail(PAUSES.len(), refused(true));
        reporter.tell(&request(), Some(COMMIT), StatusState::Success, "");
        assert_eq!(states(&forges, 1).await, [StatusState::Success]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_shown_that_nobody_asked_for_or_on_no_commit() {
        let (reporter, forges) = reporter();
        let request = request();
        let unasked = BuildRequest { commit_status: false, ..request.clone() };
        reporter.tell(&unasked, Some(COMMIT), StatusState::Success, "");
        reporter.tell(&request, None, StatusState::Queued, "");
        StatusReporter::default().tell(&request, Some(COMMIT), StatusState::Success, "");
        assert_eq!(states(&forges, 0).await, []);
        let target = Target::Commit { id: COMMIT.to_owned(), branch: None };
        let pinned = BuildRequest { target, ..request };
        reporter.tell(&pinned, None, StatusState::Queued, "");
        assert_eq!(states(&forges, 1).await, [StatusState::Queued]);
    }
}
