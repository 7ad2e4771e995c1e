//! Hooks of forges: a push that builds. Whoever sends one needs no token of this service: that it is signed with
//! the secret of the hook is what admits it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use image_builder_actors::model::request::ForgeName;
use image_builder_actors::parse;
use image_builder_actors::ports::build_store::{Acceptance, BuildState, PUBLISHED_WITHIN};
use image_builder_actors::telemetry::metrics::HookOutcome;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::{IntoResponses, ToSchema};

use super::problem::{self, Problem};
use super::{Api, body, builds, json};
use crate::blocking::blocking;
use crate::hooks::{
    self, Application, Delivery, Event, Happened, LONGEST_BODY, Refusal, Unread, Wanted,
};

/// What bodies of hooks may hold of memory before it is known who sent them, in bytes.
pub(super) const MOST_BYTES: usize = 8 * LONGEST_BODY;

/// When a forge may send a delivery again of which another request could not be published, in seconds.
const SENT_AGAIN: u16 = PUBLISHED_WITHIN.as_secs() as u16;

/// What came of a hook.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Heard {
    /// The builds that it asks for, in the order of the applications file.
    builds: Vec<Asked>,
    /// The applications of this repository that it builds nothing of.
    skipped: Vec<Skipped>,
    /// Where there is no build: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// A build that a hook asks for.
#[derive(Debug, Serialize, ToSchema)]
struct Asked {
    #[serde(rename = "buildID")]
    build_id: String,
    #[serde(rename = "userID")]
    user_id: String,
    #[serde(rename = "applicationID")]
    application_id: String,
    /// How far it is: `queued`, unless this delivery came before.
    #[schema(value_type = builds::Progress)]
    status: &'static str,
    /// Where it is shown.
    url: String,
}

/// An application that nothing is built of.
#[derive(Debug, Serialize, ToSchema)]
struct Skipped {
    #[serde(rename = "userID")]
    user_id: String,
    #[serde(rename = "applicationID")]
    application_id: String,
    reason: String,
}

/// What is answered to a hook.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes what `hear` answers")]
enum Answers {
    #[response(status = 202, description = "These builds are in the queue.")]
    Queued(Heard),
    #[response(status = 200, description = "Nothing is built, or all of it was taken before.")]
    Nothing(Heard),
    #[response(
        status = 401,
        description = "It is not signed with the secret.",
        content_type = "application/problem+json"
    )]
    Unsigned(problem::Body<'static>),
}

/// Take a hook of GitHub
///
/// Signed by `X-Hub-Signature-256`. `docs/hooks.md` tells how to set one up.
#[utoipa::path(
    post, path = "/v1/hooks/github", tag = "hooks", operation_id = "hearGithub", security(()),
    request_body(content = Object, content_type = "application/json"), responses(Answers),
)]
pub(super) async fn github(api: State<Arc<Api>>, headers: HeaderMap, body: Body) -> Response {
    answer(&api, ForgeName::Github, &headers, body).await
}

/// Take a hook of GitLab
///
/// Signed by `webhook-signature`, or with the secret itself as `X-Gitlab-Token`.
#[utoipa::path(
    post, path = "/v1/hooks/gitlab", tag = "hooks", operation_id = "hearGitlab", security(()),
    request_body(content = Object, content_type = "application/json"), responses(Answers),
)]
pub(super) async fn gitlab(api: State<Arc<Api>>, headers: HeaderMap, body: Body) -> Response {
    answer(&api, ForgeName::Gitlab, &headers, body).await
}

/// Take a hook of Gitea or Forgejo
///
/// Signed by `X-Gitea-Signature` or `X-Forgejo-Signature`.
#[utoipa::path(
    post, path = "/v1/hooks/gitea", tag = "hooks", operation_id = "hearGitea", security(()),
    request_body(content = Object, content_type = "application/json"), responses(Answers),
)]
pub(super) async fn gitea(api: State<Arc<Api>>, headers: HeaderMap, body: Body) -> Response {
    answer(&api, ForgeName::Gitea, &headers, body).await
}

/// Answers a hook, and counts what came of it.
async fn answer(api: &Api, forge: ForgeName, headers: &HeaderMap, body: Body) -> Response {
    let answer = hear(api, forge, headers, body).await.unwrap_or_else(Problem::into_response);
    let outcome = match answer.status().as_u16() {
        202 => HookOutcome::Built,
        200 => HookOutcome::Nothing,
        401 | 403 => HookOutcome::Unsigned,
        429 | 500.. => HookOutcome::Failed,
        _ => HookOutcome::Refused,
    };
    api.observed.metrics.hook(forge, outcome);
    answer
}

async fn hear(
    api: &Api,
    forge: ForgeName,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let delivery = Delivery::read(forge, headers).map_err(|refusal| match refusal {
        Refusal::Unsigned(why) => unsigned(why),
        Refusal::Malformed(why) => Problem::bad_request(why),
    })?;
    let (body, _room) = api.body_of_hook(headers, body).await?;
    let applications = api.backend.applications.clone();
    let (delivery, heard) = blocking(move || {
        let heard = Known::of(&applications, forge, &delivery, &body);
        (delivery, heard)
    })
    .await;
    let Known { event, applications } = heard?;
    api.count_write()?;
    let mut heard = Heard { builds: Vec::new(), skipped: Vec::new(), reason: None };
    let mut is_news = false;
    for application in &applications {
        match application.wants(&event, &delivery.id) {
            Wanted::Nothing(why) => heard.skip(application, why),
            Wanted::Build { build_id, body } => {
                match api.ask(headers, application, build_id, body).await? {
                    Ok((asked, is_new)) => {
                        is_news |= is_new;
                        if !heard.builds.iter().any(|known| known.is_same(&asked)) {
                            heard.builds.push(asked);
                        }
                    }
                    Err(why) => heard.skip(application, why),
                }
            }
        }
    }
    if heard.builds.is_empty() {
        heard.reason = Some(heard.why_nothing(&event));
    }
    tracing::info!(
        forge = forge.as_str(),
        event = delivery.event,
        delivery = delivery.id,
        repo = event.repo,
        builds = heard.builds.len(),
        reason = heard.reason,
        "a hook was taken"
    );
    Ok(json(if is_news { StatusCode::ACCEPTED } else { StatusCode::OK }, &heard))
}

fn unsigned(why: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, why)
}

/// A hook that is known to come from its forge.
struct Known {
    event: Event,
    /// The applications of its repository whose secret it is signed with.
    applications: Vec<Application>,
}

impl Known {
    fn of(
        all: &hooks::Applications,
        forge: ForgeName,
        delivery: &Delivery,
        body: &[u8],
    ) -> Result<Self, Problem> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let applications = all.current();
        // Said by who knows whom: it decides whose secrets are tried, and nothing else.
        let said = hooks::repository(forge, body).unwrap_or_default();
        let own = applications.iter().filter(|it| it.is_of(forge, &said)).map(Application::secret);
        let mut good = Vec::new();
        let mut tried = Vec::new();
        for secret in own.chain(all.secret_of(forge)) {
            if !tried.contains(&secret.expose()) {
                tried.push(secret.expose());
                if delivery.is_of(secret, body, now) {
                    good.push(secret.expose());
                }
            }
        }
        // Whether a repository has an application with a secret of its own is nobody's affair.
        if tried.is_empty() && !applications.iter().any(|it| it.forge == forge) {
            let setting = hooks::Applications::setting_of(forge);
            let why = format!("This service has no secret for hooks of this forge: set {setting}.");
            return Err(Problem::forbidden(why));
        }
        if good.is_empty() {
            return Err(unsigned("The signature is not by the secret that this service has."));
        }
        let event = hooks::read(forge, &delivery.event, body).map_err(|unread| match unread {
            Unread::Malformed(why) | Unread::Unknown(why) => Problem::bad_request(why),
        })?;
        let applications = applications
            .iter()
            .filter(|it| it.is_of(forge, &event.repo) && good.contains(&it.secret().expose()))
            .cloned()
            .collect();
        Ok(Self { event, applications })
    }
}

impl Heard {
    fn skip(&mut self, application: &Application, reason: String) {
        let Application { user_id, application_id, .. } = application;
        let (user_id, application_id) = (user_id.clone(), application_id.clone());
        self.skipped.push(Skipped { user_id, application_id, reason });
    }

    fn why_nothing(&self, event: &Event) -> String {
        match (&event.happened, &self.skipped[..]) {
            (Happened::Nothing(why), _) => why.clone(),
            (_, []) => format!("No application is of `{}`.", event.repo),
            (_, [one]) => one.reason.clone(),
            (_, several) => {
                let reasons =
                    several.iter().map(|it| format!("{}: {}", it.application_id, it.reason));
                reasons.collect::<Vec<_>>().join(" ")
            }
        }
    }
}

impl Asked {
    fn is_same(&self, other: &Self) -> bool {
        (&self.user_id, &self.build_id) == (&other.user_id, &other.build_id)
    }
}

impl Api {
    /// A hook's body, and the room that it takes.
    async fn body_of_hook(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Problem> {
        if !body::is_json(headers) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "The payload must be JSON: choose the content type `application/json` for the hook.",
            ));
        }
        body::collect_within(body, LONGEST_BODY, &self.hooks).await
    }

    /// Asks for a build, and says whether it was not asked for before; an inner error says why it cannot be built.
    async fn ask(
        &self,
        headers: &HeaderMap,
        application: &Application,
        build_id: String,
        body: Vec<u8>,
    ) -> Result<Result<(Asked, bool), String>, Problem> {
        let request = match parse::parse(&body, &build_id, &self.backend.rules) {
            Ok(request) => request,
            Err(rejected) => return Ok(Err(rejected.fault.message)),
        };
        let build = request.identity();
        let (state, is_new) = match self.take(&request, body, true).await? {
            Acceptance::New { .. } => (BuildState::Queued, true),
            // Another request under this id is the same delivery, and the application was changed since.
            Acceptance::OtherRequest => match self.find_own(&build).await {
                Ok(known) => (known.state, false),
                // It could not be put in the queue then.
                Err(problem) if problem.status() == StatusCode::NOT_FOUND => {
                    return Err(Problem::unavailable(
                        "Another request was made of this delivery, which is not in the queue: send it again later.",
                        SENT_AGAIN,
                    ));
                }
                Err(problem) => return Err(problem),
            },
            Acceptance::Known => {
                let known = self.find_own(&build).await;
                (known.map_or(BuildState::Queued, |known| known.state), false)
            }
        };
        let asked = Asked {
            url: builds::address(headers, &build, true),
            build_id,
            user_id: application.user_id.clone(),
            application_id: application.application_id.clone(),
            status: state.as_str(),
        };
        Ok(Ok((asked, is_new)))
    }
}
