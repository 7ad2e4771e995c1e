//! Room on the disk: two watermarks, a budget, and what is pruned to keep to them.
//!
//! | free space | what happens |
//! |---|---|
//! | below `DISK_LOW_WATERMARK` | no build begins, the listener pauses, and the engine is pruned |
//! | between | work goes on; a pause ends here once nothing more can be pruned |
//! | above `DISK_HIGH_WATERMARK` | a pause ends here; pruning for room aims at this |
//!
//! Looked at are `DATA_DIR`'s file system and, for an engine on this machine, the one of the engine's
//! data directory. A worker in a container does not see that one; but the engine's volumes lie on the
//! same disk, so `DATA_DIR`'s is taken for it. Whatever is free, `CACHE_BUDGET` bounds what images
//! made here and the engine's build cache may hold. What goes first is what was used the longest time
//! ago ([`inventory`]); what goes never is what is in use, and what this service did not make
//! ([`pruner`]). An engine that is full in the middle of a build says so itself. A stranger's build can
//! make it say so, so it is only believed where the worker saw the disk run full meanwhile, or, of a
//! disk that cannot be seen from here, where the engine does not take a file of the worker's own
//! ([`DockerEngine::takes_a_file`]). Then it is pruned whatever the watermarks say.

mod guarded;
pub mod inventory;
mod pins;
mod pruner;
pub mod size;
pub mod space;

use std::iter;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::shutdown::{Shutdown, ShutdownPhase};
use image_builder_actors::scheduling::capacity::Capacity;
use tokio::sync::{Mutex, OnceCell, watch};
use tokio::time::MissedTickBehavior;

use crate::engine::docker::DockerEngine;
use guarded::Strikes;
use inventory::HeldBytes;
use pins::Pins;
use pruner::Pruner;
pub use pruner::Young;
use size::{Size, Watermark};
use space::{Place, Room};

/// How often the free space is looked at.
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);
/// How often it is looked at while something is built: a disk that a build filled is emptied soon after.
const WHILE_BUILDING: Duration = Duration::from_millis(100);
/// How often the engine is pruned down to the budget.
const BETWEEN_TIDYINGS: Duration = Duration::from_secs(5 * 60);
const YOUNG: Young = Young { image: Duration::from_secs(5 * 60), cache: Duration::from_secs(60) };
/// Most prunings for room in a row: what is freed can be less than what the engine counted.
const MOST_ROUNDS: usize = 4;

/// How much room there has to be, and how much may be held.
#[derive(Debug, Clone)]
pub struct DiskSettings {
    /// `DISK_LOW_WATERMARK`: with less free space nothing is built.
    pub low: Watermark,
    /// `DISK_HIGH_WATERMARK`: the free space that pruning aims at.
    pub high: Watermark,
    /// `CACHE_BUDGET`: what images made here and the build cache may hold together.
    pub budget: Size,
    /// What is too young to be pruned.
    pub young: Young,
    pub between_looks: Duration,
    pub between_tidyings: Duration,
}

impl DiskSettings {
    /// With the intervals that the worker has.
    pub fn new(low: Watermark, high: Watermark, budget: Size) -> Self {
        Self {
            low,
            high,
            budget,
            young: YOUNG,
            between_looks: BETWEEN_LOOKS,
            between_tidyings: BETWEEN_TIDYINGS,
        }
    }

    /// Bytes that a disk lacks to the high watermark. A share of a small disk can be less than a low
    /// watermark in bytes: then that one is aimed at.
    fn missing(&self, room: Room) -> u64 {
        room.lacks(&self.high).max(room.lacks(&self.low))
    }
}

/// Keeps an eye on the disks, and makes room. Clones share everything.
///
/// To the worker it is the engine: one that begins no build without room, and keeps images that a job has
/// in hand.
#[derive(Clone)]
pub struct DiskGuard {
    inner: Arc<Inner>,
}

struct Inner {
    settings: DiskSettings,
    engine: Arc<DockerEngine>,
    data_dir: Place,
    /// Where pruning makes room. Empty until the engine, which has to be on this machine, has
    /// named its data directory.
    engine_disk: OnceCell<Place>,
    pins: Pins,
    strikes: Strikes,
    /// One pruning at a time.
    pruner: Mutex<Pruner>,
    /// Whether the engine's disk was seen to be full in the middle of a build, and was not pruned since.
    ran_full: AtomicBool,
    held: watch::Sender<HeldBytes>,
}

impl DiskGuard {
    /// Looks at nothing yet. `registry` is the name, in references, of where the engine pushes to.
    pub fn new(
        settings: DiskSettings,
        data_dir: &Path,
        engine: Arc<DockerEngine>,
        registry: String,
    ) -> Self {
        let pins = Pins::default();
        let pruner = Pruner::new(engine.clone(), pins.clone(), registry, settings.young);
        let inner = Inner {
            data_dir: Place { name: "the disk of DATA_DIR", path: data_dir.to_owned() },
            engine_disk: OnceCell::new(),
            strikes: Strikes::default(),
            pruner: Mutex::new(pruner),
            ran_full: AtomicBool::new(false),
            held: watch::Sender::new(HeldBytes::default()),
            settings,
            engine,
            pins,
        };
        Self { inner: Arc::new(inner) }
    }

    /// What images made here and the build cache held when they were last counted.
    pub fn held(&self) -> watch::Receiver<HeldBytes> {
        self.inner.held.subscribe()
    }

    /// The room on each disk that can be seen.
    pub async fn rooms(&self) -> Vec<Room> {
        let data_dir = &self.inner.data_dir;
        let engine_disk = self.engine_disk().await.filter(|disk| *disk != data_dir);
        let places: Vec<Place> = iter::once(data_dir).chain(engine_disk).cloned().collect();
        let look = move || places.iter().filter_map(|place| place.room().ok()).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// Whether every disk has more room than the low watermark, and the engine's was not seen to be full
    /// since it was pruned.
    ///
    /// # Errors
    /// Which one has not, as a sentence for an operator.
    pub async fn look(&self) -> Result<(), String> {
        if self.inner.ran_full.load(Ordering::Relaxed) {
            return Err("the engine's disk ran full in the middle of a build".to_owned());
        }
        let low = &self.inner.settings.low;
        match self.rooms().await.iter().find(|room| room.lacks(low) > 0) {
            Some(room) => Err(room.complaint("DISK_LOW_WATERMARK", low)),
            None => Ok(()),
        }
    }

    /// Prunes for room up to the high watermark, or as far as that goes, and looks again.
    ///
    /// # Errors
    /// There still is less than the low watermark: [`Self::look`]'s.
    pub async fn make_room(&self) -> Result<(), String> {
        let mut pruner = self.inner.pruner.lock().await;
        for _ in 0..MOST_ROUNDS {
            let ran_full = self.inner.ran_full.swap(false, Ordering::Relaxed);
            let missing = self.missing_on_engine().await;
            if missing == 0 && !ran_full {
                break;
            }
            match self.prune(&mut pruner, missing, ran_full).await {
                Some(freed) if freed > 0 => {}
                _ => break,
            }
        }
        drop(pruner);
        self.look().await
    }

    /// Waits for a build, and looks at the engine's disk meanwhile: whether it was full.
    async fn watched<T>(
        &self,
        build: impl Future<Output = Result<T, Fault>>,
    ) -> (Result<T, Fault>, bool) {
        let disk = self.engine_disk().await.cloned();
        let mut was_full = false;
        let mut looks = interval(WHILE_BUILDING);
        let mut build = pin!(build);
        let built = loop {
            tokio::select! {
                built = &mut build => break built,
                _ = looks.tick(), if disk.is_some() && !was_full => {
                    was_full = is_full(disk.as_ref()).await;
                }
            }
        };
        if !built.as_ref().is_err_and(|fault| fault.reason == Reason::DiskLow) {
            return (built, false);
        }
        let was_full = match disk {
            Some(_) => was_full || is_full(disk.as_ref()).await,
            None => !self.inner.engine.takes_a_file().await,
        };
        (built, was_full)
    }

    /// Prunes down to the budget, and clears what dead workers left.
    pub async fn tidy(&self) {
        self.inner.engine.clear_left_names().await;
        let mut pruner = self.inner.pruner.lock().await;
        self.prune(&mut pruner, 0, false).await;
    }

    /// Looks and tidies until the worker drains.
    pub async fn run(self, capacity: Capacity, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.reached(ShutdownPhase::Draining) => {}
            () = self.keep_looking(&capacity) => {}
            () = self.keep_tidy() => {}
        }
    }

    async fn keep_looking(&self, capacity: &Capacity) {
        let mut interval = interval(self.inner.settings.between_looks);
        loop {
            interval.tick().await;
            if self.look().await.is_err() {
                capacity.lacks(Reason::DiskLow, None);
            }
        }
    }

    async fn keep_tidy(&self) {
        let mut interval = interval(self.inner.settings.between_tidyings);
        loop {
            interval.tick().await;
            self.tidy().await;
        }
    }

    /// Bytes that the engine's disk lacks to the high watermark. Other disks hold nothing to prune.
    async fn missing_on_engine(&self) -> u64 {
        let Some(disk) = self.engine_disk().await.cloned() else { return 0 };
        let room = tokio::task::spawn_blocking(move || disk.room().ok()).await.ok().flatten();
        room.map_or(0, |room| self.inner.settings.missing(room))
    }

    /// One pruning: down to the budget, to what frees `missing` bytes, and by half where the
    /// engine said that it is full. Returns the bytes freed; `None` = the engine failed.
    async fn prune(&self, pruner: &mut Pruner, missing: u64, ran_full: bool) -> Option<u64> {
        let Size(budget) = self.inner.settings.budget;
        let target = |held: HeldBytes| {
            let held = held.total();
            let enough = if ran_full { held / 2 } else { held };
            budget.min(held.saturating_sub(missing)).min(enough)
        };
        match pruner.prune(target).await {
            Ok(pruned) => {
                self.inner.held.send_replace(pruned.after);
                Some(pruned.freed())
            }
            Err(fault) => {
                tracing::warn!(reason = fault.reason.as_str(), "cannot prune: {}", fault.message);
                None
            }
        }
    }

    /// The disk that pruning makes room on: where the engine keeps its data, or, where that cannot be
    /// seen from here, `DATA_DIR`'s. Asks the engine until it has answered once.
    async fn engine_disk(&self) -> Option<&Place> {
        let engine = &self.inner.engine;
        if !engine.is_local() {
            return None;
        }
        let find = || async {
            let path = engine.data_root().await?;
            let place = path.map(|path| Place { name: "the engine's disk", path: path.into() });
            let disk = place.filter(|place| place.room().is_ok()).unwrap_or_else(|| {
                tracing::info!(
                    "the engine's data directory is not seen from here: its disk is taken to be that \
                     of DATA_DIR"
                );
                self.inner.data_dir.clone()
            });
            Ok::<_, Fault>(disk)
        };
        self.inner.engine_disk.get_or_try_init(find).await.ok()
    }
}

/// Whether a disk that can be seen is full.
async fn is_full(disk: Option<&Place>) -> bool {
    let Some(disk) = disk.cloned() else { return false };
    let look = move || disk.is_full().unwrap_or_default();
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// Ticks at once, and then with this pause at least.
fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruning_aims_at_the_higher_watermark_whichever_that_is_on_the_disk() {
        let mark = |text: &str| text.parse().expect("a watermark");
        let missing = |low, high| {
            let room = Room { place: "the disk", free: 3_000, total: 20_000 };
            DiskSettings::new(mark(low), mark(high), Size(0)).missing(room)
        };
        assert_eq!(missing("5%", "20%"), 1_000);
        assert_eq!(missing("5KB", "10%"), 2_000);
        assert_eq!(missing("5%", "10%"), 0);
    }
}
