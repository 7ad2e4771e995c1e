//! This worker, its actors, and who waits.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, State};
use axum::response::Response;
use time::Duration;

use super::Page;
use super::refused::Refused;
use super::view::{Frame, When, grouped, html, query, took};
use super::visitor::Visitor;
use crate::api::readiness::Need;
use crate::text::plain;

/// How long the broker is waited for.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(Template)]
#[template(path = "workers.html")]
struct WorkersPage {
    frame: Frame,
    name: String,
    version: &'static str,
    ready: bool,
    draining: bool,
    actors: Vec<Actor>,
    needs: Vec<Needed>,
    /// Requests that wait on the broker, and workers that take them; `None` = it does not answer.
    waiting: Option<(String, String)>,
    users: Vec<User>,
    /// Whether what is known of builds can be had.
    has_users: bool,
}

struct Actor {
    name: &'static str,
    state: &'static str,
    in_hand: usize,
    waiting: usize,
    done: String,
    failed: String,
    restarts: u64,
    last_fault: String,
    oldest: String,
}

struct Needed {
    name: &'static str,
    ready: bool,
    required: bool,
    since: When,
    detail: String,
}

struct User {
    name: String,
    url: String,
    waiting: String,
    in_hand: String,
}

pub(super) async fn show(
    State(page): State<Arc<Page>>,
    Extension(visitor): Extension<Visitor>,
) -> Result<Response, Refused> {
    let observed = &page.api.observed;
    let draining = observed.draining();
    let (ready, _) = observed.readiness.report(draining);
    let actors = observed.actors.iter().map(|health| {
        let now = health.snapshot();
        Actor {
            name: health.name().as_str(),
            state: now.state.as_str(),
            in_hand: now.in_hand,
            waiting: now.waiting,
            done: grouped(now.done),
            failed: grouped(now.failed.values().sum()),
            restarts: now.restarts(),
            last_fault: now.last_fault.as_deref().map(plain).unwrap_or_default(),
            oldest: now
                .oldest
                .and_then(|age| Duration::try_from(age).ok())
                .map_or_else(String::new, took),
        }
    });
    let need = |need: Need| Needed {
        name: need.name,
        ready: need.ready,
        required: need.required,
        since: When::new(need.since),
        detail: need.detail.as_deref().map(plain).unwrap_or_default(),
    };
    let waiting = match page.api.queues() {
        Ok(queues) => tokio::time::timeout(PATIENCE, async {
            let broker = &queues.broker;
            Some((broker.waiting().await.ok()?, broker.workers().await.ok()?))
        })
        .await
        .unwrap_or_default(),
        Err(_) => None,
    };
    let tally = page.api.backend.store.tally().await;
    let has_users = tally.is_ok();
    let users = tally.unwrap_or_default().users.into_iter().map(|user| User {
        url: format!("/{}", query([("q", user.user_id.as_deref())])),
        name: user.user_id.as_deref().map_or_else(|| "(not said clearly)".to_owned(), plain),
        waiting: grouped(user.waiting),
        in_hand: grouped(user.in_hand),
    });
    let answer = WorkersPage {
        frame: visitor.frame("workers", "Workers"),
        name: plain(&page.api.backend.worker),
        version: env!("CARGO_PKG_VERSION"),
        ready,
        draining,
        actors: actors.collect(),
        needs: observed.readiness.needs().into_iter().map(need).collect(),
        waiting: waiting.map(|(requests, workers)| (grouped(requests), grouped(workers))),
        users: users.collect(),
        has_users,
    };
    Ok(html(&answer))
}
