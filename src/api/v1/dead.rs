//! Dead letters: listed, shown, redriven, dropped.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use image_builder_actors::model::secret::Secret;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::builds::{OneBuild, Whose, address, said};
use super::letters::{Cursor, Filter};
use super::problem::{self, Problem};
use super::{Api, body, json};
use crate::dead_letters::letter::{FaultName, Found};
use crate::dead_letters::redrive::{Given, Refusal, Values};

/// Letters on a page, where nobody says how many, and at the most.
const PAGE: usize = 100;
const LONGEST_PAGE: usize = 1000;

/// A copy of a build that was given up.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Letter {
    /// The build's id, or what stands for it where there is none.
    #[serde(rename = "buildID")]
    build_id: String,
    #[serde(rename = "userID", skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    /// When it is dropped, if that is known.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    kept_until: Option<OffsetDateTime>,
    /// How long it is, in bytes.
    bytes: usize,
    /// What tells it from other letters of the same build.
    name: String,
    /// As it was kept: `buildID`, `diedAt`, `stage`, `reason`, `message`, `history`, `request` without its
    /// credentials, and in `removed` what was taken out of it; absent where it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    letter: Option<Box<RawValue>>,
}

impl Letter {
    fn of(found: Found) -> Self {
        Self {
            user_id: found.user().map(str::to_owned),
            name: found.name(),
            build_id: found.id,
            kept_until: found.kept_until,
            bytes: found.body.len(),
            letter: String::from_utf8(found.body).ok().and_then(|t| RawValue::from_string(t).ok()),
        }
    }
}

/// Some of the letters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeadLetters {
    letters: Vec<Letter>,
    /// The `cursor` of the next page; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Which letters are listed: those for which everything holds that is said.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Listing {
    user: Option<String>,
    /// A reason, such as `registry_refused`, or whose fault it was: `user` or `service`.
    fault: Option<String>,
    /// Where the page begins: `next` of the page before.
    cursor: Option<String>,
    /// How many letters a page has at the most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// Which letters of a build are meant.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Named {
    /// The `name` of a letter: only this one of the build's.
    letter: Option<String>,
}

/// What is given for what was taken out of a letter: its `removed` says what that is.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Redrive {
    /// The forge's token.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    token: Option<Secret>,
    /// Build secrets by their ids.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    secrets: Values,
    /// Variables by their names.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    envs: Values,
    /// Build arguments by their names.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    build_args: Values,
    /// Go on without what is missing.
    #[serde(default)]
    without_credentials: bool,
}

/// A build that was asked for again.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Redriven {
    /// The new build's id.
    #[serde(rename = "buildID")]
    build_id: String,
    /// The build that had been given up.
    redrive_of: String,
    status: &'static str,
    /// Where the new build is shown.
    url: String,
}

impl From<Redrive> for Given {
    fn from(redrive: Redrive) -> Self {
        let Redrive { token, secrets, envs, build_args, without_credentials } = redrive;
        Self { token, secrets, envs, build_args, without_credentials }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Lacking(what) => Problem::conflict(format!(
                "The request was kept without {}: give them in `token`, `secrets`, `envs` or `buildArgs`, or \
                 say `withoutCredentials`.",
                what.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", ")
            )),
            refusal => Problem::conflict(format!("It cannot be redriven: {refusal}.")),
        }
    }
}

/// List dead letters
///
/// Copies of the builds that were given up, without any credential, oldest first.
#[utoipa::path(
    get, path = "/v1/dead", tag = "dead letters", operation_id = "listDeadLetters", params(Listing),
    responses(
        (status = 200, description = "Some of the letters.", body = DeadLetters),
        (status = 404, description = "No page begins at this cursor.",
            body = problem::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Listing { user, fault, cursor, limit }) = listing?;
    let fault = fault.map(|name| name.parse::<FaultName>()).transpose();
    let fault = fault.map_err(|wrong| Problem::bad_request(format!("`fault`: {wrong}.")))?;
    let after = said(cursor).map(|cursor| cursor.parse::<Cursor>()).transpose()?;
    let most = limit.unwrap_or(PAGE);
    if !(1..=LONGEST_PAGE).contains(&most) {
        return Err(Problem::bad_request(format!("`limit` is from 1 to {LONGEST_PAGE}.")));
    }
    let filter = Filter { user: said(user), fault };
    let (found, next) = api.letters(&filter, after.as_ref(), most).await?;
    let letters = found.into_iter().map(Letter::of).collect();
    Ok(json(StatusCode::OK, &DeadLetters { letters, next: next.map(|next| next.to_string()) }))
}

/// Show a dead letter
#[utoipa::path(
    get, path = "/v1/dead/{id}", tag = "dead letters", operation_id = "showDeadLetter",
    params(("id" = String, Path, description = "The build's id"), Whose),
    responses(
        (status = 200, description = "The newest letter of this build.", body = Letter),
    )
)]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    OneBuild { id, user }: OneBuild,
) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &Letter::of(api.letter(&id, user).await?)))
}

/// Drop a dead letter
///
/// All letters of the build are removed for good, or the one that is meant.
#[utoipa::path(
    delete, path = "/v1/dead/{id}", tag = "dead letters", operation_id = "dropDeadLetter",
    params(("id" = String, Path, description = "The build's id"), Whose, Named),
    responses(
        (status = 204, description = "It is removed."),
    )
)]
pub(super) async fn drop(
    State(api): State<Arc<Api>>,
    OneBuild { id, user }: OneBuild,
    named: Result<Query<Named>, QueryRejection>,
) -> Result<Response, Problem> {
    let letter = said(named?.0.letter);
    api.drop_letter(&id, user, letter.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Ask for a build again
///
/// A new request is put on the build queue, with an id of its own and the old one in `redriveOf`; then the letter
/// is removed: all letters of the build, or the one that is meant. What it lacks because it was a credential is to be
/// given again.
#[utoipa::path(
    post, path = "/v1/dead/{id}/redrive", tag = "dead letters", operation_id = "redriveDeadLetter",
    params(("id" = String, Path, description = "The build's id"), Whose, Named),
    request_body(content = Option<Redrive>, content_type = "application/json"),
    responses(
        (status = 202, description = "The new request is in the queue.", body = Redriven),
        (status = 409, description = "It lacks something, or several users have one of this id.",
            body = problem::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn redrive(
    State(api): State<Arc<Api>>,
    OneBuild { id, user }: OneBuild,
    named: Result<Query<Named>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let letter = said(named?.0.letter);
    let rules = &api.backend.rules;
    let given = match body::read_if_any(&headers, body, rules.limits.request_bytes).await? {
        Some(body) => serde_json::from_slice::<Option<Redrive>>(&body).map_err(|error| {
            // Its own words may quote a credential.
            let (line, column) = (error.line(), error.column());
            Problem::bad_request(format!(
                "The body is not what a redrive takes: line {line}, column {column}."
            ))
        })?,
        None => None,
    };
    let given = Given::from(given.unwrap_or_default());
    let (build, new_id) = api.redrive_letter(&id, user, letter.as_deref(), &given).await?;
    let url = build.map_or_else(String::new, |build| address(&headers, &build, false));
    let redriven = Redriven { build_id: new_id, redrive_of: id, status: "queued", url };
    Ok(json(StatusCode::ACCEPTED, &redriven))
}
