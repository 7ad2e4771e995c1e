//! The list of builds.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::response::Response;
use image_builder_actors::ports::build_store::{BuildState, Filter, StoredBuild, Tally};
use serde::Deserialize;
use time::OffsetDateTime;

use super::Page;
use super::attempts::reason_of;
use super::refused::Refused;
use super::view::{Frame, When, grouped, html, path_of, query, title_of, took};
use super::visitor::Visitor;
use crate::api::v1::builds::said;
use crate::api::v1::problem::Problem;
use crate::net::address::encoded;
use crate::text::plain;

/// Builds on a page.
const PAGE: usize = 50;

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    /// What is searched for.
    q: Option<String>,
    state: Option<String>,
    cursor: Option<String>,
}

#[derive(Template)]
#[template(path = "builds.html")]
struct BuildsPage {
    frame: Frame,
    /// All builds, and those in each state.
    tabs: Vec<Tab>,
    search: String,
    /// The state that is looked at; empty = all.
    state: &'static str,
    rows: Vec<Row>,
    /// Where the next page is; empty = there is none.
    next: String,
    /// Where the first page is; empty = this is it.
    first: String,
    /// Whether no build is known at all.
    is_new: bool,
    /// As clients on this machine name the service; empty = it has a token.
    is_open: bool,
}

struct Tab {
    title: &'static str,
    /// The state; empty = all.
    state: &'static str,
    count: String,
    url: String,
    is_here: bool,
}

/// A build, in one line.
pub(super) struct Row {
    pub(super) url: String,
    /// Names the row while the page is open.
    pub(super) key: String,
    pub(super) state: &'static str,
    pub(super) title: &'static str,
    pub(super) application: String,
    pub(super) repo: String,
    pub(super) user: String,
    pub(super) id: String,
    pub(super) commit: String,
    pub(super) requested: When,
    pub(super) took: String,
    /// What it failed of; empty = it did not.
    pub(super) reason: String,
    /// The attempt that it is at, where that is not the first, and it has not ended.
    pub(super) attempt: Option<u32>,
}

impl Row {
    pub(super) fn of(build: &StoredBuild) -> Self {
        let requested = &build.requested;
        let text = |text: &Option<String>| text.as_deref().map(plain).unwrap_or_default();
        let since = requested.requested_at;
        let until = build.ended_at.unwrap_or_else(OffsetDateTime::now_utc);
        Self {
            url: address(build),
            key: format!("b-{}", encoded(&address(build)).replace('%', "_")),
            state: build.state.as_str(),
            title: title_of(build.state),
            application: text(&requested.application_id),
            repo: text(&requested.repo),
            user: text(&requested.build.user_id),
            id: plain(&requested.build.build_id),
            commit: text(&build.commit).chars().take(10).collect(),
            requested: When::new(since),
            took: took(until - since),
            reason: reason_of(build).unwrap_or_default(),
            attempt: build
                .attempts
                .last()
                .map(|last| last.number)
                .filter(|number| *number > 1 && !build.state.is_ended()),
        }
    }
}

/// Where a build is shown.
pub(super) fn address(build: &StoredBuild) -> String {
    let build = &build.requested.build;
    path_of(&build.build_id, build.user_id.as_deref())
}

pub(super) async fn list(
    State(page): State<Arc<Page>>,
    Extension(visitor): Extension<Visitor>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(Wanted { q, state, cursor }) = wanted?;
    let search = q.map(|q| q.trim().to_owned()).filter(|q| !q.is_empty());
    let state = said(state).map(|name| {
        BuildState::from_name(&name)
            .ok_or_else(|| Problem::not_found("There is no such state of builds."))
    });
    let state = state.transpose()?;
    let cursor = said(cursor);
    let store = &page.api.backend.store;
    let filter = Filter { state, search: search.clone(), ..Filter::default() };
    let found = store.list(&filter, cursor.as_deref(), PAGE).await?;
    let tally = store.tally().await?;
    let of = |state: Option<BuildState>, cursor: Option<&str>| {
        let state = state.map(BuildState::as_str);
        format!("/{}", query([("q", search.as_deref()), ("state", state), ("cursor", cursor)]))
    };
    let tab = |wanted: Option<BuildState>, title, count| Tab {
        title,
        state: wanted.map_or("", BuildState::as_str),
        count: grouped(count),
        url: of(wanted, None),
        is_here: wanted == state,
    };
    let all = tally.states.iter().map(|(_, count)| count).sum();
    let of_state = |state: BuildState| tab(Some(state), title_of(state), Tally::of(&tally, state));
    let tabs = std::iter::once(tab(None, "All", all)).chain(BuildState::ALL.map(of_state));
    let answer = BuildsPage {
        frame: visitor.frame("builds", state.map_or("Builds", title_of)),
        tabs: tabs.collect(),
        state: state.map_or("", BuildState::as_str),
        rows: found.builds.iter().map(Row::of).collect(),
        next: found.next.as_deref().map_or_else(String::new, |next| of(state, Some(next))),
        first: cursor.map_or_else(String::new, |_| of(state, None)),
        is_new: all == 0,
        is_open: page.api.sessions.is_none(),
        search: search.unwrap_or_default(),
    };
    Ok(html(&answer))
}
