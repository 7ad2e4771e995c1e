//! What is done to dead letters, one or all that are meant: asked whether, and done.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use image_builder_actors::model::secret::Secret;
use serde::Deserialize;
use time::OffsetDateTime;

use super::Page;
use super::dead::{All, Id, Of, PAGE, Row, Whose};
use super::refused::Refused;
use super::view::{Frame, html, path_of, query};
use super::visitor::{Posted, Visitor};
use crate::api::server::Connection;
use crate::api::v1::builds::said;
use crate::api::v1::problem::Problem;
use crate::dead_letters::letter::Found;
use crate::dead_letters::redrive::Given;
use crate::text::plain;

/// Asks whether something is to be done.
#[derive(Template)]
#[template(path = "confirm_dead.html")]
struct ConfirmPage {
    frame: Frame,
    title: String,
    /// Where the form goes.
    action: String,
    /// What is done, as it stands on the button.
    verb: &'static str,
    is_redrive: bool,
    /// What may be given for what was taken out of the letter.
    removed: Vec<Removed>,
    /// Letters that are meant.
    rows: Vec<Row>,
    /// Whether there are more than these.
    more: bool,
    /// Only letters that were there by then are meant, in seconds since 1970.
    until: i64,
    back: String,
}

struct Removed {
    /// As the letter says it.
    path: String,
    /// What a person calls it.
    title: String,
}

fn removed(found: &Found) -> Vec<Removed> {
    let paths = found.letter.as_ref().map(|letter| letter.removed.clone()).unwrap_or_default();
    let title = |path: &str| match path.rsplit_once('.') {
        Some(("buildPlan.secrets", id)) => format!("The build secret {}", plain(id)),
        Some(("buildPlan.envs", name)) => format!("The variable {}", plain(name)),
        Some(("buildPlan.buildArgs", name)) => format!("The build argument {}", plain(name)),
        _ if path == "token" => "The forge’s token".to_owned(),
        _ => plain(path),
    };
    paths.into_iter().map(|path| Removed { title: title(&path), path }).collect()
}

/// What is done to letters, as the forms that ask and their routes are told.
pub(super) const DROP: bool = false;
pub(super) const REDRIVE: bool = true;

pub(super) async fn confirm<const IS_REDRIVE: bool>(
    State(page): State<Arc<Page>>,
    Extension(visitor): Extension<Visitor>,
    id: Id,
    whose: Of,
) -> Result<Response, Refused> {
    let (Path(id), Query(Whose { user })) = (id?, whose?);
    let found = page.api.letter(&id, said(user)).await?;
    let row = Row::of(&found);
    let (verb, title) = match IS_REDRIVE {
        true => ("Ask again", "Ask for this build again?"),
        false => ("Drop", "Drop this dead letter?"),
    };
    let answer = ConfirmPage {
        frame: visitor.frame("dead", title),
        title: title.to_owned(),
        action: if IS_REDRIVE { row.redrive_url.clone() } else { row.drop_url.clone() },
        verb,
        is_redrive: IS_REDRIVE,
        removed: if IS_REDRIVE { removed(&found) } else { Vec::new() },
        back: row.url.clone(),
        rows: vec![row],
        more: false,
        until: 0,
    };
    Ok(html(&answer))
}

pub(super) async fn confirm_all<const IS_REDRIVE: bool>(
    State(page): State<Arc<Page>>,
    Extension(visitor): Extension<Visitor>,
    wanted: All,
) -> Result<Response, Refused> {
    let Query(wanted) = wanted?;
    let until = OffsetDateTime::now_utc();
    let (found, next) = page.api.letters(&wanted.filter()?, None, PAGE).await?;
    let (verb, path) = if IS_REDRIVE { ("Ask again", "redrive") } else { ("Drop", "drop") };
    let what = match (found.len(), next.is_some()) {
        (1, false) => "the 1 letter".to_owned(),
        (count, false) => format!("all {count} letters"),
        (count, true) => format!("all letters, {count} and more,"),
    };
    let title = match IS_REDRIVE {
        true => format!("Ask again for the builds of {what} that match?"),
        false => format!("Drop {what} that match?"),
    };
    let answer = ConfirmPage {
        frame: visitor.frame("dead", title.as_str()),
        title,
        action: wanted.at(&format!("/all-dead/{path}"), None),
        verb,
        is_redrive: IS_REDRIVE,
        removed: Vec::new(),
        rows: found.iter().map(Row::of).collect(),
        more: next.is_some(),
        until: until.unix_timestamp(),
        back: wanted.at("/dead", None),
    };
    Ok(html(&answer))
}

pub(super) async fn drop(
    State(page): State<Arc<Page>>,
    id: Id,
    whose: Of,
    _: Posted<HashMap<String, String>>,
) -> Result<Response, Refused> {
    let (Path(id), Query(Whose { user })) = (id?, whose?);
    page.api.drop_letter(&id, said(user), None).await?;
    Ok(done("dropped-1"))
}

/// Back to the letters, which say what was done.
fn done(what: &str) -> Response {
    Redirect::to(&format!("/dead{}", query([("done", Some(what))]))).into_response()
}

/// What is given for what was taken out of a letter: `given.` and its path name each value.
struct GivenForm(BTreeMap<String, Secret>);

impl GivenForm {
    fn given(mut self) -> Given {
        let without_credentials = self.0.contains_key("without");
        let of = |prefix: &str| {
            let values = self.0.iter().filter(|(_, value)| !value.is_empty());
            values
                .filter_map(|(path, value)| {
                    Some((path.strip_prefix(prefix)?.to_owned(), value.clone()))
                })
                .collect()
        };
        let (secrets, envs, build_args) = (
            of("given.buildPlan.secrets."),
            of("given.buildPlan.envs."),
            of("given.buildPlan.buildArgs."),
        );
        let token = self.0.remove("given.token").filter(|token| !token.is_empty());
        Given { token, secrets, envs, build_args, without_credentials }
    }
}

pub(super) async fn redrive(
    State(page): State<Arc<Page>>,
    id: Id,
    whose: Of,
    Posted { form, .. }: Posted<BTreeMap<String, Secret>>,
) -> Result<Response, Refused> {
    let (Path(id), Query(Whose { user })) = (id?, whose?);
    let given = GivenForm(form).given();
    let (build, new_id) = page.api.redrive_letter(&id, said(user), None, &given).await?;
    let user = build.as_ref().and_then(|build| build.user_id.as_deref());
    Ok(Redirect::to(&path_of(&new_id, user)).into_response())
}

/// What stands in the form that confirms what is done to all.
#[derive(Debug, Deserialize)]
pub(super) struct Confirmed {
    until: i64,
    without: Option<String>,
}

impl Confirmed {
    fn until(&self) -> Result<OffsetDateTime, Problem> {
        // To the end of that second.
        OffsetDateTime::from_unix_timestamp(self.until.saturating_add(1))
            .map_err(|_| Problem::bad_request("`until` is no time."))
    }
}

pub(super) async fn drop_all(
    State(page): State<Arc<Page>>,
    Extension(connection): Extension<Connection>,
    wanted: All,
    Posted { form, .. }: Posted<Confirmed>,
) -> Result<Response, Refused> {
    let Query(wanted) = wanted?;
    let _hold = connection.hold();
    let dropped = page.api.drop_letters(&wanted.filter()?, form.until()?).await?;
    Ok(done(&format!("dropped-{dropped}")))
}

pub(super) async fn redrive_all(
    State(page): State<Arc<Page>>,
    Extension(connection): Extension<Connection>,
    wanted: All,
    Posted { form, .. }: Posted<Confirmed>,
) -> Result<Response, Refused> {
    let Query(wanted) = wanted?;
    let _hold = connection.hold();
    let given = Given { without_credentials: form.without.is_some(), ..Given::default() };
    let (redriven, left) =
        page.api.redrive_letters(&wanted.filter()?, form.until()?, &given).await?;
    Ok(done(&format!("redriven-{redriven}-{left}")))
}
