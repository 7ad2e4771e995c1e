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
//!
//! A build that fills the disk is the one that stops ([`guarded`], [`shares`]): it begins again twice, with
//! more room each time, and then does not fit. All others go on.

mod guarded;
pub mod inventory;
mod pins;
mod pruner;
mod shares;
pub mod size;
pub mod space;

use std::iter;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::shutdown::{Shutdown, ShutdownPhase};
use image_builder_actors::ports::Claim;
use image_builder_actors::scheduling::capacity::Capacity;
use tokio::sync::{Mutex, MutexGuard, OnceCell, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::engine::docker::DockerEngine;
use guarded::{Part, Proof, Strikes, Unbuilt, not_for_want_of_room, unbuilt};
use inventory::HeldBytes;
use pins::Pins;
use pruner::Pruner;
pub use pruner::Young;
use shares::{Share, Shares};
use size::{Size, Watermark};
use space::{Place, Room};

/// How often the free space is looked at.
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);
/// How often it is looked at while something is built: a disk that a build filled is emptied soon after.
const WHILE_BUILDING: Duration = Duration::from_millis(100);
/// How often the engine is pruned down to the budget.
const BETWEEN_TIDYINGS: Duration = Duration::from_secs(5 * 60);
/// When that is first done: to count all that an engine has can cost it more than the builds that wait for a worker.
const FIRST_TIDYING: Duration = Duration::from_secs(30);
const YOUNG: Young = Young { image: Duration::from_secs(5 * 60), cache: Duration::from_secs(60) };
const GIVES_BACK: Duration = Duration::from_secs(10);
/// How long the steps of a build that is stopped may still write.
const STOPS: Duration = Duration::from_secs(1);
/// How long the engine may take to say that no other worker stops a build. Meanwhile nobody looks after the build.
const CLAIMED: Duration = Duration::from_secs(1);
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
    /// How long the engine may take to give back what a build had taken. A build that was stopped, or found the disk
    /// full, waits twice as long for room before it goes back to the queue.
    pub gives_back: Duration,
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
            gives_back: GIVES_BACK,
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
    /// The builds in hand, and what the engine's disk lost while each ran.
    shares: Shares,
    /// One pruning at a time, and none while it is found out what a build gives back.
    pruner: Mutex<Pruner>,
    /// Whether the engine's disk was seen to be full in the middle of a build, and was not pruned since.
    ran_full: AtomicBool,
    held: watch::Sender<HeldBytes>,
}

/// While it is found out whether a build filled the disk.
struct Trial<'a> {
    /// Bytes that were free when the build was stopped.
    left: u64,
    _pruner: MutexGuard<'a, Pruner>,
    _claim: Claim,
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
            shares: Shares::default(),
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

    /// Waits until there is room again: where a build was wrongly suspected, the right one follows.
    ///
    /// # Errors
    /// There is none in time: [`Self::look`]'s.
    async fn has_room_again(&self) -> Result<(), String> {
        let deadline = Instant::now() + 2 * self.inner.settings.gives_back;
        let mut found = self.make_room().await;
        while found.is_err() && Instant::now() < deadline {
            tokio::time::sleep(WHILE_BUILDING).await;
            found = self.look().await;
        }
        found
    }

    /// Prunes as much as a build took, where the engine holds that much to prune: what it had of the disk may be all
    /// that others left of it.
    async fn make_room_for(&self, taken: u64) {
        if self.inner.held.borrow().total() >= taken {
            let mut pruner = self.inner.pruner.lock().await;
            self.prune(&mut pruner, taken, false).await;
        }
    }

    /// Waits for a build, and looks at the engine's disk meanwhile. A build that took more than it leaves is stopped
    /// once less than the low watermark is left.
    async fn watched<T>(
        &self,
        build: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Unbuilt> {
        let Some(disk) = self.engine_disk().await.cloned() else {
            return self.unwatched(build).await;
        };
        let share = self.inner.shares.begin();
        // When it was last seen to be full.
        let mut full: Option<Instant> = None;
        let mut looks = interval(WHILE_BUILDING);
        let mut build = Box::pin(build);
        let trial = loop {
            let built = tokio::select! {
                built = &mut build => Some(built),
                _ = looks.tick() => None,
            };
            let seen = room_on(&disk).await;
            if seen.is_some_and(|(_, is_full)| is_full) {
                full = Some(Instant::now());
            }
            match built {
                Some(Ok(built)) => return Ok(built),
                Some(Err(fault)) => return Err(unbuilt(fault, full)),
                None => {}
            }
            let Some((room, _)) = seen else { continue };
            self.inner.shares.saw(room.free);
            let is_low = room.lacks(&self.inner.settings.low) > 0;
            let is_suspect = share.taken() > room.free && share.is_first_suspect();
            if is_low
                && is_suspect
                && let Some(trial) = self.trial(room).await
            {
                break trial;
            }
        };
        // That stops it on the engine, which lets go of what the build had taken.
        drop(build);
        let proof = self.gives_back(&disk, &share, trial).await;
        let part = proof.map_or(Part::Cleared, Part::Filled);
        let message = "The build was stopped: the engine's disk was about to run full.";
        let fault = Fault::new(StageName::Builder, Reason::DiskLow, message);
        Err(Unbuilt::ForWantOfRoom { fault, part })
    }

    /// Waits for a build on an engine whose disk cannot be seen.
    async fn unwatched<T>(
        &self,
        build: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Unbuilt> {
        match build.await {
            Ok(built) => Ok(built),
            Err(fault) if fault.reason != Reason::DiskLow => Err(Unbuilt::Fault(fault)),
            Err(fault) if self.inner.engine.takes_a_file().await => {
                Err(Unbuilt::Fault(not_for_want_of_room(fault)))
            }
            Err(fault) => Err(Unbuilt::ForWantOfRoom { fault, part: Part::FoundFull }),
        }
    }

    /// Makes sure that nobody else prunes, and that no other worker stops a build on this engine meanwhile. `None` =
    /// somebody does.
    async fn trial(&self, room: Room) -> Option<Trial<'_>> {
        let _pruner = self.inner.pruner.try_lock().ok()?;
        let claim = tokio::time::timeout(CLAIMED, self.inner.engine.claim_disk()).await;
        let _claim = claim.ok()?.ok().flatten()?;
        Some(Trial { left: room.free, _pruner, _claim })
    }

    /// The proof that a build filled the disk: that it gets most of what it lost back now that the build was stopped,
    /// and none of this worker's ended meanwhile.
    async fn gives_back(&self, disk: &Place, share: &Share<'_>, trial: Trial<'_>) -> Option<Proof> {
        // Held to the end.
        let Trial { left, .. } = &trial;
        let (taken, left, ended) = (share.taken(), *left, self.inner.shares.ended());
        let stopped = Instant::now();
        while stopped.elapsed() < self.inner.settings.gives_back {
            let (room, _) = room_on(disk).await?;
            self.inner.shares.saw(room.free);
            // Where the disk goes on filling up, it was another one.
            let fills_up = room.free < left / 2 && stopped.elapsed() > STOPS;
            if fills_up || self.inner.shares.ended() != ended {
                return None;
            }
            let given_back = room.free.saturating_sub(left);
            if given_back.saturating_mul(2) >= taken {
                return Some(Proof { taken: taken.max(given_back), left });
            }
            tokio::time::sleep(WHILE_BUILDING).await;
        }
        None
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
            // While somebody makes room there is nothing to say yet.
            let is_quiet = self.inner.pruner.try_lock().is_ok();
            if is_quiet && self.look().await.is_err() {
                capacity.lacks(Reason::DiskLow, None);
            }
        }
    }

    async fn keep_tidy(&self) {
        let period = self.inner.settings.between_tidyings;
        tokio::time::sleep(period.min(FIRST_TIDYING)).await;
        let mut interval = interval(period);
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

/// The room on a disk that can be seen, and whether that is as good as none.
async fn room_on(disk: &Place) -> Option<(Room, bool)> {
    let disk = disk.clone();
    let look = move || Some((disk.room().ok()?, disk.is_full().ok()?));
    tokio::task::spawn_blocking(look).await.ok().flatten()
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
