//! In-memory probe.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::model::fault::Reason;
use crate::ports::Probe;

/// A probe that finds room unless it was told to find none. Clones share everything.
#[derive(Debug, Clone)]
pub struct FakeProbe {
    room: Arc<watch::Sender<bool>>,
    looks: Arc<watch::Sender<Vec<Reason>>>,
}

impl Default for FakeProbe {
    fn default() -> Self {
        Self { room: Arc::new(watch::Sender::new(true)), looks: Arc::default() }
    }
}

impl FakeProbe {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether every look from now on finds room.
    pub fn set_room(&self, room: bool) {
        self.room.send_replace(room);
    }

    /// What was looked for so far.
    pub fn looks(&self) -> Vec<Reason> {
        self.looks.borrow().clone()
    }

    /// Waits until `count` looks were taken.
    pub async fn wait_for_looks(&self, count: usize) {
        // The sender lives in `self`.
        let _ = self.looks.subscribe().wait_for(|looks| looks.len() >= count).await;
    }
}

#[async_trait]
impl Probe for FakeProbe {
    async fn probe(&self, reason: Reason) -> Result<(), String> {
        let room = *self.room.borrow();
        self.looks.send_modify(|looks| looks.push(reason));
        if room { Ok(()) } else { Err("the test leaves no room".to_owned()) }
    }
}
