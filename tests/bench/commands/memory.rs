//! The worker's own memory: what is resident and of no file.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::sides::request;
use crate::{trees, world};

/// Builds at once.
const BUILDS: usize = 8;
/// How often memory is looked at.
const TICK: Duration = Duration::from_millis(20);

pub(crate) fn run() {
    let world = world(BUILDS).with("CONNECTOR_CONCURRENCY", &BUILDS.to_string());
    let worker = world.worker();
    let idle = resident(worker.pid());
    let repositories: Vec<_> = (0..BUILDS).map(|_| trees::data(200)).collect();
    let (peak, children, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                peak.fetch_max(resident(worker.pid()), Ordering::Relaxed);
                let of_children = children_of(worker.pid()).into_iter().map(resident).sum();
                children.fetch_max(of_children, Ordering::Relaxed);
                std::thread::sleep(TICK);
            }
        });
        let builds: Vec<_> =
            repositories.iter().map(|repo| world.publish(&request(&world, repo))).collect();
        for build in builds {
            world.outcome(&build).ready();
        }
        ended.store(true, Ordering::Relaxed);
    });
    let megabytes = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed) as f64 / 1e6;
    println!("idle                                        {:>6.1} MB (aim: 30)", idle as f64 / 1e6);
    println!(
        "{BUILDS} builds of 200 MB at once, at the most     {:>6.1} MB (aim: 80)",
        megabytes(&peak)
    );
    println!("  its children beside it, in sum            {:>6.1} MB", megabytes(&children));
    worker.stop();
}

/// Bytes that are resident and of no file.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    1024 * kibibytes.unwrap_or_default()
}

fn children_of(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_task = |path: std::path::PathBuf| {
        std::fs::read_to_string(path.join("children")).unwrap_or_default()
    };
    tasks
        .map(|task| of_task(task.path()))
        .flat_map(|line| {
            line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}
