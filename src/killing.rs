//! For tests (feature `failpoints`): the process kills itself at a point that it is told while it runs.
//!
//! `KILL_AT` names a file. Whoever writes a failpoint's name into it has the process killed, with
//! everything that a kill takes with it, when a job next comes to that point. The file is removed
//! just before.

use std::path::Path;

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
    "desk::settle",
    "retry::handle",
    "retry::work",
    "notifier::handle",
    "notifier::work",
    "notifier::told",
];

/// Has all points look into the file, where there is to be one.
pub fn prepare() {
    let Some(file) = std::env::var_os("KILL_AT") else { return };
    for point in POINTS {
        let file = file.clone();
        let looked = fail::cfg_callback(point, move || look(point, Path::new(&file)));
        if let Err(error) = looked {
            tracing::error!(point, error, "the point cannot be made to kill");
        }
    }
}

fn look(point: &str, file: &Path) {
    if std::fs::read_to_string(file).is_ok_and(|wanted| wanted == point)
        // Of two jobs at the point, one is it.
        && std::fs::remove_file(file).is_ok()
    {
        // It cannot fail: a process may always signal itself.
        let _ = kill_process(getpid(), Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}
