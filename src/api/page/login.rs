//! The token for a session, and back.

use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, Request, State};
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use image_builder_actors::model::secret::Secret;
use serde::Deserialize;

use super::Page;
use super::refused::Refused;
use super::view::{Frame, html};
use super::visitor::{self, Posted};
use crate::api::session::Sessions;
use crate::api::v1::builds::X_FORWARDED_PROTO;
use crate::api::v1::problem::Problem;
use crate::net::signature::is_same;

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    frame: Frame,
    next: String,
    is_wrong: bool,
}

#[derive(Deserialize)]
pub(super) struct Login {
    token: Secret,
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    next: String,
}

pub(super) async fn form(
    State(page): State<Arc<Page>>,
    Query(Wanted { next }): Query<Wanted>,
    request: Request,
) -> Result<Response, Refused> {
    let Some(sessions) = &page.api.sessions else {
        visitor::is_here(&request)?;
        return Ok(Redirect::to("/").into_response());
    };
    if sessions.of_request(request.headers()).is_some() {
        return Ok(Redirect::to(&own_path(&next)).into_response());
    }
    Ok(html(&LoginPage { frame: Frame::bare("Log in"), next, is_wrong: false }))
}

pub(super) async fn log_in(
    State(page): State<Arc<Page>>,
    request: Request,
) -> Result<Response, Refused> {
    visitor::is_own_page(request.headers())?;
    let (Some(token), Some(sessions)) = (&page.api.backend.token, &page.api.sessions) else {
        return Err(Refused(Problem::not_found(
            "Nobody logs in here: this service has no API_TOKEN.",
        )));
    };
    let peer = visitor::peer(&request);
    let is_https = is_https(request.headers());
    let form = visitor::read(request.into_body()).await?;
    let Login { token: shown, next } = visitor::parse(&form)?;
    if !page.api.guesses.is_right(peer, || is_same(shown.expose(), token.expose()))? {
        let page = LoginPage { frame: Frame::bare("Log in"), next, is_wrong: true };
        let page = page.render().expect("a template that was compiled");
        return Ok((StatusCode::UNAUTHORIZED, Html(page)).into_response());
    }
    let cookie = sessions.cookie(sessions.begin(), is_https);
    Ok(([(SET_COOKIE, cookie)], Redirect::to(&own_path(&next))).into_response())
}

pub(super) async fn log_out(
    State(page): State<Arc<Page>>,
    Posted { visitor, headers, .. }: Posted<HashMap<String, String>>,
) -> Response {
    if let (Some(sessions), Some(session)) = (&page.api.sessions, visitor.session) {
        sessions.end(session);
    }
    let cookie = Sessions::no_cookie(is_https(&headers));
    ([(SET_COOKIE, cookie)], Redirect::to("/login")).into_response()
}

/// Whether the browser speaks to a proxy that has a certificate.
fn is_https(headers: &HeaderMap) -> bool {
    headers.get(X_FORWARDED_PROTO).is_some_and(|proto| proto == "https")
}

/// Where to go on: nowhere but here, whatever an address of somebody else's says.
fn own_path(next: &str) -> String {
    let is_path = next.starts_with('/') && !next.starts_with("//");
    let is_plain = next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_path && is_plain { next.to_owned() } else { "/".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_login_nobody_is_sent_elsewhere() {
        for own in ["/", "/builds/a?user=b%20c", "/dead?fault=user#x"] {
            assert_eq!(own_path(own), own);
        }
        for foreign in [
            "",
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "/\t/evil",
            "evil",
            "/a\r\nb: c",
        ] {
            assert_eq!(own_path(foreign), "/", "{foreign:?}");
        }
    }
}
