//! The notifier port: who hears how builds ended.

use std::time::Duration;

use futures_util::future::BoxFuture;

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
pub trait Notifier: Send + Sync + 'static {
    fn notify<'a>(
        &'a self,
        notification: &'a Notification,
    ) -> BoxFuture<'a, Result<(), NotifyError>>;
}
