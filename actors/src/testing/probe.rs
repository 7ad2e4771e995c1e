//! In-memory probe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;

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

impl Probe for FakeProbe {
    fn look(&self, _: Reason) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let full = self.full.load(Ordering::SeqCst);
            if full { Err("the test leaves no room".to_owned()) } else { Ok(()) }
        })
    }

    fn probe(&self, reason: Reason) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.probes.push(reason);
            self.look(reason).await
        })
    }
}
