//! What would be built.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::problem::{self, Problem};
use super::{Api, body, json, schema};
use crate::api::plans::ShownPlan;
use crate::api::server::Connection;

/// Show what would be built
///
/// The body is the one of a build. The worker that is asked fetches the source and plans, as a build does, and builds
/// nothing. To build what was shown, ask for its `commit`.
#[utoipa::path(
    post, path = "/v1/plan", tag = "builds", operation_id = "planBuild",
    request_body(content = schema::Request, content_type = "application/json"),
    responses(
        (status = 200, description = "What would be built.", body = ShownPlan),
        (status = 422, description = "There is no plan: the build would fail so.",
            body = problem::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn plan(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = body::read(&headers, body, api.backend.rules.limits.request_bytes).await?;
    let (request, _) = api.read(&body)?;
    let _hold = connection.hold();
    let plan = api.plans.plan(None, request).await?;
    Ok(json(StatusCode::OK, &plan))
}
