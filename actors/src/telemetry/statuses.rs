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
    /// Before further tries of one.
    pauses: [Duration; 3],
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
        Self::with_pauses(forges, credentials, link, PAUSES)
    }

    fn with_pauses(
        forges: Arc<dyn CommitStatuses>,
        credentials: Arc<dyn Credentials>,
        link: Link,
        pauses: [Duration; 3],
    ) -> Self {
        let (builds, turns) = (Mutex::default(), Semaphore::new(AT_ONCE));
        Self(Some(Arc::new(Shared { forges, credentials, link, builds, turns, pauses })))
    }

    /// A build stands so. It is shown on the commit that is known, or that the request names in full.
    pub fn tell(
        &self,
        request: &BuildRequest,
        commit: Option<&str>,
        state: StatusState,
        description: &str,
    ) {
        // Without a credential no forge lets anybody show anything.
        let wanted =
            request.commit_status && (request.token.is_some() || request.token_ref.is_some());
        let Some(shared) = self.0.as_ref().filter(|_| wanted) else { return };
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
            description: cut(line, CommitStatus::LONGEST_DESCRIPTION - " […]".len()),
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
            let mut pauses = self.pauses.iter();
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
        let request = source::request(&repo, Target::DefaultBranch, Some("t0ken"));
        BuildRequest { commit_status: true, ..request }
    }

    fn reporter() -> (StatusReporter, FakeCommitStatuses) {
        let forges = FakeCommitStatuses::default();
        let link: Link = Arc::new(|build| Some(format!("https://b.example/{}", build.build_id)));
        let credentials = Arc::new(FakeCredentials::default());
        let pauses = [Duration::from_millis(1); 3];
        let at = Arc::new(forges.clone());
        (StatusReporter::with_pauses(at, credentials, link, pauses), forges)
    }

    fn refused(passes: bool) -> StatusError {
        StatusError { message: "not now".to_owned(), passes, retry_after: None }
    }

    fn states(statuses: &[CommitStatus]) -> Vec<StatusState> {
        statuses.iter().map(|status| status.state).collect()
    }

    #[tokio::test]
    async fn a_status_that_is_late_never_takes_the_place_of_a_later_one() {
        let (reporter, forges) = reporter();
        let gate = forges.script.wait_and_fail(refused(true));
        let request = request();
        reporter.tell(&request, Some(COMMIT), StatusState::Building, "Building.");
        gate.reached().await;
        reporter.tell(&request, Some(COMMIT), StatusState::Building, "Building again.");
        reporter.tell(&request, Some(COMMIT), StatusState::Success, "It\n is ready.");
        gate.open();
        let shown = forges.taken.wait_for(1).await;
        assert_eq!(states(&shown), [StatusState::Success]);
        let status = &shown[0];
        assert_eq!(status.name, format!("image-builder/{}", request.application_id));
        assert_eq!((&*status.description, &*status.commit), ("It is ready.", COMMIT));
        assert_eq!(status.link, Some(format!("https://b.example/{}", request.build_id)));
    }

    #[tokio::test]
    async fn what_is_refused_for_good_is_left_alone_and_what_may_pass_is_tried_again() {
        let (reporter, forges) = reporter();
        let gate = forges.script.wait_and_fail(refused(false));
        forges.script.fail(PAUSES.len(), refused(true));
        reporter.tell(&request(), Some(COMMIT), StatusState::Building, "");
        gate.reached().await;
        reporter.tell(&request(), Some(COMMIT), StatusState::Success, "");
        gate.open();
        forges.taken.wait_for(1).await;
        let (first, others) = (StatusState::Building, [StatusState::Success; 4]);
        assert_eq!(states(&forges.calls.all()), [&[first], &others[..]].concat());
    }

    #[tokio::test]
    async fn nothing_is_shown_that_nobody_asked_for_or_on_no_commit() {
        let (reporter, forges) = reporter();
        let request = request();
        let unasked = BuildRequest { commit_status: false, ..request.clone() };
        reporter.tell(&unasked, Some(COMMIT), StatusState::Success, "");
        let anonymous = BuildRequest { token: None, ..request.clone() };
        reporter.tell(&anonymous, Some(COMMIT), StatusState::Success, "");
        reporter.tell(&request, None, StatusState::Building, "");
        StatusReporter::default().tell(&request, Some(COMMIT), StatusState::Success, "");
        let target = Target::Commit { id: COMMIT.to_owned(), branch: None };
        let pinned = BuildRequest { target, ..request };
        reporter.tell(&pinned, None, StatusState::Queued, &"x".repeat(1000));
        let shown = forges.taken.wait_for(1).await;
        assert_eq!(states(&shown), [StatusState::Queued]);
        assert!(shown[0].description.len() <= CommitStatus::LONGEST_DESCRIPTION);
    }
}
