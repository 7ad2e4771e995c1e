//! The HTTP API of builds, `/v1`: what `docs/api.md` tells its clients.
//!
//! | file | what it does |
//! |---|---|
//! | `guard.rs` | who is served, and how often |
//! | `problem.rs` | errors |
//! | `body.rs` | bodies of requests, bounded |
//! | `builds.rs` | requests, what is known of builds, cancelling |
//! | `plan.rs` | what would be built |
//! | `log.rs` | a build's log, as a whole or in parts |
//! | `events.rs` | a build's log, live |
//! | `summary.rs` | how many builds there are |
//! | `dead.rs` | dead letters |
//! | `letters.rs` | what is done with them, for the page as well |
//! | `hooks.rs` | what forges send after a push |
//! | `workers.rs` | what the worker's actors do |
//! | `openapi.rs` | the description for machines, made from the code |
//! | `schema.rs` | what a build request is, for that description |

pub(super) mod body;
#[allow(unused_qualifications, reason = "what utoipa makes of `params` has some")]
pub(super) mod builds;
#[allow(unused_qualifications, reason = "what utoipa makes of `params` has some")]
pub(super) mod dead;
mod events;
pub(super) mod guard;
mod hooks;
pub(super) mod letters;
#[allow(unused_qualifications, reason = "what utoipa makes of `params` has some")]
mod log;
mod openapi;
mod plan;
pub(super) mod problem;
mod schema;
mod summary;
#[cfg(test)]
pub(crate) mod tests;
mod workers;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::parse::Rules;
use image_builder_actors::ports::build_store::BuildStore;
use image_builder_actors::ports::{Broker, DeadLetterStore};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::problem::Problem;
use super::Observed;
use super::plans::{Planning, Plans};
use super::rate::{Guesses, Rate};
use super::server::{Connection, Hold};
use super::session::{Session, Sessions};
use crate::hooks::Applications;

/// Where the API is served.
pub const PREFIX: &str = "/v1";

/// How much of a log is read from the store at once, in bytes.
const PART: usize = 64 * 1024;
/// Logs that are read at once: fewer than there may be connections, so that some are left for all else.
const MOST_READERS: usize = 256;
/// Changes that are asked for: so many a second, and so many at once.
const WRITES: (u32, u32) = (1000, 2000);

/// What the API works with.
#[derive(Clone)]
pub struct Backend {
    pub store: Arc<dyn BuildStore>,
    /// The queues, once they are reached.
    pub queues: Arc<OnceLock<Queues>>,
    /// What a request is checked against: the listener's own rules.
    pub rules: Arc<Rules>,
    /// `None` = only this machine is served.
    pub token: Option<Secret>,
    /// What the build store calls this worker.
    pub worker: String,
    /// Says what would be built.
    pub planning: Arc<dyn Planning>,
    /// What is built after a push.
    pub applications: Arc<Applications>,
}

/// Where requests, cancellations and dead letters are.
#[derive(Clone)]
pub struct Queues {
    pub broker: Arc<dyn Broker>,
    pub dead_letters: Arc<dyn DeadLetterStore>,
}

/// The API, as its routes and the page share it.
pub(super) struct Api {
    pub(super) backend: Backend,
    pub(super) observed: Observed,
    /// Those who showed the token at the page; `None` = only this machine is served.
    pub(super) sessions: Option<Sessions>,
    pub(super) plans: Plans,
    pub(super) guesses: Guesses,
    writes: Rate,
    /// Bytes of hooks' bodies that are in memory.
    hooks: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    /// Longest silence of a log that is followed.
    keep_alive: Duration,
}

impl Api {
    pub(super) fn new(backend: Backend, observed: Observed) -> Self {
        let (a_second, at_once) = WRITES;
        let readers = Arc::new(Semaphore::new(MOST_READERS));
        let writes = Rate::new(a_second, at_once);
        let hooks = Arc::new(Semaphore::new(hooks::MOST_BYTES));
        let sessions = backend.token.as_ref().map(Sessions::of);
        let plans = Plans::new(backend.planning.clone());
        let keep_alive = events::KEEP_ALIVE;
        let guesses = Guesses::default();
        Self { backend, observed, sessions, plans, guesses, writes, hooks, readers, keep_alive }
    }

    /// Counts a change that is asked for.
    ///
    /// # Errors
    ///
    /// Too many are.
    pub(super) fn count_write(&self) -> Result<(), Problem> {
        let (a_second, _) = WRITES;
        let too_many =
            || Problem::too_many(format!("At most {a_second} changes a second are taken."));
        self.writes.admits().then_some(()).ok_or_else(too_many)
    }

    /// The session of the page that a request belongs to.
    pub(super) fn session(&self, headers: &HeaderMap) -> Option<Session> {
        self.sessions.as_ref()?.of_request(headers)
    }

    /// The queues.
    ///
    /// # Errors
    ///
    /// They were not reached yet.
    pub(super) fn queues(&self) -> Result<&Queues, Problem> {
        let queues = self.backend.queues.get();
        queues.ok_or_else(|| Problem::unavailable("The queue is not connected yet.", 2))
    }

    /// Room for one who reads for long.
    ///
    /// # Errors
    ///
    /// Too many do.
    pub(super) fn reader(&self, connection: &Connection) -> Result<Reader, Problem> {
        let turn = self.readers.clone().try_acquire_owned().map_err(|_| {
            Problem::unavailable("Too many logs are read at the moment: try again later.", 5)
        })?;
        Ok(Reader { _turn: turn, _hold: connection.hold() })
    }
}

/// One who reads for long: its connection stands meanwhile.
#[derive(Debug)]
pub(super) struct Reader {
    _turn: OwnedSemaphorePermit,
    _hold: Hold,
}

/// The routes.
pub(super) fn router(api: Arc<Api>) -> Router {
    let routes = Router::new()
        .route("/builds", get(builds::list).post(builds::submit).fallback(get_or_post))
        .route("/plan", post(plan::plan).fallback(only_post))
        .route("/builds/{id}", get(builds::show).delete(builds::cancel).fallback(get_or_delete))
        .route("/builds/{id}/log", get(log::log).fallback(only_get))
        .route("/summary", get(summary::summary).fallback(only_get))
        .route("/dead", get(dead::list).fallback(only_get))
        .route("/dead/{id}", get(dead::show).delete(dead::drop).fallback(get_or_delete))
        .route("/dead/{id}/redrive", post(dead::redrive).fallback(only_post))
        .route("/workers", get(workers::list).fallback(only_get))
        .route("/openapi.json", get(openapi::document).fallback(only_get))
        .fallback(nothing_here)
        .layer(from_fn_with_state(api.clone(), admit))
        .merge(hooks())
        .layer(middleware::map_response(harmless))
        .with_state(api);
    Router::new().nest(PREFIX, routes)
}

/// The routes of a listener that has hooks alone.
pub(super) fn router_of_hooks(backend: Backend, observed: Observed) -> Router {
    let api = Arc::new(Api::new(backend, observed));
    let routes = hooks().layer(middleware::map_response(harmless)).with_state(api);
    Router::new().nest(PREFIX, routes).fallback(nothing_here)
}

/// Hooks: the forges' signatures are all that admits them.
fn hooks() -> Router<Arc<Api>> {
    Router::new()
        .route("/hooks/github", post(hooks::github).fallback(only_post))
        .route("/hooks/gitlab", post(hooks::gitlab).fallback(only_post))
        .route("/hooks/gitea", post(hooks::gitea).fallback(only_post))
}

async fn admit(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let connection = request.extensions().get::<Connection>();
    let peer = connection.expect("the server says who asks").peer.ip();
    let writes = guard::writes(request.method());
    // Who is logged in at the page reads what its script shows. A cookie comes along with whatever a browser
    // is made to send, so it changes nothing here: forms of the page do that.
    let is_page = !writes && api.session(request.headers()).is_some();
    if !is_page {
        match &api.backend.token {
            Some(token) => guard::bears(token, peer, request.headers(), &api.guesses)?,
            None => guard::is_own(peer, &request)?,
        }
    }
    if writes {
        api.count_write()?;
    }
    Ok(next.run(request).await)
}

/// What is answered is partly strangers' text: no browser takes it for a page, and nobody keeps it.
async fn harmless(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn nothing_here() -> Problem {
    Problem::not_found(format!("There is no such route; {PREFIX}/openapi.json has all."))
}

async fn only_get() -> Problem {
    Problem::method_not_allowed("GET, HEAD")
}

async fn only_post() -> Problem {
    Problem::method_not_allowed("POST")
}

async fn get_or_post() -> Problem {
    Problem::method_not_allowed("GET, HEAD, POST")
}

async fn get_or_delete() -> Problem {
    Problem::method_not_allowed("GET, HEAD, DELETE")
}

/// JSON with a status, and a line end for whoever reads it at a terminal.
fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    let text = serde_json::to_string(value).expect("what is answered has only string keys");
    let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
    (status, json, text + "\n").into_response()
}
