//! The program itself, as a process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENCE, client, runtime};

/// The program's binary.
pub const BINARY: &str = env!("CARGO_BIN_EXE_image-builder");

/// Settings as the program reads them. Nothing else of the test's environment reaches it.
pub type Settings = BTreeMap<String, String>;

/// The program with these arguments and settings, in a directory of its own.
pub fn command(arguments: &[&str], settings: &Settings, directory: &TempDir) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(arguments)
        .current_dir(directory.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory.path())
        .envs(settings)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// How the program ended that was meant to end by itself.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs the program to its end.
pub fn run(arguments: &[&str], settings: &Settings) -> Ended {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    command(arguments, settings, &directory).output().expect("the program starts").into()
}

/// The same with this on its standard input.
pub fn run_with_input(arguments: &[&str], settings: &Settings, input: &str) -> Ended {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut child = command(arguments, settings, &directory)
        .stdin(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    stdin.write_all(input.as_bytes()).expect("it is read");
    drop(stdin);
    child.wait_with_output().expect("the program ends").into()
}

/// What the program has logged so far.
#[derive(Default)]
struct Log {
    lines: Mutex<Lines>,
    news: Condvar,
}

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    ended: bool,
}

/// A running `image-builder serve`. Dropping it kills it, and removes the images that it built.
pub struct Worker {
    child: Mutex<Child>,
    pid: u32,
    log: Arc<Log>,
    _directory: TempDir,
}

impl Worker {
    /// Starts a worker, and waits until it is at work.
    pub fn start(settings: &Settings) -> Self {
        let worker = Self::spawn(settings);
        worker.wait_for_line("at work");
        worker
    }

    /// Starts a worker that finds this file in its directory, and waits until it is at work.
    pub fn start_with_file(settings: &Settings, path: &str, text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a file is in a directory"))
            .and_then(|()| std::fs::write(path, text))
            .expect("a file can be written");
        let worker = Self::spawn_in(directory, settings);
        worker.wait_for_line("at work");
        worker
    }

    /// Starts a worker.
    pub fn spawn(settings: &Settings) -> Self {
        Self::spawn_in(tempfile::tempdir().expect("a temporary directory can be made"), settings)
    }

    fn spawn_in(directory: TempDir, settings: &Settings) -> Self {
        let mut child =
            command(&["serve"], settings, &directory).spawn().expect("the program starts");
        let log = Arc::new(Log::default());
        let output: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stderr.take().expect("it is a pipe")),
            Box::new(child.stdout.take().expect("it is a pipe")),
        ];
        for stream in output {
            let log = log.clone();
            std::thread::spawn(move || log.keep(stream));
        }
        Self { pid: child.id(), child: Mutex::new(child), log, _directory: directory }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// All lines that it has written, on both streams.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// The first line that holds this text, now or later.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) -> String {
        self.wait_for_line_where(text, |line| line.contains(text))
    }

    /// The first line that `wanted` says yes to, now or later.
    #[track_caller]
    pub fn wait_for_line_where(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lock();
        loop {
            if let Some(line) = lines.lines.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero() && !lines.ended,
                "the worker never logged `{what}`:\n{}",
                lines.lines.join("\n")
            );
            let waited = self.log.news.wait_timeout(lines, left);
            (lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Tells it that its terminal is gone, or that it shall read its settings anew.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Ends it as a crash of the machine would.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).expect("a child has a pid");
        kill_process(pid, signal).expect("the worker is alive, or not yet waited for");
    }

    /// Waits until it has ended; returns its exit code, -1 where a signal ended it.
    #[track_caller]
    pub fn wait(&self) -> i32 {
        let status = super::until("the worker ends", || {
            self.child
                .lock()
                .expect("nobody panics with it")
                .try_wait()
                .expect("a child can be waited for")
        });
        status.code().unwrap_or(-1)
    }

    /// Drains it; it must end well.
    #[track_caller]
    pub fn stop(&self) {
        self.terminate();
        let code = self.wait();
        assert_eq!(code, 0, "a drained worker exits with 0:\n{}", self.lines().join("\n"));
    }

    /// Whether the process is still there.
    pub fn is_alive(&self) -> bool {
        self.child
            .lock()
            .expect("nobody panics with it")
            .try_wait()
            .is_ok_and(|ended| ended.is_none())
    }

    /// Address and port of its HTTP server.
    pub fn http(&self) -> String {
        let line = self.wait_for_line("\"starting\"");
        let line: Value = serde_json::from_str(&line).expect("log lines are JSON");
        line["http"].as_str().expect("the address is logged").to_owned()
    }

    /// Status and body of one of its HTTP endpoints.
    pub fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.http());
        runtime().block_on(async {
            let response = client().get(url).timeout(Duration::from_secs(20)).send().await;
            let response = response.expect("the worker answers HTTP");
            let status = response.status().as_u16();
            (status, response.text().await.expect("the answer is whole"))
        })
    }

    /// The value of a sample, named as it stands in `/metrics`, labels included.
    #[track_caller]
    pub fn metric(&self, sample: &str) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("no {sample} in:\n{text}"))
    }

    /// Jobs that wait for a slot of this actor.
    pub fn waiting(&self, actor: &str) -> usize {
        self.metric(&format!("image_builder_actor_waiting{{actor=\"{actor}\"}}")) as usize
    }

    /// How often each of the six actors has died, in the order of a job's way.
    pub fn restarts(&self) -> [u64; 6] {
        ["listener", "connector", "builder", "pusher", "notifier", "retry"].map(|actor| {
            self.metric(&format!("image_builder_actor_restarts_total{{actor=\"{actor}\"}}")) as u64
        })
    }
}

impl Log {
    /// Also after a test has failed while it looked.
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, stream: impl Read) {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { break };
            let mut lines = self.lock();
            lines.lines.push(String::from_utf8_lossy(&line).into_owned());
            self.news.notify_all();
        }
        self.lock().ended = true;
        self.news.notify_all();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut child = self.child.lock().expect("nobody panics with it");
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            let mut lines = self.lines();
            let tail = lines.split_off(lines.len().saturating_sub(8));
            let is_bad =
                |line: &String| ["\"WARN\"", "\"ERROR\""].iter().any(|it| line.contains(it));
            lines.retain(is_bad);
            eprintln!("--- what the worker warned of, and its last lines");
            eprintln!("{}", [lines, tail].concat().join("\n"));
        } else {
            super::canary::assert_not_in("the worker's log", &self.lines());
        }
    }
}
