//! Processes of this same program that read what strangers wrote: without the worker's environment, and
//! with limits of their own.

use std::io;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// The program that becomes a child: this one, which stays right when the file is replaced under a running
/// worker.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";

/// A child's exit code where it failed for a reason that is the worker's.
pub(crate) const EXIT_WORKER: u8 = 70;

/// `program`, called as the child of this name. Dropping the process that it becomes kills it.
pub(crate) fn command(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command
        .arg(name)
        // Nothing of the worker's environment: it holds credentials.
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Whether this process was called as the child of this name.
pub(crate) fn is_called(name: &str) -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == name)
}

/// Lowers a limit of this process; one that is lower already stays.
pub(crate) fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let before = getrlimit(resource);
    let lower = |before: Option<u64>, to: u64| Some(before.map_or(to, |before| before.min(to)));
    let limit =
        Rlimit { current: lower(before.current, soft), maximum: lower(before.maximum, hard) };
    setrlimit(resource, limit)
        .map_err(|error| io::Error::other(format!("cannot limit {resource:?}: {error}")))
}

/// Bounds the processor time of this process. The soft limit ends it with a signal of its own, the hard one
/// with one that does not say why.
pub(crate) fn limit_cpu(seconds: u64) -> io::Result<()> {
    limit(Resource::Cpu, seconds, seconds + 1)
}

/// The first `longest` bytes of a pipe; what goes past them is read and dropped.
pub(crate) async fn read_some(pipe: Option<impl AsyncRead + Unpin>, longest: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(pipe) = pipe else { return bytes };
    let mut start = pipe.take(longest);
    // An error ends the pipe as its end does; the child's exit status says the rest.
    drop(start.read_to_end(&mut bytes).await);
    drop(tokio::io::copy(&mut start.into_inner(), &mut tokio::io::sink()).await);
    bytes
}
