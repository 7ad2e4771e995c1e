//! One build, and its end.

use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::PathRejection;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use image_builder_actors::ports::build_store::{BuildState, StoredBuild};
use serde::Deserialize;
use serde_json::Value;

use super::Page;
use super::attempts::{Attempt, attempts};
use super::builds::{Row, address};
use super::refused::Refused;
use super::view::{Frame, When, html, query, readable, size};
use super::visitor::{Posted, Visitor};
use crate::api::v1::builds::said;
use crate::net::address::encoded;
use crate::text::plain;

/// How much of a log is shown where the script does not, in bytes.
const LOG_END: u64 = 64 * 1024;

/// Whose build is meant, and what was just done.
#[derive(Debug, Deserialize)]
pub(super) struct Whose {
    user: Option<String>,
    done: Option<String>,
}

#[derive(Template)]
#[template(path = "build.html")]
struct BuildPage {
    frame: Frame,
    row: Row,
    commit: String,
    connector: String,
    ended: Option<When>,
    is_ended: bool,
    /// Whether nothing was done for it yet.
    is_queued: bool,
    is_failed: bool,
    /// Why it failed, in a sentence.
    message: String,
    /// Whose fault it was: `user` or `service`.
    fault: String,
    stage: String,
    image: Option<Image>,
    attempts: Vec<Attempt>,
    left_out: usize,
    /// The end of its log.
    log: String,
    log_size: String,
    /// Whether the log is longer than what is shown of it.
    is_cut: bool,
    log_url: String,
    api_url: String,
    cancel_url: String,
    again_url: String,
    dead_url: String,
    is_cancelling: bool,
}

struct Image {
    /// By digest.
    pull: String,
    reference: String,
    size: String,
    /// Whether it stood in for a build.
    is_reused: bool,
}

impl Image {
    fn of(told: &Value) -> Option<Self> {
        let image = told.get("image")?;
        let text = |name: &str| image[name].as_str().map(plain);
        Some(Self {
            pull: format!("{}@{}", text("repository")?, text("digest")?),
            reference: text("reference")?,
            size: image["sizeBytes"].as_u64().map_or_else(String::new, size),
            is_reused: told["reused"] == true,
        })
    }
}

#[derive(Template)]
#[template(path = "which.html")]
struct WhichPage {
    frame: Frame,
    id: String,
    rows: Vec<Row>,
}

/// The build that a path and a query name, or the page that asks whose is meant.
async fn find(
    page: &Page,
    visitor: &Visitor,
    id: &str,
    user: Option<&str>,
) -> Result<Result<StoredBuild, Response>, Refused> {
    if user.is_none() {
        let builds = page.api.backend.store.builds_of_id(id).await?;
        if builds.len() > 1 {
            let which = WhichPage {
                frame: visitor.frame("builds", "Whose build?"),
                id: plain(id),
                rows: builds.iter().map(Row::of).collect(),
            };
            let which = which.render().expect("a template that was compiled");
            return Ok(Err((StatusCode::CONFLICT, Html(which)).into_response()));
        }
    }
    Ok(Ok(page.api.find(id, user).await?))
}

pub(super) async fn show(
    State(page): State<Arc<Page>>,
    Extension(visitor): Extension<Visitor>,
    id: Result<Path<String>, PathRejection>,
    whose: Result<Query<Whose>, QueryRejection>,
) -> Result<Response, Refused> {
    let (Path(id), Query(Whose { user, done })) = (id?, whose?);
    let build = match find(&page, &visitor, &id, said(user).as_deref()).await? {
        Ok(build) => build,
        Err(which) => return Ok(which),
    };
    let from = build.log_bytes.saturating_sub(LOG_END);
    let store = &page.api.backend.store;
    let part = store.log(&build.requested.build, from, LOG_END as usize).await?;
    let log = part.map(|part| part.bytes).unwrap_or_default();
    // It begins with a whole line.
    let begin = if from == 0 {
        0
    } else {
        log.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1)
    };
    let told: Value = build
        .outcome
        .as_deref()
        .and_then(|told| serde_json::from_str(told).ok())
        .unwrap_or_default();
    let text = |name: &str| told[name].as_str().map(plain).unwrap_or_default();
    let row = Row::of(&build);
    let (attempts, left_out) = attempts(&build);
    let (encoded_id, requested) = (encoded(&build.requested.build.build_id), &build.requested);
    let whose = query([("user", requested.build.user_id.as_deref())]);
    let name = if row.application.is_empty() { &row.id } else { &row.application };
    let answer = BuildPage {
        frame: visitor.frame("builds", format!("{name}: {}", row.title)),
        commit: build.commit.as_deref().map(plain).unwrap_or_default(),
        connector: requested.connector.as_deref().map(plain).unwrap_or_default(),
        ended: build.ended_at.map(When::new),
        is_ended: build.state.is_ended(),
        is_queued: build.state == BuildState::Queued,
        is_failed: build.state == BuildState::Failed,
        message: text("message"),
        fault: text("fault"),
        stage: text("stage"),
        image: Image::of(&told),
        attempts,
        left_out,
        log: readable(&log[begin..]),
        log_size: size(build.log_bytes),
        is_cut: from > 0,
        log_url: format!("/v1/builds/{encoded_id}/log{whose}"),
        api_url: format!("/v1/builds/{encoded_id}{whose}"),
        cancel_url: format!("/builds/{encoded_id}/cancel{whose}"),
        again_url: format!(
            "/new{}",
            query([
                ("of", Some(requested.build.build_id.as_str())),
                ("user", requested.build.user_id.as_deref())
            ])
        ),
        dead_url: format!("/dead/{encoded_id}{whose}"),
        is_cancelling: done.as_deref() == Some("cancel") && !build.state.is_ended(),
        row,
    };
    Ok(html(&answer))
}

#[derive(Template)]
#[template(path = "cancel.html")]
struct CancelPage {
    frame: Frame,
    row: Row,
    action: String,
}

pub(super) async fn confirm_cancel(
    State(page): State<Arc<Page>>,
    Extension(visitor): Extension<Visitor>,
    id: Result<Path<String>, PathRejection>,
    whose: Result<Query<Whose>, QueryRejection>,
) -> Result<Response, Refused> {
    let (Path(id), Query(Whose { user, .. })) = (id?, whose?);
    let build = match find(&page, &visitor, &id, said(user).as_deref()).await? {
        Ok(build) => build,
        Err(which) => return Ok(which),
    };
    if build.state.is_ended() {
        return Ok(Redirect::to(&address(&build)).into_response());
    }
    let whose = query([("user", build.requested.build.user_id.as_deref())]);
    let action = format!("/builds/{}/cancel{whose}", encoded(&id));
    let frame = visitor.frame("builds", "Cancel a build");
    Ok(html(&CancelPage { frame, row: Row::of(&build), action }))
}

pub(super) async fn cancel(
    State(page): State<Arc<Page>>,
    id: Result<Path<String>, PathRejection>,
    whose: Result<Query<Whose>, QueryRejection>,
    _: Posted<HashMap<String, String>>,
) -> Result<Response, Refused> {
    let (Path(id), Query(Whose { user, .. })) = (id?, whose?);
    let build = page.api.cancel(&id, said(user)).await?;
    let done = query([("user", build.user_id.as_deref()), ("done", Some("cancel"))]);
    Ok(Redirect::to(&format!("/builds/{}{done}", encoded(&build.build_id))).into_response())
}
