//! The form that asks for a build.

use std::sync::Arc;

use askama::Template;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::build_store::StoredBuild;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Page;
use super::refused::Refused;
use super::view::{Frame, html, path_of};
use super::visitor::{Posted, Visitor};
use crate::api::v1::builds::said;
use crate::text::plain;

/// The forges that a request can name.
const FORGES: [&str; 5] = ["github", "gitlab", "gitea", "bitbucket", "git"];
/// What can be built of a repository.
const REFS: [&str; 5] = ["repo", "branch", "tag", "release", "commit"];
const BUILDERS: [&str; 3] = ["", "dockerfile", "nixpacks"];

#[derive(Template)]
#[template(path = "new.html")]
struct NewPage {
    frame: Frame,
    asked: Asked,
    /// What is wrong with it; empty = nothing.
    wrong: String,
    /// Whether it is asked for again what was built before.
    is_again: bool,
    forges: [&'static str; 5],
    refs: [&'static str; 5],
    builders: [&'static str; 3],
}

/// What the form asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    user: String,
    repo: String,
    connector: String,
    #[serde(rename = "type")]
    kind: String,
    /// The branch, tag, release or commit.
    reference: String,
    application: String,
    /// So that a form that is sent twice is one build.
    uuid: String,
    token: Option<Secret>,
    force: Option<String>,
    builder: String,
    root: String,
    dockerfile: String,
    target: String,
    build_args: String,
    envs: String,
    secrets: Option<Secret>,
}

impl Asked {
    fn new() -> Self {
        Self { uuid: Uuid::new_v4().to_string(), ..Self::default() }
    }

    /// What is known of a build, to be asked for once more.
    fn again(build: &StoredBuild) -> Self {
        let requested = &build.requested;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (kind, reference) = match &build.commit {
            Some(commit) => ("commit", commit.clone()),
            None => ("repo", String::new()),
        };
        Self {
            user: text(&requested.build.user_id),
            repo: text(&requested.repo),
            connector: text(&requested.connector),
            kind: kind.to_owned(),
            reference,
            application: text(&requested.application_id),
            force: Some("on".to_owned()),
            ..Self::new()
        }
    }

    /// The request, as the API takes it.
    fn request(&self) -> Result<Value, String> {
        let text = |text: &str| Some(text.trim()).filter(|text| !text.is_empty()).map(Value::from);
        let mut plan = Map::new();
        let texts = [
            ("builder", &self.builder),
            ("rootDirectory", &self.root),
            ("dockerfilePath", &self.dockerfile),
            ("target", &self.target),
        ];
        plan.extend(
            texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), text(value)?))),
        );
        let secrets = self.secrets.as_ref().map_or("", Secret::expose);
        for (name, title, lines) in [
            ("buildArgs", "Build arguments", self.build_args.as_str()),
            ("envs", "Variables", &self.envs),
            ("secrets", "Secrets", secrets),
        ] {
            let values = values(title, lines)?;
            if !values.is_empty() {
                plan.insert(name.to_owned(), values.into());
            }
        }
        let mut request = Map::new();
        let texts = [
            ("userID", &self.user),
            ("repo", &self.repo),
            ("connector", &self.connector),
            ("type", &self.kind),
            ("applicationID", &self.application),
            ("uuid", &self.uuid),
        ];
        request.extend(
            texts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), text(value)?))),
        );
        if REFS[1..].contains(&self.kind.as_str()) {
            request.insert(self.kind.clone(), self.reference.trim().into());
        }
        if let Some(token) = self.token.as_ref().map(Secret::expose).and_then(text) {
            request.insert("token".to_owned(), token);
        }
        if self.force.is_some() {
            request.insert("force".to_owned(), json!(true));
        }
        if !plan.is_empty() {
            request.insert("buildPlan".to_owned(), plan.into());
        }
        Ok(request.into())
    }
}

/// Lines of `NAME=value`. What is wrong is told by its line alone: it may be a credential.
fn values(title: &str, lines: &str) -> Result<Map<String, Value>, String> {
    let lines = lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let value = |(number, line): (usize, &str)| {
        let (name, value) = line.split_once('=').ok_or_else(|| {
            format!("{title}, line {}: write NAME=value, one on a line.", number + 1)
        })?;
        Ok((name.trim().to_owned(), value.into()))
    };
    lines.map(value).collect()
}

/// Which build is asked for once more.
#[derive(Debug, Deserialize)]
pub(super) struct Again {
    of: Option<String>,
    user: Option<String>,
}

pub(super) async fn form(
    State(page): State<Arc<Page>>,
    Extension(visitor): Extension<Visitor>,
    again: Result<Query<Again>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(Again { of, user }) = again?;
    let (of, user) = (said(of), said(user));
    let asked = match &of {
        Some(id) => Asked::again(&page.api.find(id, user.as_deref()).await?),
        None => Asked { user: user.unwrap_or_default(), ..Asked::new() },
    };
    Ok(html(&filled(&visitor, asked, String::new(), of.is_some())))
}

fn filled(visitor: &Visitor, asked: Asked, wrong: String, is_again: bool) -> NewPage {
    let title = if is_again { "Build again" } else { "New build" };
    NewPage {
        frame: visitor.frame("new", title),
        asked,
        wrong,
        is_again,
        forges: FORGES,
        refs: REFS,
        builders: BUILDERS,
    }
}

pub(super) async fn submit(
    State(page): State<Arc<Page>>,
    Posted { form, visitor, .. }: Posted<Asked>,
) -> Result<Response, Refused> {
    let wrong = match form.request() {
        Ok(request) => match page.api.submit(Bytes::from(request.to_string())).await {
            Ok(taken) => {
                let shown = path_of(&taken.build.build_id, taken.build.user_id.as_deref());
                return Ok(Redirect::to(&shown).into_response());
            }
            Err(problem) => match problem.status().as_u16() {
                400 | 409 => problem.detail().to_owned(),
                _ => return Err(problem.into()),
            },
        },
        Err(wrong) => wrong,
    };
    // With another id: the one before may be taken by now.
    let asked = Asked { uuid: Uuid::new_v4().to_string(), ..form };
    let answer = filled(&visitor, asked, plain(&wrong), false);
    let answer = answer.render().expect("a template that was compiled");
    Ok((StatusCode::BAD_REQUEST, Html(answer)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_becomes_the_request_that_the_api_takes() {
        let asked = Asked {
            user: " alice ".to_owned(),
            repo: "alice/shop".to_owned(),
            kind: "tag".to_owned(),
            reference: "v1".to_owned(),
            uuid: "a".to_owned(),
            token: Some(Secret::new("t")),
            force: Some("on".to_owned()),
            root: "web".to_owned(),
            build_args: "A=1\r\n\r\nB = x=y \r\n".to_owned(),
            secrets: Some(Secret::new("npm=s3cret")),
            ..Asked::default()
        };
        assert_eq!(
            asked.request(),
            Ok(json!({
                "userID": "alice", "repo": "alice/shop", "type": "tag", "tag": "v1", "uuid": "a", "token": "t",
                "force": true, "buildPlan": {
                    "rootDirectory": "web", "buildArgs": {"A": "1", "B": " x=y "}, "secrets": {"npm": "s3cret"},
                },
            }))
        );
        assert_eq!(Asked::default().request(), Ok(json!({})));
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_and_not_quoted() {
        let asked = Asked { secrets: Some(Secret::new("a=b\nhunter2")), ..Asked::default() };
        let wrong = asked.request().expect_err("no name");
        assert!(wrong.contains("Secrets, line 2") && !wrong.contains("hunter2"), "{wrong}");
    }
}
