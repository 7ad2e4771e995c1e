//! Records what happens to builds in the build store, and never makes a build wait for it.
//!
//! Whoever has a build in hand tells the [`Recorder`], which keeps that in memory, a queue a build; one task writes
//! all that has come to the store, a few times a second. While the store does not answer, what is told is kept, up
//! to a limit: then the oldest lines of logs are lost, and the log says how many. What happened to a build is not
//! lost before it is a lot.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{Notify, oneshot, watch};

use crate::model::build_log::{BuildEvent, BuildLogListener};
use crate::model::fault::StageName;
use crate::model::history::Attempt;
use crate::model::identity::BuildIdentity;
use crate::model::notification::Subject;
use crate::ports::build_store::{BuildStore, Change, Recorded, RequestedBuild, StoreError};
use crate::ports::request_name;

/// Pause between two writes: what comes meanwhile is written together.
const PAUSE: Duration = Duration::from_millis(200);
/// Pauses after a write that failed: each is twice the one before, within these.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Lines that wait to be written, of all builds, in bytes.
const MOST_OUTPUT: usize = 8 * 1024 * 1024;
/// Lines that are written as one, in bytes.
const LONGEST_OUTPUT: usize = 64 * 1024;
/// Builds of which something waits to be written. Of further ones nothing is recorded until there is room; what a
/// worker has in hand then is recorded from there on.
const MOST_BUILDS: usize = 20_000;
/// What waits to be written of one build, its lines apart: beyond that the oldest that a later one makes
/// unimportant is lost.
const MOST_CHANGES: usize = 400;
/// What is written at once: whoever makes a request known waits for no more than that.
const BATCH: usize = 100;
/// Longest that somebody waits until the end of a build is stored.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Told of what happens to builds. Clones are the same; the default one keeps nothing.
#[derive(Clone, Default)]
pub struct Recorder(Option<Arc<Shared>>);

struct Shared {
    /// What the worker is called.
    worker: String,
    waiting: Mutex<Waiting>,
    /// How many changes were told of, and of how many it is decided: they are stored, or lost.
    told: watch::Sender<u64>,
    settled: watch::Sender<u64>,
    /// Somebody waits for what was told: the next write does not.
    hurry: Notify,
    /// The last write failed, and nothing was written since.
    failing: AtomicBool,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recorder").field(&self.0.as_ref().map(|shared| &shared.worker)).finish()
    }
}

impl Recorder {
    /// Records in this store, as this worker, until the last clone is dropped.
    pub fn start(store: Arc<dyn BuildStore>, worker: &str) -> Self {
        let shared = Arc::new(Shared {
            worker: worker.to_owned(),
            waiting: Mutex::default(),
            told: watch::Sender::new(0),
            settled: watch::Sender::new(0),
            hurry: Notify::new(),
            failing: AtomicBool::new(false),
        });
        tokio::spawn(write(store, Arc::downgrade(&shared), shared.told.subscribe()));
        Self(Some(shared))
    }

    /// Something happened to a build, now.
    pub fn tell(&self, build: &BuildIdentity, change: Change) {
        if let Some(shared) = &self.0 {
            shared.tell(build, change, None);
        }
    }

    /// Something happened to a build that nobody will say again. Returns once it is stored, so that it holds
    /// whatever becomes of this process; or after a while, where the store does not answer.
    pub async fn tell_and_wait(&self, build: &BuildIdentity, change: Change) {
        let Some(shared) = &self.0 else { return };
        let (stored, is_stored) = oneshot::channel();
        shared.tell(build, change, Some(stored));
        shared.hurry.notify_one();
        if !shared.failing.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(LONGEST_WAIT, is_stored).await;
        }
    }

    /// A request is in a queue or in hand. One of nobody's is nobody's build.
    pub fn requested(&self, subject: &Subject, body: &[u8], requested_at: OffsetDateTime) {
        if self.0.is_none() || subject.user_id.is_none() {
            return;
        }
        let build = subject.identity();
        let requested = RequestedBuild {
            request: request_name(&build, body),
            application_id: subject.application_id.clone(),
            connector: subject.connector.clone(),
            repo: subject.repo.clone(),
            requested_at,
            build: build.clone(),
        };
        self.tell(&build, Change::Requested(requested));
    }

    /// A stage of this worker has an attempt (from 1) in hand.
    pub fn stage(&self, build: &BuildIdentity, attempt: u32, stage: StageName) {
        if let Some(shared) = &self.0 {
            let worker = shared.worker.clone();
            if stage == StageName::Connector {
                // One that a worker was killed over begins again under its number.
                self.tell(build, Change::Output(format!("-- attempt {attempt} on {worker}\n")));
            }
            self.tell(build, Change::Stage { attempt, stage, worker });
        }
    }

    /// An attempt ended so. The log says it as well: what comes after it is of another attempt.
    pub fn failed(&self, build: &BuildIdentity, attempt: &Attempt) {
        let Attempt { stage, message, .. } = attempt;
        let line = format!("-- failed in the {}: {message}\n", stage.as_str());
        self.tell(build, Change::Output(line));
        self.tell(build, Change::Failed(attempt.clone()));
    }

    /// Records what a build has to say.
    pub fn listener(&self, build: BuildIdentity) -> Arc<dyn BuildLogListener> {
        Arc::new(LogOf { recorder: self.clone(), build })
    }

    /// Waits until all that was told of is stored, for so long at the most.
    pub async fn flush(&self, limit: Duration) {
        let Some(shared) = &self.0 else { return };
        let told = *shared.told.borrow();
        let mut settled = shared.settled.subscribe();
        let all = settled.wait_for(|settled| *settled >= told);
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("the end of some builds' history could not be written");
        }
    }
}

impl Shared {
    fn tell(&self, build: &BuildIdentity, change: Change, stored: Option<oneshot::Sender<()>>) {
        let at = OffsetDateTime::now_utc();
        self.lock().add(Recorded { build: build.clone(), at, change }, stored);
        self.told.send_modify(|told| *told += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears one build.
#[derive(Debug)]
struct LogOf {
    recorder: Recorder,
    build: BuildIdentity,
}

impl BuildLogListener for LogOf {
    fn wants_colours(&self) -> bool {
        true
    }

    fn hear(&self, event: &BuildEvent) {
        let line = match event {
            BuildEvent::Note(text) => format!("{text}\n"),
            BuildEvent::StepStarted { name } => format!("=> {name}\n"),
            BuildEvent::StepFinished { name, cached: true, .. } => format!("=> {name}: cached\n"),
            BuildEvent::StepFinished { name, took, .. } => {
                format!("=> {name}: done in {:.1} s\n", took.as_secs_f64())
            }
            BuildEvent::Output(line) => format!("{line}\n"),
        };
        self.recorder.tell(&self.build, Change::Output(line));
    }
}

/// What waits to be written.
#[derive(Default)]
struct Waiting {
    builds: HashMap<BuildIdentity, VecDeque<Entry>>,
    /// The builds among them that somebody waits for.
    awaited: Vec<BuildIdentity>,
    /// The lines among it, oldest first, by the number of their entry.
    lines: BTreeMap<u64, BuildIdentity>,
    /// How many bytes they have.
    bytes: usize,
    next: u64,
}

struct Entry {
    /// In the order of their coming.
    number: u64,
    recorded: Recorded,
    /// Lines that were here and are lost: the change says so.
    lost: u64,
    /// Who waits until it is stored.
    stored: Option<oneshot::Sender<()>>,
}

/// What is written together.
#[derive(Default)]
struct Batch {
    changes: Vec<Recorded>,
    /// Those who wait for it.
    awaited: Vec<oneshot::Sender<()>>,
}

impl Waiting {
    fn add(&mut self, recorded: Recorded, stored: Option<oneshot::Sender<()>>) {
        if self.builds.len() >= MOST_BUILDS && !self.builds.contains_key(&recorded.build) {
            return;
        }
        let build = recorded.build.clone();
        let entries = self.builds.entry(build.clone()).or_default();
        if let Change::Output(text) = &recorded.change {
            self.bytes += text.len();
            if let Some(Entry {
                lost: 0,
                recorded: Recorded { change: Change::Output(before), .. },
                ..
            }) = entries.back_mut()
                && before.len() < LONGEST_OUTPUT
            {
                before.push_str(text);
            } else {
                self.lines.insert(self.next, build);
                entries.push_back(Entry { number: self.next, recorded, lost: 0, stored });
                self.next += 1;
            }
            while self.bytes > MOST_OUTPUT {
                self.lose_lines();
            }
            return;
        }
        if stored.is_some() {
            self.awaited.push(build);
        }
        entries.push_back(Entry { number: self.next, recorded, lost: 0, stored });
        self.next += 1;
        let passing = |entry: &Entry| {
            let change = &entry.recorded.change;
            matches!(change, Change::Stage { .. } | Change::Failed(_) | Change::Waiting)
        };
        if entries.iter().filter(|entry| passing(entry)).count() > MOST_CHANGES
            && let Some(oldest) = entries.iter().position(passing)
        {
            entries.remove(oldest);
        }
    }

    /// Loses the oldest lines, and marks the place.
    fn lose_lines(&mut self) {
        let Some((number, build)) = self.lines.pop_first() else { return };
        let entries = self.builds.get_mut(&build).expect("its lines wait");
        let at = entries.iter().position(|entry| entry.number == number);
        let at = at.expect("lines are known by their number for as long as they wait");
        let Change::Output(text) = &entries[at].recorded.change else { return };
        self.bytes -= text.len();
        let mut lost = text.lines().count() as u64;
        // What was lost right before is one gap with it.
        let before = at.checked_sub(1).filter(|before| entries[*before].lost > 0);
        if let Some(before) = before {
            lost += entries[before].lost;
            entries.remove(at);
        }
        let entry = &mut entries[before.unwrap_or(at)];
        entry.lost = lost;
        entry.recorded.change =
            Change::Output(format!("… {lost} lines lost: the history could not be written\n"));
    }

    /// Takes what is to be written next: of each build in its order, those first that somebody waits for, and not
    /// more than so much of all.
    fn take(&mut self) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0;
        let awaited = std::mem::take(&mut self.awaited);
        let others: Vec<_> = self.builds.keys().take(BATCH).cloned().collect();
        for build in awaited.into_iter().chain(others) {
            let Some(entries) = self.builds.get_mut(&build) else { continue };
            while batch.changes.len() < BATCH && bytes < MOST_OUTPUT / 8 {
                let Some(entry) = entries.pop_front() else { break };
                if let Change::Output(text) = &entry.recorded.change {
                    bytes += text.len();
                    if self.lines.remove(&entry.number).is_some() {
                        self.bytes -= text.len();
                    }
                }
                batch.changes.push(entry.recorded);
                batch.awaited.extend(entry.stored);
            }
            if entries.is_empty() {
                self.builds.remove(&build);
            } else if entries.iter().any(|entry| entry.stored.is_some()) {
                self.awaited.push(build);
            }
        }
        batch
    }
}

/// Writes what is told of, until nobody is left to tell anything.
async fn write(store: Arc<dyn BuildStore>, shared: Weak<Shared>, mut told: watch::Receiver<u64>) {
    while told.changed().await.is_ok() {
        let written = Instant::now();
        loop {
            let Some(strong) = shared.upgrade() else { return };
            // Before it is taken: what is told of from here on may be missing in the batch.
            let number = *told.borrow_and_update();
            let batch = strong.lock().take();
            if !batch.changes.is_empty() {
                put(&*store, &batch.changes, &strong.failing).await;
            }
            for awaited in batch.awaited {
                let _ = awaited.send(());
            }
            if strong.lock().builds.is_empty() {
                strong.settled.send_replace(number);
                break;
            }
        }
        let Some(strong) = shared.upgrade() else { return };
        let pause = PAUSE.saturating_sub(written.elapsed());
        let _ = tokio::time::timeout(pause, strong.hurry.notified()).await;
    }
}

/// Writes a batch, however long that takes: the same one, so that the store knows it again.
async fn put(store: &dyn BuildStore, batch: &[Recorded], failing: &AtomicBool) {
    let mut pause = FIRST_PAUSE;
    let mut since: Option<Instant> = None;
    loop {
        match store.record(batch).await {
            Ok(()) => {
                failing.store(false, Ordering::Relaxed);
                if let Some(since) = since {
                    let seconds = since.elapsed().as_secs();
                    tracing::info!(seconds, "the history is written again");
                }
                return;
            }
            Err(StoreError::Refused(reason)) => {
                tracing::error!(
                    reason,
                    changes = batch.len(),
                    "the history cannot hold what happened"
                );
                return;
            }
            Err(error) => {
                if since.is_none() {
                    tracing::warn!(%error, "the history cannot be written: builds go on");
                    since = Some(Instant::now());
                    failing.store(true, Ordering::Relaxed);
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
