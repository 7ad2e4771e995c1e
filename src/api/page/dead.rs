//! Dead letters: listed, and one of them.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::response::Response;
use image_builder_actors::model::fault::Reason;
use serde::Deserialize;
use serde_json::Value;

use super::Page;
use super::refused::Refused;
use super::view::{Frame, When, html, path_of, query};
use super::visitor::Visitor;
use crate::api::v1::builds::said;
use crate::api::v1::letters::{Cursor, Filter};
use crate::api::v1::problem::Problem;
use crate::dead_letters::letter::{FaultName, Found};
use crate::net::address::encoded;
use crate::text::plain;

/// Letters on a page.
pub(super) const PAGE: usize = 50;

/// Which letters are meant, and what was just done.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    user: Option<String>,
    fault: Option<String>,
    cursor: Option<String>,
    done: Option<String>,
}

impl Wanted {
    pub(super) fn filter(&self) -> Result<Filter, Problem> {
        let fault = said(self.fault.clone()).map(|name| name.parse::<FaultName>()).transpose();
        let fault = fault.map_err(|wrong| Problem::bad_request(format!("`fault`: {wrong}.")))?;
        Ok(Filter { user: said(self.user.clone()), fault })
    }

    /// The same letters at another place.
    pub(super) fn at(&self, path: &str, cursor: Option<&str>) -> String {
        let parts =
            [("user", self.user.as_deref()), ("fault", self.fault.as_deref()), ("cursor", cursor)];
        format!("{path}{}", query(parts))
    }
}

/// A letter, in one line.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) user: String,
    pub(super) application: String,
    pub(super) repo: String,
    pub(super) stage: &'static str,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) died: Option<When>,
    pub(super) url: String,
    pub(super) drop_url: String,
    pub(super) redrive_url: String,
}

impl Row {
    pub(super) fn of(found: &Found) -> Self {
        let text = |name: &str| found.text(name).map(plain).unwrap_or_default();
        let application =
            found.letter.as_ref().and_then(|letter| letter.request.get("applicationID"));
        let letter = found.letter.as_ref();
        let whose = query([("user", found.user())]);
        let id = encoded(&found.id);
        Self {
            id: plain(&found.id),
            user: text("userID"),
            application: application.and_then(Value::as_str).map(plain).unwrap_or_default(),
            repo: text("repo"),
            stage: letter.map_or("", |letter| letter.stage.as_str()),
            reason: letter.map_or("unreadable", |letter| letter.reason.as_str()),
            message: letter.map_or_else(
                || "This is no letter of this version.".to_owned(),
                |letter| plain(&letter.message),
            ),
            died: letter.map(|letter| When::new(letter.died_at)),
            url: format!("/dead/{id}{whose}"),
            drop_url: format!("/dead/{id}/drop{whose}"),
            redrive_url: format!("/dead/{id}/redrive{whose}"),
        }
    }
}

#[derive(Template)]
#[template(path = "dead.html")]
struct DeadPage {
    frame: Frame,
    rows: Vec<Row>,
    user: String,
    fault: String,
    faults: Vec<&'static str>,
    next: String,
    first: String,
    drop_url: String,
    redrive_url: String,
    /// Whether only some of the letters are looked at.
    is_filtered: bool,
    done: String,
}

/// What was done, in words. It comes by the address: nobody's words stand in it.
fn done(wanted: &Wanted) -> String {
    let letters = |count: usize| match count {
        1 => "1 letter".to_owned(),
        count => format!("{count} letters"),
    };
    let mut parts = wanted.done.as_deref().unwrap_or_default().split('-');
    let what = parts.next();
    let mut count = || parts.next().and_then(|count| count.parse::<usize>().ok());
    match (what, count(), count()) {
        (Some("dropped"), Some(dropped), _) => format!("Dropped {}.", letters(dropped)),
        (Some("redriven"), Some(redriven), Some(0)) => {
            format!("Asked again for the builds of {}.", letters(redriven))
        }
        (Some("redriven"), Some(redriven), Some(left)) => format!(
            "Asked again for the builds of {}. Left {}, whose requests lack something: each says what.",
            letters(redriven),
            letters(left)
        ),
        _ => String::new(),
    }
}

pub(super) async fn list(
    State(page): State<Arc<Page>>,
    Extension(visitor): Extension<Visitor>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(wanted) = wanted?;
    let filter = wanted.filter()?;
    let cursor = said(wanted.cursor.clone()).map(|cursor| cursor.parse::<Cursor>()).transpose()?;
    let (found, next) = page.api.letters(&filter, cursor.as_ref(), PAGE).await?;
    let next = next.map(|next| next.to_string());
    let faults =
        ["user", "service"].into_iter().chain(Reason::ALL.iter().map(|reason| reason.as_str()));
    let answer = DeadPage {
        frame: visitor.frame("dead", "Dead letters"),
        rows: found.iter().map(Row::of).collect(),
        next: next.map_or_else(String::new, |next| wanted.at("/dead", Some(&next))),
        first: cursor.map_or_else(String::new, |_| wanted.at("/dead", None)),
        drop_url: wanted.at("/all-dead/drop", None),
        redrive_url: wanted.at("/all-dead/redrive", None),
        is_filtered: filter.user.is_some() || filter.fault.is_some(),
        done: done(&wanted),
        user: filter.user.unwrap_or_default(),
        fault: said(wanted.fault).unwrap_or_default(),
        faults: faults.collect(),
    };
    Ok(html(&answer))
}

/// Whose letter is meant.
#[derive(Debug, Deserialize)]
pub(super) struct Whose {
    pub(super) user: Option<String>,
}

pub(super) type Id = Result<Path<String>, PathRejection>;
pub(super) type Of = Result<Query<Whose>, QueryRejection>;
pub(super) type All = Result<Query<Wanted>, QueryRejection>;

#[derive(Template)]
#[template(path = "letter.html")]
struct LetterPage {
    frame: Frame,
    row: Row,
    kept_until: Option<When>,
    /// What the request held and the letter does not.
    removed: Vec<String>,
    /// The request without its credentials, for people.
    request: String,
    build_url: String,
}

pub(super) async fn show(
    State(page): State<Arc<Page>>,
    Extension(visitor): Extension<Visitor>,
    id: Id,
    whose: Of,
) -> Result<Response, Refused> {
    let (Path(id), Query(Whose { user })) = (id?, whose?);
    let found = page.api.letter(&id, said(user)).await?;
    let letter = found.letter.as_ref();
    let request = letter.map(|letter| format!("{:#}", Value::Object(letter.request.clone())));
    let lines = |text: String| text.lines().map(plain).collect::<Vec<_>>().join("\n");
    let answer = LetterPage {
        frame: visitor.frame("dead", format!("Dead letter of {}", plain(&found.id))),
        row: Row::of(&found),
        kept_until: found.kept_until.map(When::new),
        removed: letter
            .map(|letter| letter.removed.iter().map(|it| plain(it)).collect())
            .unwrap_or_default(),
        request: lines(
            request.unwrap_or_else(|| String::from_utf8_lossy(&found.body).into_owned()),
        ),
        build_url: path_of(&found.id, found.user()),
    };
    Ok(html(&answer))
}
