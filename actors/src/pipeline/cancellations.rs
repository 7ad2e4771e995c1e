//! Withdraws the builds that somebody wants to stop.

use serde::Deserialize;
use tokio::sync::mpsc;

use crate::ports;
use crate::scheduling::admission::Admission;

#[derive(Deserialize)]
struct Cancellation {
    #[serde(rename = "buildID")]
    build_id: String,
}

/// Hears cancellations for as long as the broker is there.
pub(super) async fn hear(mut heard: mpsc::Receiver<ports::Cancellation>, admission: Admission) {
    while let Some(ports::Cancellation { body, .. }) = heard.recv().await {
        match serde_json::from_slice::<Cancellation>(&body) {
            Ok(Cancellation { build_id }) => {
                tracing::info!(build_id, "asked to cancel");
                admission.cancel(&build_id);
            }
            Err(error) => tracing::warn!(%error, "a cancellation cannot be read"),
        }
    }
}
