//! In-memory probe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::script::Record;
use crate::model::fault::Reason;
use crate::ports::Probe;

/// A probe that finds room until a test says that there is none. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct FakeProbe {
    full: Arc<AtomicBool>,
    /// What was made room for so far: a look alone is no entry.
    pub probes: Record<Reason>,
}

impl FakeProbe {
    /// Whether every look from now on finds room.
    pub fn set_room(&self, room: bool) {
        self.full.store(!room, Ordering::SeqCst);
    }
}

#[async_trait]
impl Probe for FakeProbe {
    async fn look(&self, _: Reason) -> Result<(), String> {
        let full = self.full.load(Ordering::SeqCst);
        if full { Err("the test leaves no room".to_owned()) } else { Ok(()) }
    }

    async fn probe(&self, reason: Reason) -> Result<(), String> {
        self.probes.push(reason);
        self.look(reason).await
    }
}
