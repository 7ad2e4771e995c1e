//! Three workers, each started again whenever it ends, as a container platform would.

use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use time::OffsetDateTime;

use crate::disk::Disk;
use crate::keeper::{Asked, Keeper, Shared, State};
use crate::support::worker::Settings;

/// How long a worker has to notice that its disk is filled: it looks every ten seconds, and before each
/// build.
const NOTICES: Duration = Duration::from_secs(15);

/// A worker, whichever process it is at the moment.
pub struct Worker {
    pub name: String,
    /// Where the process is told at which point to die.
    kill_at: PathBuf,
    pub data: PathBuf,
    pub log: PathBuf,
    shared: Arc<Shared>,
    // Goes after the process: `drop` awaits its end.
    disk: Disk,
}

impl Worker {
    /// Starts it, with its own disk and files below `home`.
    pub fn start(name: &str, home: &Path, log: PathBuf, mut settings: Settings) -> Self {
        let (data, kill_at) = (home.join(name), home.join(format!("{name}.kill")));
        let disk = Disk::mount(&data);
        settings.insert("DATA_DIR".to_owned(), data.display().to_string());
        settings.insert("KILL_AT".to_owned(), kill_at.display().to_string());
        let shared = Keeper::start(name, settings, &log);
        Self { name: name.to_owned(), kill_at, data, log, shared, disk }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// Kills the process, wherever it is. Returns whether there was one.
    pub fn kill(&self) -> bool {
        self.wait(Duration::from_secs(5), |state| state.child.is_some() || state.stopping);
        self.signal(Signal::KILL, Asked::Kill)
    }

    fn signal(&self, signal: Signal, asked: Asked) -> bool {
        let mut state = self.state();
        let Some(child) = &state.child else { return false };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        // It is reaped under this lock only, so the number is still its own.
        kill_process(pid.expect("a child has a pid"), signal).expect("a child can be signalled");
        state.asked = Some(asked);
        true
    }

    /// Has the process kill itself when it next comes to this point; returns whether it did so in
    /// time.
    pub fn kill_at(&self, point: &str, patience: Duration) -> bool {
        if !self.wait(patience, |state| state.child.is_some() && state.started) {
            return false;
        }
        let generation = {
            let mut state = self.state();
            state.asked = Some(Asked::Kill);
            state.generation
        };
        let draft = self.kill_at.with_extension("draft");
        std::fs::write(&draft, point).expect("the file can be written");
        std::fs::rename(&draft, &self.kill_at).expect("the file can be put in its place");
        let ended = self.wait(patience, |state| state.generation > generation || state.ended());
        // The file is gone where the process has begun to die.
        if !ended && std::fs::remove_file(&self.kill_at).is_err() {
            return self.wait(patience, |state| state.generation > generation || state.ended());
        }
        if !ended {
            self.state().asked = None;
        }
        ended
    }

    /// Asks the process to end, and waits until it has; `again` asks a second time.
    pub fn terminate(&self, again: Option<Duration>, patience: Duration) -> Result<(), String> {
        if !self.wait(patience, |state| state.child.is_some() && state.started) {
            return Err(format!("{} did not start within {patience:?}", self.name));
        }
        let generation = self.state().generation;
        if !self.signal(Signal::TERM, Asked::Drain) {
            return Ok(());
        }
        let ended = |state: &State| state.generation > generation || state.ended();
        if let Some(after) = again
            && !self.wait(after, ended)
        {
            self.signal(Signal::TERM, Asked::LeaveAtOnce);
        }
        match self.wait(patience, ended) {
            true => Ok(()),
            false => Err(format!("{} did not end within {patience:?} of a SIGTERM", self.name)),
        }
    }

    /// Fills its disk for a while; returns whether it paused for that, and then resumed.
    pub fn fill_disk(&self, during: Duration, patience: Duration) -> Result<bool, String> {
        let ballast = self.disk.fill().map_err(|error| format!("{}'s disk: {error}", self.name))?;
        let paused = self.wait(NOTICES, |state| state.disk_low);
        if paused {
            std::thread::sleep(during);
        }
        drop(ballast);
        match self.wait(patience, |state| !state.disk_low) {
            true => Ok(paused),
            false => Err(format!("{} does not resume with its disk empty again", self.name)),
        }
    }

    /// Ends it for good; it must drain well.
    pub fn stop(&self, patience: Duration) {
        self.state().stopping = true;
        let ended = self.terminate(None, patience);
        let mut state = self.state();
        let wrong = match (ended, state.last_exit) {
            (Err(text), _) => text,
            (Ok(()), Some(exit)) if exit.success() => return,
            (Ok(()), exit) => format!("{} ended with {exit:?} instead of draining", self.name),
        };
        state.faults.push(wrong);
    }

    pub fn faults(&self) -> Vec<String> {
        self.state().faults.clone()
    }

    /// When its processes ended.
    pub fn ends(&self) -> Vec<OffsetDateTime> {
        self.state().ends.clone()
    }

    /// How many processes it has been.
    pub fn generations(&self) -> usize {
        self.state().generation
    }

    fn wait(&self, patience: Duration, mut seen: impl FnMut(&State) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        while !seen(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (state, _) = self.shared.news.wait_timeout(state, left).expect("no keeper panics");
        }
        true
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.state().stopping = true;
        self.kill();
        self.wait(Duration::from_secs(5), State::ended);
    }
}
