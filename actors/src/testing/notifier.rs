//! In-memory notifier.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::sync::watch;

use super::script::{Gate, Script};
use crate::model::notification::Notification;
use crate::ports::{Notifier, NotifyError};

/// Managers in memory that remember what they were told. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct FakeNotifier {
    script: Script<NotifyError>,
    calls: Arc<AtomicUsize>,
    told: watch::Sender<Vec<Notification>>,
}

impl FakeNotifier {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `calls` notifications are not taken.
    pub fn fail(&self, calls: usize, error: NotifyError) {
        self.script.fail(calls, error);
    }

    /// The next notification makes the notifier panic.
    pub fn panic(&self) {
        self.script.panic();
    }

    /// The next notification waits at a gate.
    pub fn hold(&self) -> Gate {
        self.script.wait()
    }

    /// What was taken, in order.
    pub fn told(&self) -> Vec<Notification> {
        self.told.borrow().clone()
    }

    /// Waits until `count` notifications were taken.
    pub async fn wait_for(&self, count: usize) -> Vec<Notification> {
        let mut told = self.told.subscribe();
        let all = told.wait_for(|told| told.len() >= count).await;
        all.expect("this value holds the sender").clone()
    }

    /// How often it was tried, failures included.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Notifier for FakeNotifier {
    async fn notify(&self, notification: &Notification) -> Result<(), NotifyError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.script.play().await?;
        self.told.send_modify(|told| told.push(notification.clone()));
        Ok(())
    }
}
