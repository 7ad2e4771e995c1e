//! In-memory builder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use uuid::Uuid;

use crate::model::build_log::{BuildEvent, BuildLog};
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::image::{
    BUILDER_LABEL, BuildKey, BuiltImage, ImageLocation, KEY_LABEL, digest_of,
};
use crate::model::reference::ImageReference;
use crate::model::request::BuilderKind;
use crate::model::secret::Tripwire;
use crate::ports::{BuildOrder, Claim, Exposed, ImageBuilder, Plan};
use crate::testing::registry::FakeRegistry;
use crate::testing::script::Script;

/// An order of a build of its own, by the `Dockerfile` of this context.
pub fn order(context: &Path, reference: ImageReference) -> BuildOrder {
    let unique = || Uuid::new_v4().simple().to_string();
    // As long as a real key.
    let key = unique() + &unique();
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    BuildOrder {
        build_id: unique(),
        key: serde_json::from_value(key.as_str().into()).expect("a key is a string"),
        plan: Plan {
            builder: BuilderKind::Dockerfile,
            context: context.to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            build_args: BTreeMap::new(),
            secrets: BTreeMap::new(),
            platforms: Vec::new(),
            registry_auth: BTreeMap::new(),
            fingerprint: String::new(),
        },
        labels: BTreeMap::from([
            label(BUILDER_LABEL, BuilderKind::Dockerfile.as_str()),
            label(KEY_LABEL, &key),
        ]),
        reference,
    }
}

/// A builder that builds nothing: every build succeeds at once, unless a test scripted it otherwise.
/// Clones share everything.
#[derive(Clone, Default)]
pub struct FakeBuilder(Arc<FakeEngine>);

#[derive(Default)]
struct FakeEngine {
    next: Script<Fault>,
    work: Mutex<Work>,
    /// Wakes those who wait for the work to become what they want.
    changed: watch::Sender<()>,
    /// Where images are pushed to, whatever their reference says.
    registry: FakeRegistry,
    /// What the holder of the claim holds.
    claim: Arc<()>,
}

/// What the engine does and has.
#[derive(Default)]
struct Work {
    /// By build: the lines that it writes, and how it ends.
    scripts: HashMap<String, (String, End)>,
    /// What every build sees.
    inputs: Option<String>,
    held: bool,
    /// Builds whose image alone is held.
    storing: BTreeSet<String>,
    running: BTreeSet<String>,
    built: usize,
    dropped: usize,
    /// Which builds ran at each death of the engine.
    deaths: Vec<Vec<String>>,
    /// What the engine has, by key and repository.
    images: HashMap<(BuildKey, String), BuiltImage>,
    /// What the image of a key shows, by the place.
    shown: HashMap<BuildKey, Vec<(String, String)>>,
}

impl Work {
    fn has(&self, image: &BuiltImage) -> bool {
        self.images.values().any(|known| known.id == image.id)
    }
}

/// How a scripted build ends.
#[derive(Debug, Clone, Default)]
pub enum End {
    #[default]
    Image,
    /// An image with this text in a file.
    Showing(String),
    /// The builder pushes the image by itself, under this reference.
    Pushed(ImageReference),
    /// The same, with this text in a file.
    PushedShowing(ImageReference, String),
    Fault(Fault),
    /// The engine dies of it.
    EngineDies,
    /// It panics.
    Panic,
    /// It runs until it is dropped.
    Never,
}

impl FakeBuilder {
    pub fn pushing_to(registry: FakeRegistry) -> Self {
        Self(Arc::new(FakeEngine { registry, ..FakeEngine::default() }))
    }

    /// What the next builds do, whichever they are.
    pub fn next(&self) -> &Script<Fault> {
        &self.0.next
    }

    /// Every build with this id writes these lines, and ends like this.
    pub fn script(&self, build_id: &str, output: &str, end: End) {
        self.change(|work| work.scripts.insert(build_id.to_owned(), (output.to_owned(), end)));
    }

    /// Every build from now on sees these inputs; `None` = it cannot be told what it sees.
    pub fn sees(&self, inputs: Option<&str>) {
        self.change(|work| work.inputs = inputs.map(|inputs| format!("inputs:{inputs}")));
    }

    /// Builds that have begun wait until [`Self::release`].
    pub fn hold(&self) {
        self.change(|work| work.held = true);
    }

    /// The steps of a build that waits are done; its image waits on.
    pub fn store(&self, build_id: &str) {
        self.change(|work| work.storing.insert(build_id.to_owned()));
    }

    /// The engine loses every image, as one that was pruned does.
    pub fn forget_images(&self) {
        self.change(|work| work.images.clear());
    }

    /// The engine loses the image of this id.
    pub fn lose(&self, image_id: &str) {
        self.change(|work| {
            work.images.retain(|_, image| image.id != image_id);
            work.shown.retain(|key, _| digest_of(key.as_str().as_bytes()) != image_id);
        });
    }

    pub fn release(&self) {
        self.change(|work| work.held = false);
    }

    /// The engine dies, with all builds that run; the next ones find it back.
    pub fn die(&self) {
        self.change(|work| {
            let ran = work.running.iter().cloned().collect();
            work.deaths.push(ran);
        });
    }

    /// Which builds ran at each death of the engine.
    pub fn deaths(&self) -> Vec<Vec<String>> {
        self.lock().deaths.clone()
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
        self.until(|work| work.running.contains(build_id)).await;
    }

    /// Waits until no build of this id runs.
    pub async fn until_stopped(&self, build_id: &str) {
        self.until(|work| !work.running.contains(build_id)).await;
    }

    async fn until(&self, holds: impl Fn(&Work) -> bool) {
        let mut changes = self.0.changed.subscribe();
        while !holds(&self.lock()) {
            // The sender lives in `self`.
            let _ = changes.changed().await;
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Work) -> T) -> T {
        let result = change(&mut self.lock());
        self.0.changed.send_replace(());
        result
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.0.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The image of a build that was to leave it on the engine.
pub fn on_engine(location: ImageLocation) -> BuiltImage {
    match location {
        ImageLocation::OnEngine(image) => image,
        elsewhere => panic!("it is not on the engine: {elsewhere:?}"),
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
        self.builder.change(|work| {
            work.running.remove(self.build_id);
            work.dropped += usize::from(!self.ended);
        });
    }
}

impl ImageBuilder for FakeBuilder {
    fn inputs<'a>(&'a self, _plan: &'a Plan) -> BoxFuture<'a, Result<Option<String>, Fault>> {
        Box::pin(async move { Ok(self.lock().inputs.clone()) })
    }

    fn build<'a>(
        &'a self,
        order: &'a BuildOrder,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<ImageLocation, Fault>> {
        Box::pin(async move {
            let next = self.0.next.play();
            let ((output, end), deaths) = self.change(|work| {
                work.running.insert(order.build_id.clone());
                let script = work.scripts.get(&order.build_id).cloned().unwrap_or_default();
                (script, work.deaths.len())
            });
            let mut running = Running { builder: self, build_id: &order.build_id, ended: false };

            const STEP: &str = "RUN scripted";
            progress.tell(BuildEvent::StepStarted { name: STEP.to_owned() });
            for line in output.lines() {
                progress.tell(BuildEvent::Output(line.to_owned()));
            }
            let ends = |work: &Work| !work.held || work.deaths.len() > deaths;
            self.until(|work| work.storing.contains(&order.build_id) || ends(work)).await;
            if matches!(end, End::Image) {
                progress.storing();
            }
            self.until(ends).await;
            if let End::EngineDies = end
                && self.lock().deaths.len() == deaths
            {
                self.die();
            }
            if self.lock().deaths.len() > deaths {
                running.ended = true;
                return Err(Fault::of_dead_engine(StageName::Builder, "the engine died"));
            }
            let ends = match (next.await, &end) {
                (Err(fault), _) => Err(fault),
                (
                    Ok(()),
                    End::Image | End::Showing(_) | End::Pushed(_) | End::PushedShowing(..),
                ) => Ok(()),
                (Ok(()), End::Fault(fault)) => Err(fault.clone()),
                (Ok(()), End::EngineDies) => unreachable!("it has died"),
                (Ok(()), End::Panic) => panic!("the test asked for a panic"),
                (Ok(()), End::Never) => std::future::pending().await,
            };
            running.ended = true;
            ends.map_err(|fault| Fault { message: progress.redact(&fault.message), ..fault })?;
            progress.tell(BuildEvent::StepFinished {
                name: STEP.to_owned(),
                cached: false,
                took: Duration::ZERO,
            });
            let id = digest_of(order.key.as_str().as_bytes());
            let image = BuiltImage::new(id, order.plan.builder, order.key.clone());
            let labels = order.labels.iter();
            let mut shown: Vec<_> =
                labels.map(|(name, text)| (format!("the label `{name}`"), text.clone())).collect();
            if let End::Showing(text) = &end {
                shown.push(("the file `/scripted`".to_owned(), text.clone()));
            }
            self.change(|work| {
                work.built += 1;
                work.shown.insert(order.key.clone(), shown);
            });
            if let End::Pushed(reference) | End::PushedShowing(reference, _) = &end {
                let registry = &self.0.registry;
                let digest = registry.take(&image, reference).await?;
                if let End::PushedShowing(_, text) = &end {
                    registry.show(&digest, text);
                }
                return Ok(ImageLocation::Pushed { digest });
            }
            let place = (order.key.clone(), order.reference.repository.clone());
            self.change(|work| drop(work.images.insert(place, image.clone())));
            Ok(ImageLocation::OnEngine(image))
        })
    }

    fn find<'a>(
        &'a self,
        key: &'a BuildKey,
        reference: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<BuiltImage>, Fault>> {
        Box::pin(async move {
            let place = (key.clone(), reference.repository.clone());
            Ok(self.lock().images.get(&place).cloned())
        })
    }

    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, Fault>> {
        Box::pin(async move {
            let free = Arc::strong_count(&self.0.claim) == 1;
            Ok(free.then(|| Claim::held_by(self.0.claim.clone())))
        })
    }

    fn search<'a>(
        &'a self,
        image: &'a BuiltImage,
        wanted: &'a Tripwire,
        files: bool,
        _: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>> {
        Box::pin(async move {
            let work = self.lock();
            if !work.has(image) {
                let message = format!("cannot search {}: no such image", image.id);
                return Err(Fault::new(StageName::Pusher, Reason::EngineFailed, message));
            }
            let shown = work.shown.get(&image.key).into_iter().flatten();
            let mut looked_at = shown.filter(|(place, _)| files || !place.starts_with("the file"));
            let found = looked_at.find_map(|(place, text)| {
                let secret = wanted.find(text)?.to_owned();
                Some(Exposed { secret, place: place.clone() })
            });
            Ok(found)
        })
    }

    fn push<'a>(
        &'a self,
        image: &'a BuiltImage,
        reference: &'a ImageReference,
        _: &'a BuildLog,
    ) -> BoxFuture<'a, Result<String, Fault>> {
        Box::pin(async move {
            if !self.lock().has(image) {
                let message = format!("cannot push `{reference}`: no such image");
                return Err(Fault::new(StageName::Pusher, Reason::EngineFailed, message));
            }
            self.0.registry.take(image, reference).await
        })
    }
}
