//! For tests (feature `failpoints`): the process kills itself at a point that is named while it runs.
//!
//! `KILL_AT` names a file. Whoever writes a failpoint's name into it has the process killed, with
//! everything that a kill takes with it, when a job next comes to that point; with a number behind
//! the name, when that many have come to it. The file is removed just before. A point that
//! `FAILPOINTS` names does what it says there.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Signal, getpid, kill_process};

/// A job's way, in its order. `settle` lies between a durable fact and its ack.
pub const POINTS: [&str; 17] = [
    "listener::handle",
    "listener::work",
    "connector::handle",
    "connector::work",
    "connector::fetched",
    "builder::handle",
    "builder::work",
    "builder::built",
    "pusher::handle",
    "pusher::work",
    "pusher::pushed",
    "settlement::settle",
    "retry::handle",
    "retry::work",
    "notifier::handle",
    "notifier::work",
    "notifier::told",
];

/// Has all points look into the file, where there is to be one.
pub fn prepare() {
    let Some(file) = std::env::var_os("KILL_AT") else { return };
    let taken = fail::list();
    for point in POINTS {
        if taken.iter().any(|(name, _)| name == point) {
            continue;
        }
        let file = file.clone();
        let looked = fail::cfg_callback(point, move || look(point, Path::new(&file)));
        if let Err(error) = looked {
            tracing::error!(point, error, "the point cannot be made to kill");
        }
    }
}

/// Of two jobs that are at a point at once, one counts.
static LOOKING: Mutex<()> = Mutex::new(());

fn look(point: &str, file: &Path) {
    let _alone = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(wanted) = std::fs::read_to_string(file) else { return };
    let (name, count) = wanted.split_once(' ').unwrap_or((&wanted, "1"));
    if name != point {
        return;
    }
    let more = count.parse().unwrap_or(1_u32).saturating_sub(1);
    if more > 0 {
        if let Err(error) = std::fs::write(file, format!("{point} {more}")) {
            tracing::error!(point, %error, "it cannot be noted that a job came by");
        }
    } else if std::fs::remove_file(file).is_ok() {
        // It cannot fail: a process may always signal itself.
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}
