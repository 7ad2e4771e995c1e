//! Three workers, each started again whenever it ends, as a container platform would.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::disk::Disk;
use crate::support::worker::{Settings, command};

/// Pause before a worker that ended is started again.
const PAUSE: Duration = Duration::from_millis(200);

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

struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    /// Which process it is, from 1.
    generation: usize,
    /// Whether the present process has said that it starts, and so hears signals.
    started: bool,
    /// Ends that somebody has asked for.
    asked: Option<Asked>,
    /// Whether the present process says that a disk is low.
    disk_low: bool,
    stopping: bool,
    last_exit: Option<ExitStatus>,
    /// When processes ended.
    ends: Vec<OffsetDateTime>,
    /// What went wrong with processes: nobody killed them, and they ended.
    faults: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Kill,
    Drain,
    LeaveAtOnce,
}

impl Worker {
    /// Starts it, with its own disk and files below `home`.
    pub fn start(name: &str, home: &Path, log: PathBuf, mut settings: Settings) -> Self {
        let (data, kill_at) = (home.join(name), home.join(format!("{name}.kill")));
        let disk = Disk::mount(&data);
        settings.insert("DATA_DIR".to_owned(), data.display().to_string());
        settings.insert("KILL_AT".to_owned(), kill_at.display().to_string());
        let shared = Arc::new(Shared { state: Mutex::default(), news: Condvar::new() });
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let file = File::create(&log).expect("the log can be written");
        let keeper = Keeper {
            name: name.to_owned(),
            settings,
            directory,
            log: Arc::new(Mutex::new(file)),
            shared: shared.clone(),
        };
        std::thread::spawn(move || keeper.keep());
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

impl State {
    fn ended(&self) -> bool {
        self.child.is_none()
    }

    /// Takes note of a line of the process's log; returns whether there was news in it.
    fn hear(&mut self, line: &str) -> bool {
        let low = line.contains("\"disk_low\"");
        if line.contains("\"starting\"") {
            self.started = true;
        } else if low && line.contains("the listener pauses") {
            self.disk_low = true;
        } else if low && line.contains("the listener resumes") {
            self.disk_low = false;
        } else {
            return false;
        }
        true
    }

    /// Whether the process ended as somebody had asked, and what is wrong if not.
    fn judge(&mut self, name: &str, exit: ExitStatus) {
        use std::os::unix::process::ExitStatusExt;
        let expected = match self.asked.take() {
            Some(Asked::Kill) => exit.signal() == Some(9),
            Some(Asked::Drain) => exit.code() == Some(0),
            Some(Asked::LeaveAtOnce) => matches!(exit.code(), Some(0 | 75)),
            None => false,
        };
        if !expected {
            self.faults.push(format!("process {} of {name} ended with {exit}", self.generation));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no keeper panics")
    }
}

/// Starts a worker's processes, one after the other.
struct Keeper {
    name: String,
    settings: Settings,
    directory: TempDir,
    log: Arc<Mutex<File>>,
    shared: Arc<Shared>,
}

impl Keeper {
    fn keep(self) {
        while !self.shared.lock().stopping {
            self.spawn();
            self.reap();
            std::thread::sleep(PAUSE);
        }
    }

    fn spawn(&self) {
        let mut child = command(&["serve"], &self.settings, &self.directory)
            .spawn()
            .expect("the program starts");
        let output: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stderr.take().expect("it is a pipe")),
            Box::new(child.stdout.take().expect("it is a pipe")),
        ];
        let generation = {
            let mut state = self.shared.lock();
            state.generation += 1;
            state.child = Some(child);
            state.started = false;
            state.disk_low = false;
            state.asked = None;
            state.generation
        };
        self.shared.news.notify_all();
        for stream in output {
            let (log, shared) = (self.log.clone(), self.shared.clone());
            std::thread::spawn(move || keep_lines(stream, &log, &shared, generation));
        }
    }

    /// Waits until the process has ended.
    fn reap(&self) {
        loop {
            {
                let mut state = self.shared.lock();
                let child = state.child.as_mut().expect("it was just started");
                if let Some(exit) = child.try_wait().expect("a child can be waited for") {
                    state.child = None;
                    state.last_exit = Some(exit);
                    state.ends.push(OffsetDateTime::now_utc());
                    state.judge(&self.name, exit);
                    self.shared.news.notify_all();
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn keep_lines(stream: impl Read, log: &Mutex<File>, shared: &Shared, generation: usize) {
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(mut line) = line else { return };
        let mut state = shared.lock();
        if state.generation == generation && state.hear(&String::from_utf8_lossy(&line)) {
            shared.news.notify_all();
        }
        drop(state);
        line.push(b'\n');
        // A log that cannot be written is missed where it is looked at.
        let _ = log.lock().expect("no reader panics").write_all(&line);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(mut child) = self.shared.lock().child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
