//! Builds: asked for, shown, cancelled.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::header::{HOST, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::notification::NotificationType;
use image_builder_actors::model::request::BuildRequest;
use image_builder_actors::parse;
use image_builder_actors::ports::build_store::{
    Acceptance, BuildState, Change, Filter, Recorded, RequestedBuild, StoredAttempt, StoredBuild,
};
use image_builder_actors::ports::{Message, Queue, request_name};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::problem::{self, Problem};
use super::{Api, PREFIX, body, json, schema};
use crate::net::address::encoded;

/// Builds on a page, where nobody says how many, and at the most.
const PAGE: usize = 50;
const LONGEST_PAGE: usize = 200;

/// What a reverse proxy says of how it was asked.
pub(in crate::api) const X_FORWARDED_PROTO: HeaderName =
    HeaderName::from_static("x-forwarded-proto");

/// A build that was asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Submitted {
    #[serde(rename = "buildID")]
    pub(super) build_id: String,
    /// How far it is: `queued`, unless it was asked for before.
    #[schema(value_type = Progress)]
    pub(super) status: &'static str,
    /// Where it is shown.
    pub(super) url: String,
}

/// How far a build is.
#[derive(ToSchema)]
#[schema(as = State, rename_all = "lowercase")]
#[expect(dead_code, reason = "it describes BuildState, which the inside has without any schema")]
pub(super) enum Progress {
    Queued,
    Fetching,
    Building,
    Pushing,
    /// Between two attempts.
    Waiting,
    Ready,
    Failed,
    Cancelled,
}

/// What is known of a build.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Build {
    #[serde(rename = "buildID")]
    pub(super) build_id: String,
    /// Absent where the request does not say clearly whose it is.
    #[serde(rename = "userID", skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    #[serde(rename = "applicationID", skip_serializing_if = "Option::is_none")]
    application_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connector: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repo: Option<String>,
    /// What the ref came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    #[schema(value_type = Progress)]
    pub(super) state: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    requested_at: OffsetDateTime,
    /// When the last change was.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<OffsetDateTime>,
    /// How long its log is, in bytes.
    log_bytes: u64,
    attempts: Vec<BuildAttempt>,
    /// Once it has ended: the `type` of its notification.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(super) kind: Option<NotificationType>,
    /// Once it has ended: the `data` of its notification.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(super) data: Option<Value>,
}

/// One try of a build.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BuildAttempt {
    /// From 1.
    number: u32,
    worker: String,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    begun_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<OffsetDateTime>,
    /// The stages that had it in hand, and since when.
    stages: Vec<StageBegun>,
    /// What it failed of.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<AttemptFault>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StageBegun {
    /// `listener`, `connector`, `builder` or `pusher`.
    stage: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    begun_at: OffsetDateTime,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AttemptFault {
    stage: &'static str,
    reason: &'static str,
    message: String,
    /// The build step that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<String>,
    /// Whether it counts against the total of tries.
    counted: bool,
}

/// Some of the builds.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Builds {
    builds: Vec<Build>,
    /// The `cursor` of the next page; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A build that is to be stopped.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Cancelling {
    #[serde(rename = "buildID")]
    build_id: String,
    #[serde(rename = "userID", skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
}

impl From<StoredBuild> for Build {
    fn from(stored: StoredBuild) -> Self {
        let StoredBuild { requested, state, commit, updated_at, ended_at, attempts, .. } = stored;
        let kind = NotificationType::ALL
            .into_iter()
            .find(|kind| state.is_ended() && BuildState::of_outcome(*kind) == state);
        Self {
            build_id: requested.build.build_id,
            user_id: requested.build.user_id,
            application_id: requested.application_id,
            connector: requested.connector,
            repo: requested.repo,
            commit,
            state: state.as_str(),
            requested_at: requested.requested_at,
            updated_at,
            ended_at,
            log_bytes: stored.log_bytes,
            attempts: attempts.into_iter().map(BuildAttempt::from).collect(),
            kind,
            data: stored.outcome.and_then(|data| serde_json::from_str(&data).ok()),
        }
    }
}

impl From<StoredAttempt> for BuildAttempt {
    fn from(stored: StoredAttempt) -> Self {
        let stage = |(stage, begun_at): (_, _)| {
            let stage: image_builder_actors::model::fault::StageName = stage;
            StageBegun { stage: stage.as_str(), begun_at }
        };
        let fault = stored.fault.map(|fault| AttemptFault {
            stage: fault.stage.as_str(),
            reason: fault.reason.as_str(),
            message: fault.message,
            step: fault.step,
            counted: fault.counted,
        });
        Self {
            number: stored.number,
            worker: stored.worker,
            begun_at: stored.begun_at,
            ended_at: stored.ended_at,
            stages: stored.stages.into_iter().map(stage).collect(),
            fault,
        }
    }
}

/// Whose build is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Whose {
    /// The user whose build it is: to be said where several users chose one id.
    user: Option<String>,
}

/// The build that a path and a query name.
pub(super) struct OneBuild {
    pub(super) id: String,
    /// Whose it is, if that is said.
    pub(super) user: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for OneBuild {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::from_request_parts(parts, state).await?;
        let Query(Whose { user }) = Query::from_request_parts(parts, state).await?;
        Ok(Self { id, user: said(user) })
    }
}

/// What a query says: nothing, where it is empty.
pub(in crate::api) fn said(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Which builds are listed: those for which everything holds that is said.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Listing {
    #[param(value_type = Option<Progress>)]
    state: Option<String>,
    user: Option<String>,
    application: Option<String>,
    repo: Option<String>,
    /// A commit, or how it begins.
    commit: Option<String>,
    /// A user, an application or a repository, or how a build's id or a commit begins: any of them.
    search: Option<String>,
    /// Where the page begins: `next` of the page before.
    cursor: Option<String>,
    /// How many builds a page has at the most.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<usize>,
}

impl Api {
    /// What is known of a build.
    ///
    /// # Errors
    ///
    /// Nothing, or it is not clear whose is meant.
    pub(in crate::api) async fn find(
        &self,
        build_id: &str,
        user: Option<&str>,
    ) -> Result<StoredBuild, Problem> {
        let mut builds = self.backend.store.builds_of_id(build_id).await?;
        if user.is_some() {
            builds.retain(|build| build.requested.build.user_id.as_deref() == user);
        }
        match builds.len() {
            0 => Err(Problem::not_found("No such build is known.")),
            1 => Ok(builds.remove(0)),
            _ => Err(Problem::conflict(
                "Several users have a build of this id: say whose is meant, with `?user=`.",
            )),
        }
    }
}

impl Api {
    /// The same, of one user's build for certain.
    pub(super) async fn find_own(&self, build: &BuildIdentity) -> Result<StoredBuild, Problem> {
        self.find(&build.build_id, build.user_id.as_deref()).await
    }
}

/// Ask for a build
///
/// The body is the request that can be put on the build queue as well: `docs/requests-and-notifications.md` has
/// all its fields. It is answered once the request is durable. With a `uuid` it can be sent again: the same
/// request is not built twice.
#[utoipa::path(
    post, path = "/v1/builds", tag = "builds", operation_id = "submitBuild",
    request_body(content = schema::Request, content_type = "application/json"),
    responses(
        (status = 202, description = "It is in the queue.", body = Submitted,
            headers(("Location" = String, description = "Where the build is shown"))),
        (status = 200, description = "This very request was taken before.", body = Submitted),
        (status = 409, description = "Another request of this user has this `uuid`.",
            body = problem::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn submit(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = body::read(&headers, body, api.backend.rules.limits.request_bytes).await?;
    let Taken { build, has_uuid, state, is_new } = api.submit(body).await?;
    let url = address(&headers, &build, has_uuid);
    let submitted =
        Submitted { build_id: build.build_id, status: state.as_str(), url: url.clone() };
    if !is_new {
        return Ok(json(StatusCode::OK, &submitted));
    }
    Ok(([(LOCATION, url)], json(StatusCode::ACCEPTED, &submitted)).into_response())
}

/// A request that was taken, now or before.
pub(in crate::api) struct Taken {
    pub(in crate::api) build: BuildIdentity,
    /// Whether the request says its id: others may have a build of it.
    has_uuid: bool,
    state: BuildState,
    is_new: bool,
}

impl Api {
    /// A request, and whether it says its id; one that does not is given one.
    ///
    /// # Errors
    ///
    /// It breaks a rule.
    pub(in crate::api) fn read(&self, body: &[u8]) -> Result<(BuildRequest, bool), Problem> {
        let own = parse::identity(body, None);
        let has_uuid = own.is_some();
        let build_id = own.map_or_else(|| Uuid::new_v4().to_string(), |own| own.build_id);
        let request = parse::parse(body, &build_id, &self.backend.rules)
            .map_err(|rejected| Problem::rejected(rejected.fault.reason, rejected.fault.message))?;
        Ok((request, has_uuid))
    }

    /// Puts a request into the queue, unless this very one is or was in it.
    ///
    /// # Errors
    ///
    /// It breaks a rule, another one has its id, or it cannot be made durable.
    pub(in crate::api) async fn submit(&self, body: Bytes) -> Result<Taken, Problem> {
        let (request, has_uuid) = self.read(&body)?;
        let build = request.identity();
        let (state, is_new) = match self.take(&request, body.into(), !has_uuid).await? {
            Acceptance::New { .. } => (BuildState::Queued, true),
            Acceptance::Known => {
                let known = self.find_own(&build).await;
                (known.map_or(BuildState::Queued, |known| known.state), false)
            }
            Acceptance::OtherRequest => {
                return Err(Problem::conflict(
                    "This user has a build of this `uuid` already, which another request asked for.",
                ));
            }
        };
        Ok(Taken { build, has_uuid, state, is_new })
    }
}

impl Api {
    /// Puts a request in the queue, unless it is known to be there. Whether its id was made here tells who may cancel
    /// it without saying whose it is.
    ///
    /// # Errors
    ///
    /// It cannot be made durable now: nothing of it is taken.
    pub(super) async fn take(
        &self,
        request: &BuildRequest,
        body: Vec<u8>,
        made_id: bool,
    ) -> Result<Acceptance, Problem> {
        // Before anything is known of it: what cannot be published is not accepted.
        let queues = self.queues()?;
        let mut requested = requested(request, &body);
        let acceptance = self.backend.store.accept(&requested).await?;
        if let Acceptance::New { accepted_at } = acceptance {
            requested.requested_at = accepted_at;
            let message = Message {
                body,
                message_id: Some(requested.build.build_id.clone()),
                timestamp: Some(accepted_at),
                envelope: Some(Envelope::of_request(made_id, Some(accepted_at)).encode()),
                ..Message::default()
            };
            queues.broker.publish(Queue::Build, message, Duration::ZERO).await?;
            self.note_requested(requested).await;
        }
        Ok(acceptance)
    }

    /// Makes it known that a request is in the queue. A worker does the same once it has it in hand.
    pub(super) async fn note_requested(&self, requested: RequestedBuild) {
        let build = requested.build.clone();
        let change = Change::Requested(requested);
        let recorded = Recorded { build, at: OffsetDateTime::now_utc(), change };
        if let Err(error) = self.backend.store.record(&[recorded]).await {
            tracing::warn!(%error, "a request is in the queue, and will be listed once a worker has it");
        }
    }
}

/// A request, as it is known before anything is done for it.
pub(super) fn requested(request: &BuildRequest, body: &[u8]) -> RequestedBuild {
    let build = request.identity();
    RequestedBuild {
        request: request_name(&build, body),
        build,
        application_id: Some(request.application_id.clone()),
        connector: Some(request.forge.as_str().to_owned()),
        repo: Some(request.repo.to_string()),
        requested_at: OffsetDateTime::now_utc(),
    }
}

/// Where a build is shown: as it was asked for here, where that is known. `says_whose` = others may have a
/// build of this id.
pub(super) fn address(headers: &HeaderMap, build: &BuildIdentity, says_whose: bool) -> String {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(HOST).map_or_else(String::new, |host| {
        let proto = text(X_FORWARDED_PROTO).filter(|proto| *proto == "https").unwrap_or("http");
        format!("{proto}://{host}")
    });
    let whose = build.user_id.as_ref().filter(|_| says_whose);
    let whose = whose.map_or_else(String::new, |user| format!("?user={}", encoded(user)));
    format!("{host}{PREFIX}/builds/{}{whose}", encoded(&build.build_id))
}

/// List builds
///
/// Newest first.
#[utoipa::path(
    get, path = "/v1/builds", tag = "builds", operation_id = "listBuilds", params(Listing),
    responses(
        (status = 200, description = "Some of the builds.", body = Builds),
        (status = 404, description = "No page begins at this cursor.",
            body = problem::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(listing) = listing?;
    let state = listing.state.map(|name| {
        let names = || BuildState::ALL.map(BuildState::as_str).join(", ");
        let unknown = || Problem::bad_request(format!("`state` is one of {}.", names()));
        BuildState::from_name(&name).ok_or_else(unknown)
    });
    let most = listing.limit.unwrap_or(PAGE);
    if !(1..=LONGEST_PAGE).contains(&most) {
        return Err(Problem::bad_request(format!("`limit` is from 1 to {LONGEST_PAGE}.")));
    }
    let filter = Filter {
        state: state.transpose()?,
        user_id: said(listing.user),
        application_id: said(listing.application),
        repo: said(listing.repo),
        commit: said(listing.commit),
        build_id: None,
        search: said(listing.search),
    };
    let cursor = said(listing.cursor);
    let page = api.backend.store.list(&filter, cursor.as_deref(), most).await?;
    let builds = page.builds.into_iter().map(Build::from).collect();
    Ok(json(StatusCode::OK, &Builds { builds, next: page.next }))
}

/// Show a build
#[utoipa::path(
    get, path = "/v1/builds/{id}", tag = "builds", operation_id = "showBuild",
    params(("id" = String, Path, description = "The build's id"), Whose),
    responses(
        (status = 200, description = "What is known of it.", body = Build),
    )
)]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    OneBuild { id, user }: OneBuild,
) -> Result<Response, Problem> {
    let found = api.find(&id, user.as_deref()).await?;
    Ok(json(StatusCode::OK, &Build::from(found)))
}

/// Cancel a build
///
/// It stops where it is, and ends as `cancelled`. With `user` a build is cancelled of which nothing is known
/// yet.
#[utoipa::path(
    delete, path = "/v1/builds/{id}", tag = "builds", operation_id = "cancelBuild",
    params(("id" = String, Path, description = "The build's id"), Whose),
    responses(
        (status = 202, description = "Every worker is told.", body = Cancelling),
        (status = 409, description = "It has ended, or several users have a build of this id.",
            body = problem::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    OneBuild { id, user }: OneBuild,
) -> Result<Response, Problem> {
    let BuildIdentity { build_id, user_id } = api.cancel(&id, user).await?;
    Ok(json(StatusCode::ACCEPTED, &Cancelling { build_id, user_id }))
}

impl Api {
    /// Tells every worker that a build is to be stopped.
    ///
    /// # Errors
    ///
    /// It has ended, nothing is known of it and nobody says whose it is, or nobody can be told.
    pub(in crate::api) async fn cancel(
        &self,
        id: &str,
        user: Option<String>,
    ) -> Result<BuildIdentity, Problem> {
        let build = match (self.find(id, user.as_deref()).await, user) {
            (Ok(found), _) if found.state.is_ended() => {
                let state = found.state.as_str();
                return Err(Problem::conflict(format!("The build has ended: it is {state}.")));
            }
            (Ok(found), _) => found.requested.build,
            // It is in the queue and not read yet, or the store is away: the workers know it by these.
            (Err(_), Some(user)) => BuildIdentity::new(Some(&user), id),
            (Err(problem), None) => return Err(problem),
        };
        self.queues()?.broker.cancel(&build).await?;
        Ok(build)
    }
}
