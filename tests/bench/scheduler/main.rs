//! `make bench`: what the scheduler makes of many requests.
//!
//! | part | what it times |
//! |---|---|
//! | `builds` | many small builds of many users, of one user, and by hand under `xargs -P2` |
//! | `flood` | one request behind another user's flood; three replicas and an uneven flood |
//! | `bursts` | how fast requests are read, and what memory that takes |
//! | `lanes` | what the number of lanes costs |
//!
//! `cargo bench --bench scheduler -- bursts lanes` runs only these parts.

#![allow(clippy::print_stdout, reason = "its figures are for whoever runs it")]

#[path = "../../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the suites of the broker use all of it")]
#[path = "../../support/rabbit.rs"]
mod rabbit;

mod builds;
mod bursts;
mod events;
mod flood;
mod lanes;

use std::time::Duration;

use support::git_server::GitRepo;
use support::setting;
use support::world::{World, repository};

/// Longest wait for all of something.
const PATIENCE: Duration = Duration::from_secs(1200);

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let parts: [(&str, fn()); 4] = [
        ("builds", builds::run),
        ("flood", flood::run),
        ("bursts", bursts::run),
        ("lanes", lanes::run),
    ];
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|it| it == name) {
            println!("load average {}", load());
            run();
            println!();
        }
    }
    println!("load average {}", load());
}

/// What else the machine does: the figures are only as good as that is low.
fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn number(name: &str, default: &str) -> usize {
    setting(name, default).parse().unwrap_or_else(|_| panic!("{name} is a number"))
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Two builders, and all else as it is where nothing is set.
fn world() -> World {
    World::new().with_defaults().with("BUILDER_CONCURRENCY", "2")
}

/// A repository whose image is one file.
fn one_file() -> GitRepo {
    repository("bench", &[("Dockerfile", DOCKERFILE), ("file", "a file")])
}

const DOCKERFILE: &str = "FROM scratch\nCOPY file /file\n";
