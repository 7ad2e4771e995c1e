//! The standard error stream beneath the log. A thread of its own writes to it: where nobody reads, lines are
//! dropped and counted, and the work goes on.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that wait to be written; further ones are dropped.
const LONGEST_QUEUE: usize = 8192;
/// How long the end of the program waits for the last lines to be written.
const LAST: Duration = Duration::from_secs(2);
/// How often it is looked whether lines were dropped.
const LOOK: Duration = Duration::from_secs(1);

/// Lines that found the queue full.
static FULL: OnceLock<ErrorCounter> = OnceLock::new();
/// Lines that could not be written.
static FAILED: AtomicUsize = AtomicUsize::new(0);
/// Lines that were written.
static WRITTEN: AtomicUsize = AtomicUsize::new(0);

/// The stream, for as long as the program logs. Dropping it waits for the last lines, in bounded time.
pub struct LogStream {
    out: NonBlocking,
    guard: Option<WorkerGuard>,
}

impl LogStream {
    pub(super) fn open() -> Self {
        let builder = NonBlockingBuilder::default().lossy(true).thread_name("log");
        let (out, guard) = builder.buffered_lines_limit(LONGEST_QUEUE).finish(Stderr);
        FULL.get_or_init(|| out.error_counter());
        Self { out, guard: Some(guard) }
    }

    /// Opens the stream for one line after the other.
    pub(super) fn writer(&self) -> impl Fn() -> NonBlocking + use<> {
        let out = self.out.clone();
        move || out.clone()
    }

    /// Writes a line that is told whatever is logged.
    pub fn line(&self, text: &str) {
        // A full queue is no error here.
        let _ = self.out.clone().write_all(format!("{text}\n").as_bytes());
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        let guard = self.guard.take();
        let (done, last) = mpsc::channel();
        // The library's guard may itself write that it cannot, to a stream that nobody reads.
        thread::spawn(move || {
            drop(guard);
            let _ = done.send(());
        });
        let _ = last.recv_timeout(LAST);
    }
}

/// Lines that were dropped since the program started.
pub fn dropped_lines() -> u64 {
    let full = FULL.get().map_or(0, ErrorCounter::dropped_lines);
    (full + FAILED.load(Ordering::Relaxed)) as u64
}

/// Says how many lines were dropped, once lines are written again.
pub async fn tell_of_dropped_lines() {
    let (mut told, mut before) = (0, 0);
    let mut written = WRITTEN.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(LOOK).await;
        let dropped = dropped_lines();
        let now_written = WRITTEN.load(Ordering::Relaxed);
        // A line that is written while others are still dropped would not be the last one.
        let flows = now_written > written && dropped == before;
        (written, before) = (now_written, dropped);
        if flows && dropped > told {
            let lines = dropped - told;
            tracing::warn!(lines, "log lines were dropped: nobody read the standard error stream");
            told = dropped;
        }
    }
}

/// Counts what becomes of each line.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write(bytes)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let written = io::stderr().write_all(line);
        let count = if written.is_ok() { &WRITTEN } else { &FAILED };
        count.fetch_add(1, Ordering::Relaxed);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
