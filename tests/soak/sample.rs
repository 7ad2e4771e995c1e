//! What a worker holds at a moment: read from the system and from the broker, not from the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::support::worker::Worker;
use crate::support::{broker, engine};

/// Figures of [`Sample::memory`].
pub const RSS: &str = "resident memory";
pub const PRIVATE: &str = "anonymous memory";

/// Figures of [`Sample::levels`].
pub const FDS: &str = "file descriptors";
pub const THREADS: &str = "threads";
pub const POOL: &str = "threads of the runtime's pool";
pub const TCP: &str = "TCP sockets";
pub const CONNECTIONS: &str = "connections to the broker";
pub const CHANNELS: &str = "channels to the broker";
pub const FILES: &str = "files of the worker";

/// What a worker holds while it has nothing to do.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// In KiB, without the buffers of the connections to the broker.
    pub memory: BTreeMap<&'static str, u64>,
    /// Some of each there always is.
    pub levels: BTreeMap<&'static str, u64>,
    /// What there must be none of.
    pub left: BTreeSet<String>,
}

/// Where to look.
pub struct Place<'a> {
    pub worker: &'a Worker,
    /// All files of the worker are below.
    pub home: &'a Path,
    /// What all names of the run begin with, and what is in every step's command line.
    pub run: &'a str,
    /// Where the messages of given up builds are kept, which are meant to stay.
    pub dead_queue: &'a str,
}

impl Sample {
    pub fn take(place: &Place) -> Self {
        let pid = place.worker.pid();
        let rollup = read(pid, "smaps_rollup");
        let buffers = buffers(&read(pid, "smaps"));
        let (connections, channels) = broker::connections_and_channels_of(pid);
        let (pool, threads) = threads(pid);
        Self {
            memory: [(RSS, "Rss:"), (PRIVATE, "Anonymous:")]
                .map(|(name, field)| (name, number(&rollup, field) - buffers))
                .into(),
            levels: [
                (FDS, entries(&format!("/proc/{pid}/fd"))),
                (THREADS, threads),
                (POOL, pool),
                (TCP, broker::tcp_ports(pid).len() as u64),
                (CONNECTIONS, connections),
                (CHANNELS, channels),
                (FILES, files_below(place.home)),
            ]
            .into(),
            left: left(place),
        }
    }

    /// What is still held at a later moment: what comes and goes by itself, such as a look at whether
    /// the registry is up, is not counted.
    pub fn settle(&mut self, later: Sample) {
        self.memory = later.memory;
        for (name, level) in &mut self.levels {
            *level = (*level).min(later.levels[name]);
        }
        self.left.retain(|thing| later.left.contains(thing));
    }
}

fn left(place: &Place) -> BTreeSet<String> {
    let queues = broker::queues_in_use(&format!("{}.", place.run));
    let queues = queues.into_iter().filter(|name| name != place.dead_queue);
    let mut left: BTreeSet<String> = queues.map(|name| format!("messages in {name}")).collect();
    let pid = place.worker.pid();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let name = process.file_name().to_string_lossy().into_owned();
        if parent(&stat) == Some(pid) {
            left.insert(format!("child process {name}: {line}"));
        } else if line.contains(place.run) {
            left.insert(format!("a build's process {name}: {line}"));
        }
    }
    let containers = ["ps", "--all", "--no-trunc", "--format", "{{.ID}} {{.Image}} {{.Command}}"];
    let containers = engine::docker(&containers);
    let ours = containers.lines().filter(|line| line.contains(place.run));
    left.extend(ours.map(|line| format!("container {line}")));
    let (_, metrics) = place.worker.get("/metrics");
    let jobs = metrics.lines().filter(|line| {
        ["image_builder_actor_in_hand{", "image_builder_actor_waiting{"]
            .iter()
            .any(|family| line.starts_with(family))
            && !line.ends_with(" 0")
    });
    left.extend(jobs.map(|line| format!("jobs: {line}")));
    left
}

/// The fourth field of a process's `stat`, whose second one may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn read(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).expect("the worker is alive")
}

/// The number after a field's name, in a file with a field a line.
fn number(text: &str, field: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no {field} in:\n{text}"))
}

/// How much of the buffers of connections to the broker is in memory, in KiB. Each has two of 4 MiB, which come into it
/// for good as bytes pass; the system tells neighbours as one.
fn buffers(smaps: &str) -> u64 {
    const EACH: u64 = (4 << 20) + 4096;
    let mut resident = 0;
    let mut is_buffers = false;
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [range, "rw-p", "00000000", "00:00", "0"] => {
                is_buffers = size(range).is_some_and(|size| size > 0 && size.is_multiple_of(EACH));
            }
            [_, access, ..] if access.len() == 4 && access.ends_with(['p', 's']) => {
                is_buffers = false;
            }
            ["Rss:", kib, "kB"] if is_buffers => resident += kib.parse::<u64>().unwrap_or(0),
            _ => {}
        }
    }
    resident
}

/// Bytes of a range of addresses, `from-to` in hexadecimal.
fn size(range: &str) -> Option<u64> {
    let (from, to) = range.split_once('-')?;
    u64::from_str_radix(to, 16).ok()?.checked_sub(u64::from_str_radix(from, 16).ok()?)
}

fn entries(directory: &str) -> u64 {
    fs::read_dir(directory).expect("the worker is alive").count() as u64
}

/// How many threads the runtime's pool has, which also makes blocking calls, and how many others there are.
fn threads(pid: u32) -> (u64, u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the worker is alive").flatten();
    // One may have ended meanwhile.
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    let (pool, others): (Vec<_>, Vec<_>) = names.partition(|name| name.trim() == "tokio-rt-worker");
    (pool.len() as u64, others.len() as u64)
}

/// What is kept of repositories for the next build has a budget of its own, and is not counted.
fn files_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name() != "git")
        .map(|entry| {
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            1 + if is_directory { files_below(&entry.path()) } else { 0 }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_buffers_of_connections_are_counted_as_such() {
        let smaps = "\
7f0000000000-7f0000802000 rw-p 00000000 00:00 0 \nSize: 8200 kB\nRss: 700 kB\n\
7f0001000000-7f0001401000 rw-p 00000000 00:00 0 \nRss: 20 kB\n\
7f0002000000-7f0002400000 rw-p 00000000 00:00 0 \nRss: 3000 kB\n\
7f0003000000-7f0003401000 rw-p 00000000 00:00 0 [heap]\nRss: 50000 kB\n\
7f0004000000-7f0004401000 r--p 00000000 08:01 17 /lib/x.so\nRss: 600000 kB\n";
        assert_eq!(buffers(smaps), 720);
    }
}
