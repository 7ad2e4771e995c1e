//! Who is served, and whose forms are taken.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Page;
use super::refused::Refused;
use super::view::Frame;
use crate::api::server::Connection;
use crate::api::session::Session;
use crate::api::v1::body;
use crate::api::v1::guard::{self, SEC_FETCH_SITE};
use crate::api::v1::problem::Problem;
use crate::net::address::encoded;
use crate::net::signature::is_same;

/// Longest form, in bytes: more than the longest request, which is written in less.
const LONGEST_FORM: usize = 1 << 20;

/// One who is served: an extension of the request.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    /// What a form has to show; `None` = the request bears the token, which no browser adds by itself.
    pub(super) form_token: Option<String>,
    /// `None` = nobody logs in here, or the request bears the token.
    pub(super) session: Option<Session>,
}

impl Visitor {
    /// What stands around a page for them; `here` is the entry of the menu that it belongs to.
    pub(super) fn frame(&self, here: &'static str, title: impl Into<String>) -> Frame {
        Frame {
            here,
            form_token: self.form_token.clone().unwrap_or_default(),
            is_logged_in: self.session.is_some(),
            has_menu: true,
            ..Frame::bare(title)
        }
    }
}

/// Lets those in who are served, and sends others to the login.
pub(super) async fn admit(
    State(page): State<Arc<Page>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refused> {
    let visitor = match visitor(&page, &request) {
        Ok(visitor) => visitor,
        Err(problem) if problem.status().as_u16() == 401 && request.method() == Method::GET => {
            let wanted = request.uri().path_and_query().map_or("/", |wanted| wanted.as_str());
            let login = match wanted {
                "/" => "/login".to_owned(),
                wanted => format!("/login?next={}", encoded(wanted)),
            };
            return Ok(Redirect::to(&login).into_response());
        }
        Err(problem) => return Err(problem.into()),
    };
    if guard::writes(request.method()) {
        is_own_page(request.headers())?;
        page.api.count_write()?;
    }
    request.extensions_mut().insert(visitor);
    Ok(next.run(request).await)
}

fn visitor(page: &Page, request: &Request) -> Result<Visitor, Problem> {
    let (Some(token), Some(sessions)) = (&page.api.backend.token, &page.api.sessions) else {
        is_here(request)?;
        return Ok(Visitor { form_token: Some(page.form_token.clone()), session: None });
    };
    if let Some(session) = sessions.of_request(request.headers()) {
        let form_token = Some(sessions.form_token(session));
        return Ok(Visitor { form_token, session: Some(session) });
    }
    if request.headers().contains_key(AUTHORIZATION) {
        guard::bears(token, peer(request), request.headers(), &page.api.guesses)?;
        return Ok(Visitor { form_token: None, session: None });
    }
    Err(Problem::unauthorized("Log in first: the session is over, or there was none."))
}

/// Whether a service without a token serves this request.
///
/// # Errors
///
/// Why not.
pub(super) fn is_here(request: &Request) -> Result<(), Problem> {
    guard::is_own(peer(request), request)
}

/// Where a request comes from.
pub(super) fn peer(request: &Request) -> IpAddr {
    let connection = request.extensions().get::<Connection>();
    connection.expect("the server says who asks").peer.ip()
}

/// Whether a form was sent by a page of this service, as far as the browser says so.
///
/// # Errors
///
/// It was not.
pub(super) fn is_own_page(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(SEC_FETCH_SITE).map(|site| site.as_bytes()) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(Problem::forbidden("Pages of other sites may not ask this service.")),
    }
}

/// A form that a page of this service sent.
pub(super) struct Posted<T> {
    pub(super) form: T,
    pub(super) visitor: Visitor,
    pub(super) headers: HeaderMap,
}

/// What every form shows.
#[derive(Deserialize)]
struct Shown {
    #[serde(default)]
    form_token: String,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Posted<T> {
    type Rejection = Refused;

    async fn from_request(mut request: Request, _: &S) -> Result<Self, Refused> {
        let visitor = request.extensions_mut().remove::<Visitor>();
        let visitor = visitor.expect("whoever posts a form was admitted");
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        let shown: Shown = parse(&bytes)?;
        if let Some(right) = &visitor.form_token
            && !is_same(&shown.form_token, right)
        {
            return Err(Refused(Problem::forbidden(
                "This form is not one of your session, or from before the service was started: go back, load the \
                 page anew, and send it again. Nothing was done.",
            )));
        }
        Ok(Self { form: parse(&bytes)?, visitor, headers: parts.headers })
    }
}

/// Reads a form.
///
/// # Errors
///
/// It is too long, or was not sent in time.
pub(super) async fn read(form: Body) -> Result<Vec<u8>, Problem> {
    Ok(body::collect(form, LONGEST_FORM).await?.to_vec())
}

/// What a form says.
///
/// # Errors
///
/// It is none, or not of this kind. What it says is not repeated: it may hold a credential.
pub(super) fn parse<T: DeserializeOwned>(form: &[u8]) -> Result<T, Problem> {
    serde_urlencoded::from_bytes(form).map_err(|_| {
        Problem::bad_request("The form cannot be read: load the page anew, and send it again.")
    })
}
