//! `make bench`: the worker beside the plain commands `git clone --depth 1`, `docker build` and `docker push`.
//!
//! | part | what it times |
//! |---|---|
//! | `pairs` | the same build by both, again and again in turns: the medians of their ratios against what is aimed at |
//! | `memory` | the worker's own resident memory: idle, and with eight builds of 200 MB at once |
//! | `waiting`, `sizes`, `workers`, `hosts` | how cost grows: with requests that wait, with the size of a repository, with workers and with hosts |
//!
//! `cargo bench --bench commands -- pairs memory` runs only these parts. `ROUNDS` (10) is the number of pairs, and
//! `CASE` a part of the names of those that are wanted; `PLOTS` names a directory for plots of how cost grows. The
//! engine is that of `DOCKER_HOST`.

#![allow(clippy::print_stdout, reason = "its figures are for whoever runs it")]

#[path = "../../support/mod.rs"]
mod support;

mod growth;
mod memory;
mod pairs;
mod plot;
mod sides;
mod trees;

use support::setting;
use support::world::World;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let parts: [(&str, fn()); 6] = [
        ("pairs", pairs::run),
        ("memory", memory::run),
        ("waiting", growth::waiting),
        ("sizes", growth::sizes),
        ("workers", growth::workers),
        ("hosts", growth::hosts),
    ];
    println!("engine {}", support::engine::docker(&["version", "--format", "{{.Server.Version}}"]));
    for (name, run) in parts {
        if asked.is_empty() || asked.iter().any(|it| it == name) {
            println!("\n{name}: load average {}", load());
            run();
        }
    }
    println!("\nload average {}", load());
}

/// What else the machine does: the figures are only as good as that is low.
fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn number(name: &str, default: &str) -> usize {
    setting(name, default).parse().unwrap_or_else(|_| panic!("{name} is a number"))
}

/// All as it is where nothing is set, but for so many builders.
fn world(builders: usize) -> World {
    World::new().with_defaults().with("BUILDER_CONCURRENCY", &builders.to_string())
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
