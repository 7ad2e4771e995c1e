//! The notifier port: who hears how builds ended.

use std::time::Duration;

use async_trait::async_trait;

use crate::model::notification::Notification;

/// Why a notification was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotifyError {
    pub message: String,
    /// How long the receiver asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// Notifies the managers of how builds ended.
#[async_trait]
pub trait Notifier: Send + Sync + 'static {
    async fn notify(&self, notification: &Notification) -> Result<(), NotifyError>;
}
