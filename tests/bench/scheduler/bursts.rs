//! Bursts: how fast requests are read, each settled or put in its lane, and what memory that takes.
//!
//! A burst is published while the worker is stopped, so that only the reading is timed. No forge answers, so
//! nothing is built beside it.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::worker::Worker;
use crate::support::world::World;
use crate::support::{Door, unique};
use crate::{PATIENCE, events, median, number, world};

/// Of what a burst consists.
#[derive(Clone, Copy)]
enum Burst {
    /// No JSON: a dead letter each.
    NoJson,
    /// Of a user who can be told: a dead letter, an outcome and a notification each.
    Invalid,
    /// Each goes into its lane.
    Readable,
}

pub(crate) fn run() {
    let (count, rounds) = (number("FLOOD", "10000"), number("ROUNDS", "7").div_ceil(2));
    println!("{rounds} bursts of {count}, read by one worker; medians\n");
    println!(
        "{:<40} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "a second", "told/s", "MB before", "at most", "after"
    );
    for (name, burst) in [
        ("unreadable, of nobody", Burst::NoJson),
        ("invalid, of a user", Burst::Invalid),
        ("readable, of one user in 20", Burst::Readable),
    ] {
        one_kind(name, burst, count, rounds);
    }
}

fn one_kind(name: &str, burst: Burst, count: usize, rounds: usize) {
    let forge = Door::deaf();
    let world = world().with("GITHUB_URL", &format!("http://127.0.0.1:{}", forge.port));
    let worker = world.worker();
    let (mut published, mut peak) = (0, 0.0_f64);
    let (mut settled, mut told) = (Vec::new(), Vec::new());
    let mut before = 0.0;
    for round in 0..=rounds {
        // The first one warms up.
        let count = if round == 0 { count.div_ceil(10) } else { count };
        signal(&worker, Signal::STOP);
        world.broker.publish_all(&world.settings["BUILD_QUEUE"], &bodies(burst, count));
        published += count;
        let begun = Instant::now();
        signal(&worker, Signal::CONT);
        while !is_through(burst, &world, &worker, published) {
            assert!(begun.elapsed() < PATIENCE, "a burst of {count} is never read");
            peak = peak.max(memory(&worker));
            std::thread::sleep(Duration::from_millis(20));
        }
        let took = begun.elapsed();
        if let Burst::Invalid = burst {
            world.managers.wait_for_many("all", published, PATIENCE, |_| true);
        }
        if round == 0 {
            before = memory(&worker);
            continue;
        }
        settled.push(count as f64 / took.as_secs_f64());
        told.push(count as f64 / begun.elapsed().as_secs_f64());
    }
    let told = match burst {
        Burst::Invalid => format!("{:.0}", median(&told)),
        Burst::NoJson | Burst::Readable => String::new(),
    };
    println!(
        "{name:<40} {:>9.0} {told:>9} {before:>9.1} {peak:>9.1} {:>9.1}",
        median(&settled),
        memory(&worker)
    );
    worker.kill();
    worker.wait();
}

fn bodies(burst: Burst, count: usize) -> Vec<String> {
    let body = |n: usize| match burst {
        Burst::NoJson => format!("this is no JSON {n}"),
        Burst::Invalid => {
            json!({"userID": "u", "repo": "this names no repository", "uuid": unique("build")})
                .to_string()
        }
        Burst::Readable => {
            let user = if n.is_multiple_of(20) { unique("user") } else { "flood".to_owned() };
            json!({"userID": user, "repo": "o/n", "uuid": unique("build")}).to_string()
        }
    };
    (0..count).map(body).collect()
}

/// Whether all that was published so far is out of the build queue, and where it belongs.
fn is_through(burst: Burst, world: &World, worker: &Worker, published: usize) -> bool {
    let ready = |queue: &str| world.broker.ready(queue);
    let build = &world.settings["BUILD_QUEUE"];
    if ready(build) > 0 {
        return false;
    }
    match burst {
        Burst::NoJson | Burst::Invalid => ready(&world.settings["DEAD_QUEUE"]) >= published,
        Burst::Readable => {
            let lanes = ["returned", "first", "few", "1", "2", "3", "4"];
            let lanes: usize = lanes.iter().map(|it| ready(&format!("{build}.lane.{it}"))).sum();
            let taken = events::of(worker).iter().filter(|it| it.taken).count();
            lanes + taken >= published
        }
    }
}

/// Resident, in MB.
fn memory(worker: &Worker) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid()));
    let status = status.expect("the worker is alive");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.expect("the system tells it") / 1024.0
}

fn signal(worker: &Worker, signal: Signal) {
    let pid = i32::try_from(worker.pid()).ok().and_then(Pid::from_raw).expect("a child has a pid");
    kill_process(pid, signal).expect("the worker is alive");
}
