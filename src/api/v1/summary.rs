//! How many builds there are.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use image_builder_actors::ports::build_store::{BuildState, UserTally};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::problem::Problem;
use super::{Api, json};

/// How many builds there are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Summary {
    /// Builds by their state, of all states that there are.
    #[schema(value_type = std::collections::BTreeMap<String, u64>)]
    states: Map<String, Value>,
    /// The users who have the most builds that have not ended, at most 50 of them.
    users: Vec<UserSummary>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct UserSummary {
    /// Absent where the requests do not say clearly whose they are.
    #[serde(rename = "userID", skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    /// Builds in a queue, or between two attempts.
    waiting: u64,
    /// Builds that a worker has in hand.
    in_hand: u64,
}

/// Count builds
///
/// By state, and by the users whose builds have not ended.
#[utoipa::path(
    get, path = "/v1/summary", tag = "builds", operation_id = "countBuilds",
    responses((status = 200, description = "How many there are.", body = Summary))
)]
pub(super) async fn summary(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let tally = api.backend.store.tally().await?;
    let states = BuildState::ALL.map(|state| (state.as_str().to_owned(), tally.of(state).into()));
    let user = |UserTally { user_id, waiting, in_hand }| UserSummary { user_id, waiting, in_hand };
    let users = tally.users.into_iter().map(user).collect();
    Ok(json(StatusCode::OK, &Summary { states: states.into_iter().collect(), users }))
}
