//! The token for a session, and back.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::api::server::Connection;
use crate::api::session::Sessions;
use crate::api::v1::builds::X_FORWARDED_PROTO;
use crate::api::v1::guard::Rate;
use crate::api::v1::problem::Problem;
use crate::net::signature::is_same;

/// Wrong guesses from one address: so many a second, and so many at once.
const GUESSES: (u32, u32) = (1, 10);
/// Addresses that are told apart; where more guess, all of them share one account.
const MOST_GUESSERS: usize = 1000;

/// How often tokens are guessed, by address.
#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<HashMap<Option<IpAddr>, Rate>>);

impl Guesses {
    /// Whether one more guess of this address is looked at.
    fn admits(&self, peer: IpAddr) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = Some(peer.to_canonical());
        if !known.contains_key(&peer) && known.len() >= MOST_GUESSERS {
            known.retain(|_, rate| !rate.is_full());
        }
        let peer = peer.filter(|_| known.len() < MOST_GUESSERS || known.contains_key(&peer));
        let (a_second, at_once) = GUESSES;
        known.entry(peer).or_insert_with(|| Rate::new(a_second, at_once)).admits()
    }
}

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
    let connection = request.extensions().get::<Connection>();
    let peer = connection.expect("the server says who asks").peer.ip();
    let is_https = is_https(request.headers());
    let form = visitor::read(request.into_body()).await?;
    let Login { token: shown, next } = visitor::parse(&form)?;
    if !page.guesses.admits(peer) {
        let detail =
            "Too many tokens were tried from your address: wait a few seconds, and try again.";
        return Err(Refused(Problem::too_many(detail)));
    }
    if !is_same(shown.expose(), token.expose()) {
        tracing::warn!(%peer, "a wrong token was tried at the login");
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

    #[test]
    fn who_guesses_too_often_keeps_out_nobody_else() {
        let guesses = Guesses::default();
        let [one, other]: [IpAddr; 2] =
            ["192.0.2.1", "::ffff:192.0.2.2"].map(|ip| ip.parse().expect("an address"));
        let tried: Vec<_> = (0..12).map(|_| guesses.admits(one)).collect();
        assert_eq!(tried.iter().filter(|admitted| **admitted).count(), 10);
        assert!(guesses.admits(other));
        // More than can be told apart: those who come last share one account, and the known keep theirs.
        for number in 0..2 * MOST_GUESSERS as u32 {
            guesses.admits(IpAddr::V4(number.into()));
        }
        assert!(guesses.0.lock().expect("nobody panics with it").len() <= MOST_GUESSERS + 1);
        assert!(
            !guesses.admits("198.51.100.1".parse().expect("an address")),
            "the shared one is used up"
        );
        assert!(guesses.admits(other));
    }
}
