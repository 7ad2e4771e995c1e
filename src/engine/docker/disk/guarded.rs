//! The engine as the worker uses it: with room, and with a pin on every image that a job has in hand.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{BuildKey, BuiltImage, ImageLocation};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Tripwire;
use image_builder_actors::ports::{BuildOrder, Claim, Exposed, ImageBuilder, Plan};

use super::DiskGuard;
use crate::exposure::shown_step;

/// A build that fills the engine's disk this many times in a row, although there was room when it
/// began, does not fit: it would go on to fail everybody else's builds.
const MOST_STRIKES: u32 = 5;
/// Builds whose strikes are remembered.
const MOST_REMEMBERED: usize = 1000;

#[async_trait]
impl ImageBuilder for DiskGuard {
    async fn inputs(&self, plan: &Plan) -> Result<Option<String>, Fault> {
        self.inner.engine.inputs(plan).await
    }

    async fn build(&self, order: &BuildOrder, progress: &BuildLog) -> Result<ImageLocation, Fault> {
        let inner = &self.inner;
        if let Err(complaint) = self.look().await {
            let message = format!("The build waits for room: {complaint}.");
            return Err(Fault::new(StageName::Builder, Reason::DiskLow, message));
        }
        let pin = inner.pins.pin(order.key.as_str());
        let (built, was_full) = self.watched(inner.engine.build(order, progress)).await;
        match built {
            Ok(location) => {
                inner.strikes.forget(&order.key);
                Ok(match location {
                    ImageLocation::OnEngine(image) => {
                        ImageLocation::OnEngine(BuiltImage { pin, ..image })
                    }
                    elsewhere => elsewhere,
                })
            }
            Err(fault) if fault.reason == Reason::DiskLow => match was_full {
                true => {
                    inner.ran_full.store(true, Ordering::Relaxed);
                    Err(inner.strikes.strike(&order.key).unwrap_or(fault))
                }
                false => Err(not_for_want_of_room(fault)),
            },
            Err(fault) => {
                inner.strikes.forget(&order.key);
                Err(fault)
            }
        }
    }

    async fn find(
        &self,
        key: &BuildKey,
        reference: &ImageReference,
    ) -> Result<Option<BuiltImage>, Fault> {
        // Before the look: what is found must not be pruned in between.
        let pin = self.inner.pins.pin(key.as_str());
        let found = self.inner.engine.find(key, reference).await?;
        Ok(found.map(|image| BuiltImage { pin, ..image }))
    }

    async fn claim(&self) -> Result<Option<Claim>, Fault> {
        self.inner.engine.claim().await
    }

    async fn search(
        &self,
        image: &BuiltImage,
        wanted: &Tripwire,
        files: bool,
        progress: &BuildLog,
    ) -> Result<Option<Exposed>, Fault> {
        self.inner.engine.search(image, wanted, files, progress).await
    }

    async fn push(
        &self,
        image: &BuiltImage,
        reference: &ImageReference,
        progress: &BuildLog,
    ) -> Result<String, Fault> {
        self.inner.engine.push(image, reference, progress).await
    }
}

/// The engine had no space for something of this build, and room on its disk: a file system has limits
/// of its own on what one file may have.
fn not_for_want_of_room(fault: Fault) -> Fault {
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
    /// Counts one more; the last one is the build's own fault.
    fn strike(&self, key: &BuildKey) -> Option<Fault> {
        let mut strikes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if strikes.len() >= MOST_REMEMBERED {
            strikes.clear();
        }
        let count = strikes.entry(key.clone()).or_default();
        *count += 1;
        if *count < MOST_STRIKES {
            return None;
        }
        strikes.remove(key);
        let message = format!(
            "The build needs more disk space than there is: it filled the disk {MOST_STRIKES} times."
        );
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
            assert_eq!(strikes.strike(&large), None);
        }
        assert_eq!(strikes.strike(&unlucky), None);
        let fault = strikes.strike(&large).expect("the last strike");
        assert_eq!(fault.reason, Reason::TooLarge);
        // A build that worked in between begins anew.
        strikes.forget(&unlucky);
        for _ in 1..MOST_STRIKES {
            assert_eq!(strikes.strike(&unlucky), None);
        }
    }
}
