//! Errors, as RFC 9457 writes them.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::ports::build_store::StoreError;
use image_builder_actors::ports::{BrokerError, DeadLettersError};
use serde::Serialize;
use utoipa::ToSchema;

/// The media type of a problem.
pub(super) const PROBLEM: &str = "application/problem+json";

/// Why a request was not done. The detail says what to do, and holds no credential.
#[derive(Debug)]
pub(in crate::api) struct Problem {
    status: StatusCode,
    detail: String,
    reason: Option<Reason>,
    header: Option<(HeaderName, HeaderValue)>,
}

/// Why a request was not done.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Body<'a> {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    status: u16,
    /// One or more sentences: what is wrong, and what to do.
    detail: &'a str,
    /// Of a build request: the reason that a `build.failed` notification would have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    reason: Option<Reason>,
}

impl Problem {
    pub(in crate::api) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), reason: None, header: None }
    }

    pub(in crate::api) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(in crate::api) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(in crate::api) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    pub(in crate::api) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// Another try in so many seconds may do.
    pub(in crate::api) fn unavailable(detail: impl Into<String>, seconds: u16) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).with(RETRY_AFTER, seconds.into())
    }

    pub(in crate::api) fn too_many(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail).with(RETRY_AFTER, 1_u16.into())
    }

    pub(in crate::api) fn unauthorized(detail: impl Into<String>) -> Self {
        let scheme = HeaderValue::from_static("Bearer");
        Self::new(StatusCode::UNAUTHORIZED, detail).with(WWW_AUTHENTICATE, scheme)
    }

    /// The method is none that the route has.
    pub(in crate::api) fn method_not_allowed(allowed: &'static str) -> Self {
        let detail = format!("Only {allowed} may be asked for here.");
        let allowed = HeaderValue::from_static(allowed);
        Self::new(StatusCode::METHOD_NOT_ALLOWED, detail).with(ALLOW, allowed)
    }

    /// A range of something that has so many bytes.
    pub(in crate::api) fn range_not_satisfiable(total: u64) -> Self {
        let detail =
            format!("The log has {total} bytes by now, and ends before what was asked for.");
        let range = HeaderValue::try_from(format!("bytes */{total}"));
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, detail)
            .with(CONTENT_RANGE, range.expect("a number is text"))
    }

    /// A build request that breaks a rule.
    pub(in crate::api) fn rejected(reason: Reason, detail: impl Into<String>) -> Self {
        Self::bad_request(detail).because_of(reason)
    }

    /// There is no plan of a request that keeps the rules.
    pub(in crate::api) fn unplannable(fault: &Fault) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, fault.message.clone()).because_of(fault.reason)
    }

    /// The same, with the reason that a notification would have.
    pub(in crate::api) fn because_of(self, reason: Reason) -> Self {
        Self { reason: Some(reason), ..self }
    }

    fn with(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    /// What is wrong, and what to do.
    pub(in crate::api) fn detail(&self) -> &str {
        &self.detail
    }

    /// What is said beside it.
    pub(in crate::api) fn into_header(self) -> Option<(HeaderName, HeaderValue)> {
        self.header
    }

    /// What is answered.
    pub(in crate::api) fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            reason: self.reason,
        };
        let text = serde_json::to_string(&body).expect("a problem has only string keys");
        let mut response = (self.status, [(CONTENT_TYPE, PROBLEM)], text + "\n").into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => {
                tracing::warn!(%error, "the API cannot be served");
                Self::unavailable(format!("What is known of builds cannot be had: {error}."), 5)
            }
            StoreError::Refused(why) => Self::not_found(format!("There is no such page: {why}.")),
        }
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Self {
        tracing::warn!(%error, "the API cannot be served");
        Self::unavailable(format!("The queue did not take it: {error}."), 5)
    }
}

impl From<DeadLettersError> for Problem {
    fn from(error: DeadLettersError) -> Self {
        match error {
            DeadLettersError::Busy(why) => Self::unavailable(why, 1),
            DeadLettersError::Refused(why) | DeadLettersError::Unavailable(why) => {
                Self::unavailable(why, 5)
            }
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(format!("{}.", rejection.body_text()))
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(format!("{}.", rejection.body_text()))
    }
}
