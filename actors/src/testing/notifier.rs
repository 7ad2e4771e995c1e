//! In-memory notifier.

use futures_util::future::BoxFuture;

use super::script::{Record, Script};
use crate::model::notification::Notification;
use crate::ports::{Notifier, NotifyError};

/// Managers in memory that remember what they were notified of. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct FakeNotifier {
    pub script: Script<NotifyError>,
    /// The notifications that came, those that were not taken included.
    pub calls: Record<Notification>,
    /// The notifications that were taken.
    pub taken: Record<Notification>,
}

impl Notifier for FakeNotifier {
    fn notify<'a>(
        &'a self,
        notification: &'a Notification,
    ) -> BoxFuture<'a, Result<(), NotifyError>> {
        Box::pin(async move {
            self.calls.push(notification.clone());
            self.script.play().await?;
            self.taken.push(notification.clone());
            Ok(())
        })
    }
}
