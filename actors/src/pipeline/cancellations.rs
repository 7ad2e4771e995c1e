//! Withdraws the builds that somebody wants to stop.

use serde::Deserialize;
use tokio::sync::mpsc;

use crate::ports;
use crate::scheduling::admission::{Admission, Cancellation};

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "buildID")]
    build_id: String,
    #[serde(rename = "userID", default)]
    user_id: Option<String>,
}

/// Hears cancellations for as long as the broker is there.
pub(super) async fn hear(mut heard: mpsc::Receiver<ports::Cancellation>, admission: Admission) {
    while let Some(ports::Cancellation { body, at }) = heard.recv().await {
        match serde_json::from_slice::<Body>(&body) {
            Ok(Body { build_id, user_id }) => {
                tracing::info!(build_id, user_id, "asked to cancel");
                let user_id = user_id.filter(|id| !id.is_empty());
                admission.cancel(Cancellation { build_id, user_id, at });
            }
            Err(error) => tracing::warn!(%error, "a cancellation cannot be read"),
        }
    }
}
