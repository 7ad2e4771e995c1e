//! What would be built of a request, without building it: for the API and the page.
//!
//! Whoever asks makes the worker fetch and plan, so that is bounded: in time, in how many are made at once, and how
//! many of these one login has. What reads a stranger's files has its own bounds, as in a build.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use image_builder_actors::model::fault::{Fault, Kind, Reason, StageName};
use image_builder_actors::model::request::{BuildRequest, BuilderKind};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::session::Session;
use super::v1::problem::Problem;

/// How long one may take: shorter than a connection lasts, and than most proxies wait.
const LONGEST: Duration = Duration::from_secs(45);
/// Plans that are made at once, and how many of them for one login.
const MOST: usize = 4;
const MOST_OF_ONE: usize = 2;
/// After so many seconds there may be room.
const PATIENCE: u16 = 5;

/// What would be built of a request, and why so.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShownPlan {
    /// What the ref comes to now; absent of a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    #[schema(value_type = String)]
    pub builder: BuilderKind,
    /// Why this builder, as the end of a sentence.
    pub because: String,
    /// What nixpacks found, such as `node`; absent where a Dockerfile is the plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The source's own, or what nixpacks makes of it.
    pub dockerfile: ShownDockerfile,
    /// The images that it is built from, as it names them.
    pub base_images: Vec<String>,
    /// The stage that is built; absent = the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Relative to the repository's root; empty = the root itself.
    pub root_directory: String,
    /// What the image is for; empty = the engine's own platform.
    pub platforms: Vec<&'static str>,
    /// What the engine would be sent.
    pub context: ShownContext,
    /// Their names.
    pub build_args: Vec<String>,
    /// Their ids.
    pub secrets: Vec<String>,
    /// What the request gives and the build leaves out, a sentence each.
    pub warnings: Vec<String>,
    /// What `nixpacks plan` prints, without the values of variables.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub nixpacks: Option<Value>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ShownDockerfile {
    /// Relative to the root directory.
    pub path: String,
    pub text: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ShownContext {
    /// Files and links.
    pub files: u64,
    /// What the files hold.
    pub bytes: u64,
}

/// Fetches and plans as a build does, and builds nothing. Dropping the future ends it.
pub trait Planning: Send + Sync + 'static {
    /// # Errors
    /// What the build would fail of by then, with the same sentence.
    fn plan(&self, request: BuildRequest) -> BoxFuture<'_, Result<ShownPlan, Fault>>;
}

/// Makes plans for whoever asks, within bounds.
pub(super) struct Plans {
    planning: Arc<dyn Planning>,
    /// How long one may take.
    longest: Duration,
    /// For whom plans are being made; `None` = whoever asks without a login.
    running: Mutex<Vec<Option<Session>>>,
}

impl Plans {
    pub(super) fn new(planning: Arc<dyn Planning>) -> Self {
        Self { planning, longest: LONGEST, running: Mutex::default() }
    }

    /// What would be built of a request.
    ///
    /// # Errors
    /// There is no room, it takes too long, or there is no plan.
    pub(super) async fn plan(
        &self,
        login: Option<Session>,
        request: BuildRequest,
    ) -> Result<ShownPlan, Problem> {
        let _turn = self.begin(login)?;
        let planned = tokio::time::timeout(self.longest, self.planning.plan(request)).await;
        planned.unwrap_or_else(|_| Err(too_long(self.longest))).map_err(|fault| problem(&fault))
    }

    fn begin(&self, login: Option<Session>) -> Result<Turn<'_>, Problem> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let own = running.iter().filter(|other| **other == login).count();
        if running.len() >= MOST || own >= MOST_OF_ONE {
            let detail = "Too many plans are being made at the moment: try again in a few seconds.";
            return Err(Problem::unavailable(detail, PATIENCE));
        }
        running.push(login);
        Ok(Turn { plans: self, login })
    }
}

/// One who makes a plan.
struct Turn<'a> {
    plans: &'a Plans,
    login: Option<Session>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut running = self.plans.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = running.iter().position(|other| *other == self.login) {
            running.swap_remove(at);
        }
    }
}

fn too_long(longest: Duration) -> Fault {
    let seconds = longest.as_secs();
    let message = format!(
        "The repository could not be fetched and planned within {seconds} s. A build has more time: ask for it \
         without the plan."
    );
    Fault::new(StageName::Connector, Reason::Timeout, message)
}

fn problem(fault: &Fault) -> Problem {
    match fault.kind() {
        Kind::User | Kind::Build | Kind::Refused | Kind::Withdrawn => Problem::unplannable(fault),
        Kind::Service | Kind::Capacity | Kind::Crash => {
            Problem::unavailable(fault.message.clone(), PATIENCE).because_of(fault.reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use image_builder_actors::model::limits::Limits;
    use image_builder_actors::model::secret::Secret;
    use image_builder_actors::parse::{self, Rules};

    use super::super::session::Sessions;
    use super::*;

    /// Never done.
    struct Endless;

    impl Planning for Endless {
        fn plan(&self, _: BuildRequest) -> BoxFuture<'_, Result<ShownPlan, Fault>> {
            Box::pin(std::future::pending())
        }
    }

    fn request() -> BuildRequest {
        let rules = Rules::new("https://github.com", Limits::default());
        parse::parse(br#"{"userID": "u", "repo": "o/n"}"#, "a", &rules).expect("a request")
    }

    #[tokio::test]
    async fn no_login_takes_all_the_room_and_what_is_given_up_makes_room() {
        let longest = Duration::from_millis(500);
        let plans = Arc::new(Plans { longest, ..Plans::new(Arc::new(Endless)) });
        let sessions = Sessions::of(&Secret::new("t"));
        let logins = [None, Some(sessions.begin()), Some(sessions.begin())];
        let asked = |login| {
            let plans = plans.clone();
            tokio::spawn(
                async move { plans.plan(login, request()).await.map_err(|it| it.status()) },
            )
        };
        let (one, other) = (asked(logins[0]), asked(logins[0]));
        tokio::task::yield_now().await;
        assert_eq!(asked(logins[0]).await.expect("joined").unwrap_err(), 503, "it has two");
        let (third, _fourth) = (asked(logins[1]), asked(logins[2]));
        tokio::task::yield_now().await;
        assert_eq!(asked(logins[1]).await.expect("joined").unwrap_err(), 503, "there are four");
        third.abort();
        assert!(third.await.is_err_and(|error| error.is_cancelled()));
        let fifth = asked(logins[1]);
        for late in [one, other, fifth] {
            assert_eq!(late.await.expect("joined").unwrap_err(), 503, "it took too long");
        }
        tokio::task::yield_now().await;
        assert_eq!(plans.running.lock().expect("nobody panics with it").len(), 0);
    }
}
