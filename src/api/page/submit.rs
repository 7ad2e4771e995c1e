//! The form that asks for a build. It can show first what would be built; what is built then is the very commit that
//! was planned.

use std::sync::Arc;

use askama::Template;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::build_store::StoredBuild;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Page;
use super::refused::Refused;
use super::view::{Frame, grouped, html, path_of, readable, size};
use super::visitor::{Posted, Visitor};
use crate::api::plans::{ShownContext, ShownPlan};
use crate::api::server::Connection;
use crate::api::v1::builds::said;
use crate::api::v1::problem::Problem;
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
    /// What would be built.
    plan: Option<PlanView>,
    /// Whether it is asked for again what was built before.
    is_again: bool,
    forges: [&'static str; 5],
    refs: [&'static str; 5],
    builders: [&'static str; 3],
}

/// A plan, as it is shown.
struct PlanView {
    /// What it is kept by.
    id: String,
    plan: ShownPlan,
    because: String,
    /// `3 files, 1.2 MB`.
    context: String,
    text: String,
}

impl PlanView {
    fn new(id: String, mut plan: ShownPlan) -> Self {
        // Strangers' words, in part.
        let texts = [&mut plan.dockerfile.path].into_iter().chain(&mut plan.base_images);
        texts.chain(&mut plan.warnings).for_each(|text| *text = plain(text));
        let ShownContext { files, bytes } = plan.context;
        let files_are = if files == 1 { "file" } else { "files" };
        Self {
            id,
            because: plain(&plan.because),
            context: format!("{} {files_are}, {}", grouped(files), size(bytes)),
            text: readable(plan.dockerfile.text.as_bytes()),
            plan,
        }
    }

    /// What has a name and several values, where there are any.
    fn lists(&self) -> Vec<(&'static str, String)> {
        let plan = &self.plan;
        let platforms = plan.platforms.iter().map(|name| (*name).to_owned()).collect();
        let lists = [
            ("Build arguments", &plan.build_args),
            ("Secrets", &plan.secrets),
            ("Platforms", &platforms),
        ];
        let lists = lists.into_iter().filter(|(_, values)| !values.is_empty());
        lists.map(|(name, values)| (name, plain(&values.join(", ")))).collect()
    }
}

/// What the form is sent for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wish {
    #[default]
    Build,
    Plan,
}

/// What the form asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    wish: Wish,
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

    /// The same once more: the id may be taken by now.
    fn with_another_id(self) -> Self {
        Self { uuid: Uuid::new_v4().to_string(), ..self }
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
    let mut filled = filled(&visitor, asked);
    if of.is_some() {
        filled.is_again = true;
        filled.frame.title = "Build again".to_owned();
    }
    Ok(html(&filled))
}

fn filled(visitor: &Visitor, asked: Asked) -> NewPage {
    NewPage {
        frame: visitor.frame("new", "New build"),
        asked,
        wrong: String::new(),
        plan: None,
        is_again: false,
        forges: FORGES,
        refs: REFS,
        builders: BUILDERS,
    }
}

pub(super) async fn submit(
    State(page): State<Arc<Page>>,
    Extension(connection): Extension<Connection>,
    Posted { form, visitor, .. }: Posted<Asked>,
) -> Result<Response, Refused> {
    let _hold = connection.hold();
    let done = match (form.request(), form.wish) {
        (Ok(request), Wish::Build) => page.build(request.to_string()).await,
        (Ok(request), Wish::Plan) => match page.plan(&visitor, request).await {
            Ok(plan) => {
                let shown =
                    NewPage { plan: Some(plan), ..filled(&visitor, form.with_another_id()) };
                return Ok(html(&shown));
            }
            Err(problem) => Err(problem),
        },
        (Err(wrong), _) => Err(Problem::bad_request(wrong)),
    };
    let problem = match done {
        Ok(shown) => return Ok(shown),
        Err(problem) => problem,
    };
    let status = problem.status();
    if !matches!(status.as_u16(), 400 | 409 | 422) && form.wish == Wish::Build {
        return Err(problem.into());
    }
    let wrong = plain(problem.detail());
    let answer = NewPage { wrong, ..filled(&visitor, form.with_another_id()) };
    let answer = answer.render().expect("a template that was compiled");
    let mut answer = (status, Html(answer)).into_response();
    answer.headers_mut().extend(problem.into_header());
    Ok(answer)
}

/// Which plan is built.
#[derive(Debug, Deserialize)]
pub(super) struct Kept {
    plan: String,
}

pub(super) async fn submit_planned(
    State(page): State<Arc<Page>>,
    Posted { form: Kept { plan }, visitor, .. }: Posted<Kept>,
) -> Result<Response, Refused> {
    let request = page.planned.request(&plan, visitor.session).ok_or_else(|| {
        Problem::not_found(
            "This plan is not kept any more: the worker that makes one keeps it for ten minutes. Fill the form again.",
        )
    })?;
    Ok(page.build(request.expose().to_owned()).await?)
}

impl Page {
    /// Asks for a build, and leads to it.
    async fn build(&self, request: String) -> Result<Response, Problem> {
        let taken = self.api.submit(Bytes::from(request)).await?;
        let shown = path_of(&taken.build.build_id, taken.build.user_id.as_deref());
        Ok(Redirect::to(&shown).into_response())
    }

    /// Makes a plan, and keeps the request that builds the commit of it.
    async fn plan(&self, visitor: &Visitor, mut request: Value) -> Result<PlanView, Problem> {
        let (read, _) = self.api.read(request.to_string().as_bytes())?;
        let plan = self.api.plans.plan(visitor.session, read).await?;
        request["type"] = json!("commit");
        request["commit"] = json!(plan.commit);
        let id = self.planned.keep(Secret::new(request.to_string()), visitor.session);
        Ok(PlanView::new(id, plan))
    }
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
