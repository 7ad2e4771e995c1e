//! Keeps a worker running: one process after the other.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tempfile::TempDir;
use time::OffsetDateTime;

use crate::support::worker::{Settings, command};

/// Pause before a worker that ended is started again.
const PAUSE: Duration = Duration::from_millis(200);

/// What is known of a worker, and a bell for whoever waits for news of it.
#[derive(Default)]
pub struct Shared {
    state: Mutex<State>,
    pub news: Condvar,
}

/// A worker, as its present process is.
#[derive(Default)]
pub struct State {
    pub child: Option<Child>,
    /// Which process it is, from 1.
    pub generation: usize,
    /// Whether the present process has said that it starts, and so hears signals.
    pub started: bool,
    /// The end that somebody has asked for.
    pub asked: Option<Asked>,
    /// Whether the present process says that a disk is low.
    pub disk_low: bool,
    pub stopping: bool,
    pub last_exit: Option<ExitStatus>,
    /// When processes ended.
    pub ends: Vec<OffsetDateTime>,
    /// What went wrong with processes: nobody killed them, and they ended.
    pub faults: Vec<String>,
}

/// How a process was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Kill,
    Drain,
    LeaveAtOnce,
}

impl State {
    pub fn ended(&self) -> bool {
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
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no keeper panics")
    }
}

/// Starts a worker's processes, one after the other.
pub struct Keeper {
    name: String,
    settings: Settings,
    directory: TempDir,
    log: Arc<Mutex<File>>,
    shared: Arc<Shared>,
}

impl Keeper {
    /// Starts a worker of these settings again and again until it is told to stop.
    pub fn start(name: &str, settings: Settings, log: &Path) -> Arc<Shared> {
        let shared = Arc::new(Shared::default());
        let log = File::create(log).expect("the log can be written");
        let keeper = Self {
            name: name.to_owned(),
            settings,
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            log: Arc::new(Mutex::new(log)),
            shared: shared.clone(),
        };
        std::thread::spawn(move || keeper.keep());
        shared
    }

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
