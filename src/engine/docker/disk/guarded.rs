//! The engine as the worker uses it: with room, and with a pin on every image that a job has in hand.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{BuildKey, BuiltImage, ImageLocation};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Tripwire;
use image_builder_actors::ports::{BuildOrder, Claim, Exposed, ImageBuilder, Plan};
use tokio::time::Instant;

use super::DiskGuard;
use super::size::Size;
use crate::exposure::shown_step;

/// A build with this many strikes in a row does not fit, although there was room when it began: it would go on to
/// fail everybody else's builds.
const MOST_STRIKES: u32 = 5;
/// Strikes of a build that was seen to be the one that filled the disk. Of others that is not known. Each time it has
/// twice the room of the time before, if so much could be pruned.
const PROVEN: u32 = 2;
/// How often a build that found the disk full begins again before it waits in the queue for room.
const MOST_FULL: u32 = 2;
/// A step that fails within this time of a full disk failed for want of room.
const JUST_NOW: Duration = Duration::from_secs(2);
/// Builds whose strikes are remembered.
const MOST_REMEMBERED: usize = 1000;

impl ImageBuilder for DiskGuard {
    fn inputs<'a>(&'a self, plan: &'a Plan) -> BoxFuture<'a, Result<Option<String>, Fault>> {
        self.inner.engine.inputs(plan)
    }

    fn build<'a>(
        &'a self,
        order: &'a BuildOrder,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<ImageLocation, Fault>> {
        Box::pin(async move {
            let inner = &self.inner;
            if self.look().await.is_err() {
                self.make_room().await.map_err(waits_for_room)?;
            }
            let pin = inner.pins.pin(order.key.as_str());
            let mut found_full = 0;
            loop {
                match self.watched(inner.engine.build(order, progress)).await {
                    Ok(ImageLocation::OnEngine(image)) => {
                        inner.strikes.forget(&order.key);
                        return Ok(ImageLocation::OnEngine(BuiltImage { pin, ..image }));
                    }
                    Ok(elsewhere) => {
                        inner.strikes.forget(&order.key);
                        return Ok(elsewhere);
                    }
                    Err(Unbuilt::Fault(fault)) => {
                        inner.strikes.forget(&order.key);
                        return Err(fault);
                    }
                    Err(Unbuilt::ForWantOfRoom { fault, part }) => {
                        if let Some(fault) = inner.strikes.strike(&order.key, part) {
                            return Err(fault);
                        }
                        match part {
                            Part::Filled(proof) => self.make_room_for(proof.taken).await,
                            Part::Cleared => {}
                            Part::FoundFull => {
                                inner.ran_full.store(true, Ordering::Relaxed);
                                if found_full == MOST_FULL {
                                    return Err(fault);
                                }
                                found_full += 1;
                            }
                        }
                        self.has_room_again().await.map_err(waits_for_room)?;
                        progress.note("the engine's disk ran full: there is room again, and the build begins anew");
                    }
                }
            }
        })
    }

    fn find<'a>(
        &'a self,
        key: &'a BuildKey,
        reference: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<BuiltImage>, Fault>> {
        Box::pin(async move {
            // Before the look: what is found must not be pruned in between.
            let pin = self.inner.pins.pin(key.as_str());
            let found = self.inner.engine.find(key, reference).await?;
            Ok(found.map(|image| BuiltImage { pin, ..image }))
        })
    }

    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, Fault>> {
        self.inner.engine.claim()
    }

    fn search<'a>(
        &'a self,
        image: &'a BuiltImage,
        wanted: &'a Tripwire,
        files: bool,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>> {
        self.inner.engine.search(image, wanted, files, progress)
    }

    fn push<'a>(
        &'a self,
        image: &'a BuiltImage,
        reference: &'a ImageReference,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<String, Fault>> {
        self.inner.engine.push(image, reference, progress)
    }
}

fn waits_for_room(complaint: String) -> Fault {
    let message = format!("The build waits for room: {complaint}.");
    Fault::new(StageName::Builder, Reason::DiskLow, message)
}

/// What became of a build that made no image.
pub(super) enum Unbuilt {
    Fault(Fault),
    /// The engine's disk ran full while it ran, or was about to. The fault is `disk_low`.
    ForWantOfRoom {
        fault: Fault,
        part: Part,
    },
}

/// What a build had to do with that.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// It filled the disk.
    Filled(Proof),
    /// It found the disk full. Who filled it is not known.
    FoundFull,
    /// It was stopped, and was not the one.
    Cleared,
}

/// That a build filled the disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proof {
    /// Bytes that it had taken.
    pub(super) taken: u64,
    /// Bytes that it left.
    pub(super) left: u64,
}

/// What a fault says of a build on a disk that was last seen to be full then. A step that finds no room says so in
/// its output alone, if at all.
pub(super) fn unbuilt(fault: Fault, full: Option<Instant>) -> Unbuilt {
    match (fault.reason, full) {
        (Reason::DiskLow, Some(_)) => Unbuilt::ForWantOfRoom { fault, part: Part::FoundFull },
        (Reason::DiskLow, None) => Unbuilt::Fault(not_for_want_of_room(fault)),
        (Reason::BuildFailed, Some(at)) if at.elapsed() < JUST_NOW => {
            let message = format!("{} The engine's disk was full then.", fault.message);
            let fault = Fault { reason: Reason::DiskLow, message, ..fault };
            Unbuilt::ForWantOfRoom { fault, part: Part::FoundFull }
        }
        _ => Unbuilt::Fault(fault),
    }
}

/// The engine had no space for something of this build, and room on its disk: a file system has limits
/// of its own on what one file may have.
pub(super) fn not_for_want_of_room(fault: Fault) -> Fault {
    let step = match &fault.step {
        Some(step) => format!("Step `{}`", shown_step(step)),
        None => "The build".to_owned(),
    };
    let message = format!(
        "{step} failed: no space left on device, although the engine's disk has room. Most likely a \
         file has more extended attributes than a file system takes."
    );
    Fault { reason: Reason::BuildFailed, message, ..fault }
}

/// How often in a row each build filled the engine's disk.
#[derive(Default)]
pub(super) struct Strikes(Mutex<HashMap<BuildKey, u32>>);

impl Strikes {
    /// Counts one more, or several where it is proven; with the last one it is the build's own fault.
    fn strike(&self, key: &BuildKey, part: Part) -> Option<Fault> {
        let more = match part {
            Part::Filled(_) => PROVEN,
            Part::FoundFull => 1,
            Part::Cleared => return None,
        };
        let mut strikes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if strikes.len() >= MOST_REMEMBERED {
            strikes.clear();
        }
        let count = strikes.entry(key.clone()).or_default();
        *count += more;
        if *count < MOST_STRIKES {
            return None;
        }
        strikes.remove(key);
        let how = match part {
            Part::Filled(Proof { taken, left }) => format!(
                "it was stopped when it had taken {}, and the engine's disk had {} left",
                Size(taken),
                Size(left)
            ),
            _ => "the engine's disk ran full again and again while it ran".to_owned(),
        };
        let message = format!("The build needs more disk space than there is: {how}.");
        Some(Fault::new(StageName::Builder, Reason::TooLarge, message))
    }

    fn forget(&self, key: &BuildKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> BuildKey {
        serde_json::from_value(text.into()).expect("a key is a string")
    }

    #[test]
    fn a_build_that_never_fits_becomes_its_owners_fault() {
        let strikes = Strikes::default();
        let (large, unlucky) = (key("large"), key("unlucky"));
        for _ in 1..MOST_STRIKES {
            assert_eq!(strikes.strike(&large, Part::FoundFull), None);
        }
        assert_eq!(strikes.strike(&unlucky, Part::FoundFull), None);
        let fault = strikes.strike(&large, Part::FoundFull).expect("the last strike");
        assert_eq!(fault.reason, Reason::TooLarge);
        // A build that worked in between begins anew.
        strikes.forget(&unlucky);
        for _ in 1..MOST_STRIKES {
            assert_eq!(strikes.strike(&unlucky, Part::FoundFull), None);
        }
    }

    #[test]
    fn a_step_that_fails_on_a_full_disk_failed_for_want_of_room() {
        let fault = |reason| Fault::new(StageName::Builder, reason, "Step `RUN x` failed.");
        let now = Some(Instant::now());
        let long_ago = now.and_then(|now| now.checked_sub(JUST_NOW));
        let reason = |reason, full| match unbuilt(fault(reason), full) {
            Unbuilt::ForWantOfRoom { fault, .. } => (true, fault.reason),
            Unbuilt::Fault(fault) => (false, fault.reason),
        };
        assert_eq!(reason(Reason::BuildFailed, now), (true, Reason::DiskLow));
        assert_eq!(reason(Reason::BuildFailed, long_ago), (false, Reason::BuildFailed));
        assert_eq!(reason(Reason::BuildFailed, None), (false, Reason::BuildFailed));
        assert_eq!(reason(Reason::DiskLow, long_ago), (true, Reason::DiskLow));
        assert_eq!(reason(Reason::DiskLow, None), (false, Reason::BuildFailed));
        assert_eq!(reason(Reason::Cancelled, now), (false, Reason::Cancelled));
    }

    #[test]
    fn a_build_that_was_seen_to_fill_the_disk_may_do_so_twice() {
        let (strikes, large) = (Strikes::default(), key("large"));
        let filled = Part::Filled(Proof { taken: 3_000_000, left: 1_000 });
        for _ in 0..2 {
            assert_eq!(strikes.strike(&large, filled), None);
            assert_eq!(strikes.strike(&large, Part::Cleared), None);
        }
        let fault = strikes.strike(&large, filled).expect("the third time");
        assert_eq!(fault.reason, Reason::TooLarge);
        let said =
            "it was stopped when it had taken 3.0 MB, and the engine's disk had 1.0 KB left.";
        assert!(fault.message.ends_with(said), "{fault}");
    }
}
