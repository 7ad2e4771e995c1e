//! In-memory registry.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::script::{Gate, Script};
use crate::delivery::artifacts::{BUILDER_LABEL, REVISION_LABEL};
use crate::model::build_log::BuildLog;
use crate::model::digest::hex;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::image::{BuiltImage, RegistryImage};
use crate::model::reference::ImageReference;
use crate::ports::Registry;

/// What every image weighs here, in bytes.
const SIZE: u64 = 1_000;

/// A registry in memory, whose engine has every image except the forgotten ones. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeRegistry {
    state: Arc<Mutex<State>>,
    pushes: Script<Fault>,
    pushed: watch::Sender<Vec<Push>>,
}

#[derive(Debug, Default)]
struct State {
    /// By `repository:tag` and `repository:digest`, each with its registry before it.
    images: HashMap<String, RegistryImage>,
    /// The labels of each image, by its digest.
    labels: HashMap<String, BTreeMap<String, String>>,
    forgotten: HashSet<String>,
    down: Option<Fault>,
    finds: usize,
}

/// One push that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    pub image: BuiltImage,
    pub reference: ImageReference,
    pub further_tags: Vec<String>,
}

impl FakeRegistry {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `calls` pushes fail.
    pub fn fail_pushes(&self, calls: usize, fault: Fault) {
        self.pushes.fail(calls, fault);
    }

    /// The next push waits at a gate.
    pub fn hold_push(&self) -> Gate {
        self.pushes.wait()
    }

    /// Every call fails until it is called with `None`.
    pub fn set_down(&self, fault: Option<Fault>) {
        self.lock().down = fault;
    }

    /// The engine no longer has this image.
    pub fn forget(&self, image_id: &str) {
        self.lock().forgotten.insert(image_id.to_owned());
    }

    /// Every push that succeeded, in order.
    pub fn pushed(&self) -> Vec<Push> {
        self.pushed.borrow().clone()
    }

    /// How often something was looked up, failed calls included.
    pub fn finds(&self) -> usize {
        self.lock().finds
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Registry for FakeRegistry {
    async fn find(&self, reference: &ImageReference) -> Result<Option<RegistryImage>, Fault> {
        self.lock().finds += 1;
        let state = self.lock();
        match &state.down {
            Some(fault) => Err(fault.clone()),
            None => Ok(state.images.get(&reference.to_string()).cloned()),
        }
    }

    async fn push(
        &self,
        image: &BuiltImage,
        reference: &ImageReference,
        further_tags: &[String],
        progress: &BuildLog,
    ) -> Result<RegistryImage, Fault> {
        self.pushes.play().await?;
        let stored = RegistryImage {
            digest: format!("sha256:{}", hex(&Sha256::digest(&image.id))),
            image_id: image.id.clone(),
            size_bytes: SIZE,
        };
        {
            let mut state = self.lock();
            if let Some(fault) = &state.down {
                return Err(fault.clone());
            }
            if state.forgotten.contains(&image.id) {
                let message = format!("cannot push `{reference}`: no such image");
                return Err(Fault::new(StageName::Pusher, Reason::EngineFailed, message));
            }
            let own_tags = [&reference.tag, &stored.digest];
            for tag in own_tags.into_iter().chain(further_tags) {
                state.images.insert(reference.with_tag(tag).to_string(), stored.clone());
            }
            let labels =
                [(REVISION_LABEL, &*reference.tag), (BUILDER_LABEL, image.builder.as_str())];
            let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
            state.labels.insert(stored.digest.clone(), labels.into());
        }
        progress.note(format!("pushed {reference}"));
        self.pushed.send_modify(|pushed| {
            pushed.push(Push {
                image: image.clone(),
                reference: reference.clone(),
                further_tags: further_tags.to_vec(),
            });
        });
        Ok(stored)
    }

    async fn tag(
        &self,
        image: &RegistryImage,
        reference: &ImageReference,
        further_tags: &[String],
    ) -> Result<(), Fault> {
        let mut state = self.lock();
        if let Some(fault) = &state.down {
            return Err(fault.clone());
        }
        let Some(stored) =
            state.images.get(&reference.with_tag(&image.digest).to_string()).cloned()
        else {
            let message = format!("cannot tag `{reference}`: there is no {}", image.digest);
            return Err(Fault::new(StageName::Pusher, Reason::RegistryFailed, message));
        };
        for tag in further_tags.iter().chain([&reference.tag]) {
            state.images.insert(reference.with_tag(tag).to_string(), stored.clone());
        }
        Ok(())
    }

    async fn labels(
        &self,
        reference: &ImageReference,
        image: &RegistryImage,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let state = self.lock();
        if let Some(fault) = &state.down {
            return Err(fault.clone());
        }
        state.labels.get(&image.digest).cloned().ok_or_else(|| {
            let message = format!("`{reference}` has no configuration {}", image.image_id);
            Fault::new(StageName::Pusher, Reason::RegistryFailed, message)
        })
    }
}
