//! In-memory builder.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::model::build_log::{BuildEvent, BuildLog};
use crate::model::digest::hex;
use crate::model::fault::Fault;
use crate::model::image::{BuildKey, BuiltImage, ImageLocation};
use crate::ports::{BuildOrder, ImageBuilder};

/// A builder that builds nothing: it does what it is told to, and remembers what it was asked for.
/// Clones share one state. Untold, every build succeeds at once.
#[derive(Clone)]
pub struct FakeBuilder(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Wakes those who wait for the state to become what they want.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    next: VecDeque<Next>,
    scripts: HashMap<String, Script>,
    held: bool,
    orders: Vec<BuildOrder>,
    running: BTreeSet<String>,
    built: usize,
    dropped: usize,
    /// What the engine has, by key.
    images: HashMap<BuildKey, BuiltImage>,
}

enum Next {
    Fail(Fault),
    Panic,
}

/// What one build does.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// The lines that it writes.
    pub output: Vec<String>,
    pub end: End,
}

/// How a scripted build ends.
#[derive(Debug, Clone, Default)]
pub enum End {
    #[default]
    Image,
    Fault(Fault),
    /// It runs until it is dropped.
    Never,
}

impl Default for FakeBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeBuilder {
    pub fn new() -> Self {
        let (changed, _) = watch::channel(());
        Self(Arc::new(Shared { state: Mutex::default(), changed }))
    }

    /// The next `times` builds fail with `fault`.
    pub fn fail_next(&self, times: usize, fault: Fault) {
        self.change(|state| {
            state.next.extend(std::iter::repeat_with(|| Next::Fail(fault.clone())).take(times));
        });
    }

    /// The next build panics.
    pub fn panic_next(&self) {
        self.change(|state| state.next.push_back(Next::Panic));
    }

    /// Every build with this id does what `script` says.
    pub fn script(&self, build_id: &str, script: Script) {
        self.change(|state| drop(state.scripts.insert(build_id.to_owned(), script)));
    }

    /// Builds that have begun wait until [`Self::release`].
    pub fn hold(&self) {
        self.change(|state| state.held = true);
    }

    /// The engine loses every image, as one that was pruned does.
    pub fn forget_images(&self) {
        self.change(|state| state.images.clear());
    }

    pub fn release(&self) {
        self.change(|state| state.held = false);
    }

    /// Every build that was asked for, in order.
    pub fn orders(&self) -> Vec<BuildOrder> {
        self.lock().orders.clone()
    }

    /// How many builds made an image.
    pub fn built(&self) -> usize {
        self.lock().built
    }

    /// How many builds were dropped, or panicked, before they ended.
    pub fn dropped(&self) -> usize {
        self.lock().dropped
    }

    /// The ids of the builds that have begun and not ended, sorted.
    pub fn running(&self) -> Vec<String> {
        self.lock().running.iter().cloned().collect()
    }

    /// Waits until a build of this id has begun.
    pub async fn until_running(&self, build_id: &str) {
        self.until(|state| state.running.contains(build_id)).await;
    }

    /// Waits until no build of this id runs.
    pub async fn until_stopped(&self, build_id: &str) {
        self.until(|state| !state.running.contains(build_id)).await;
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        let mut changes = self.0.changed.subscribe();
        while !holds(&self.lock()) {
            // The sender lives in `self`.
            let _ = changes.changed().await;
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.0.changed.send_replace(());
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The image of a build that was to leave it on the engine.
pub fn on_engine(location: ImageLocation) -> BuiltImage {
    match location {
        ImageLocation::OnEngine(image) => image,
        ImageLocation::InRegistry(image) => panic!("it is in the registry: {image:?}"),
    }
}

/// A build that has begun.
struct Running<'a> {
    builder: &'a FakeBuilder,
    build_id: &'a str,
    ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.builder.change(|state| {
            state.running.remove(self.build_id);
            state.dropped += usize::from(!self.ended);
        });
    }
}

#[async_trait]
impl ImageBuilder for FakeBuilder {
    async fn build(&self, order: &BuildOrder, progress: &BuildLog) -> Result<ImageLocation, Fault> {
        let (next, script) = self.change(|state| {
            state.orders.push(order.clone());
            state.running.insert(order.build_id.clone());
            let script = state.scripts.get(&order.build_id).cloned().unwrap_or_default();
            (state.next.pop_front(), script)
        });
        let mut running = Running { builder: self, build_id: &order.build_id, ended: false };

        const STEP: &str = "RUN scripted";
        progress.tell(BuildEvent::StepStarted { name: STEP.to_owned() });
        for line in script.output {
            progress.tell(BuildEvent::Output(line));
        }
        self.until(|state| !state.held).await;
        let fault = match next {
            Some(Next::Panic) => panic!("the fake builder was told to panic"),
            Some(Next::Fail(fault)) => Some(fault),
            None => match script.end {
                End::Image => None,
                End::Fault(fault) => Some(fault),
                End::Never => std::future::pending().await,
            },
        };
        running.ended = true;
        if let Some(fault) = fault {
            return Err(Fault { message: progress.redact(&fault.message), ..fault });
        }
        progress.tell(BuildEvent::StepFinished { name: STEP.to_owned(), cached: false });
        let id = format!("sha256:{}", hex(&Sha256::digest(order.key.as_str())));
        let image = BuiltImage { id, builder: order.plan.builder, key: order.key.clone() };
        self.change(|state| {
            state.built += 1;
            state.images.insert(order.key.clone(), image.clone());
        });
        Ok(ImageLocation::OnEngine(image))
    }

    async fn find(&self, key: &BuildKey) -> Result<Option<BuiltImage>, Fault> {
        Ok(self.lock().images.get(key).cloned())
    }
}
