//! How far a run has come.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::faults::{Done, Fault};
use crate::world::lock;

/// How far requests and faults have come: each waits for the other to keep in step.
#[derive(Default)]
pub struct Progress {
    published: AtomicUsize,
    happened: AtomicUsize,
    given_up: AtomicBool,
    events: Mutex<Events>,
}

/// What became of the faults.
#[derive(Default)]
pub struct Events {
    /// Those that happened, by kind.
    pub faults: BTreeMap<String, usize>,
    /// Those that had nothing to strike.
    pub in_vain: usize,
    /// What went wrong with others.
    pub failed: Vec<String>,
    file: Option<File>,
}

impl Progress {
    /// Writes the faults down in a file as well, for those who look into a run.
    pub fn noted_in(file: &Path) -> Self {
        let progress = Self::default();
        lock(&progress.events).file = File::create(file).ok();
        progress
    }

    /// One more request was published.
    pub fn published(&self) {
        self.published.fetch_add(1, Ordering::SeqCst);
    }

    pub fn until_published(&self, count: usize) {
        self.until(&self.published, count);
    }

    pub fn until_happened(&self, count: usize) {
        self.until(&self.happened, count);
    }

    fn until(&self, counter: &AtomicUsize, count: usize) {
        while counter.load(Ordering::SeqCst) < count {
            assert!(
                !self.given_up.load(Ordering::SeqCst),
                "another thread of the run has panicked"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whoever has this lets the others panic too when it does: they would wait for it for ever.
    pub fn stop_others_on_panic(&self) -> impl Drop {
        OnPanic(&self.given_up)
    }

    /// Writes down what became of a fault.
    pub fn note(&self, fault: Fault, done: Done) {
        let mut events = lock(&self.events);
        let outcome = match done {
            Done::Happened => {
                *events.faults.entry(fault.to_string()).or_default() += 1;
                "happened"
            }
            Done::InVain => {
                events.in_vain += 1;
                "struck nothing"
            }
            Done::Wrong(text) => {
                events.failed.push(format!("{fault}: {text}"));
                "went wrong"
            }
        };
        let now = time::OffsetDateTime::now_utc();
        if let Some(file) = &mut events.file {
            // The figures do without it.
            let _ = writeln!(file, "{now} {outcome}: {fault:?}");
        }
        drop(events);
        self.happened.fetch_add(1, Ordering::SeqCst);
    }

    /// What became of all faults.
    pub fn events(&self) -> Events {
        std::mem::take(&mut *lock(&self.events))
    }
}

struct OnPanic<'a>(&'a AtomicBool);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}
