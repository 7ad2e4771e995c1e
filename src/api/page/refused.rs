//! Errors, as pages.

use askama::Template;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::response::{Html, IntoResponse, Response};
use image_builder_actors::ports::build_store::StoreError;

use super::view::Frame;
use crate::api::v1::problem::Problem;
use crate::text::plain;

/// Why there is no such page, or why something was not done.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Problem);

#[derive(Template)]
#[template(path = "refused.html")]
struct RefusedPage<'a> {
    frame: Frame,
    title: &'a str,
    detail: String,
    /// Another try may do.
    is_passing: bool,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = self.0.status();
        let title = match status.as_u16() {
            404 => "Not found",
            503 => "Not available",
            _ => status.canonical_reason().unwrap_or("Error"),
        };
        let page = RefusedPage {
            frame: Frame::bare(title),
            title,
            detail: plain(self.0.detail()),
            is_passing: matches!(status.as_u16(), 429 | 503),
        };
        let page = page.render().expect("a template that was compiled");
        let mut response = (status, Html(page)).into_response();
        if let Some((name, value)) = self.0.into_header() {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self(error.into())
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        Self(rejection.into())
    }
}

impl From<PathRejection> for Refused {
    fn from(rejection: PathRejection) -> Self {
        Self(rejection.into())
    }
}

pub(super) async fn other_method() -> Refused {
    Refused(Problem::method_not_allowed("GET, HEAD"))
}
