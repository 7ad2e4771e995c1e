//! `cargo bench --bench neighbours`: what a hostile user costs another one who builds at the same time.
//!
//! One user builds one commit after the other; first alone, then beside a user of whom there are always requests that
//! wait, each as bad as it can be made. No user has more than one builder (`BUILDER_PER_USER=1`). `MINUTES` (30) is
//! for how long; a sixth of it alone. The engine is that of `DOCKER_HOST`.

#![allow(clippy::print_stdout, reason = "its figures are for whoever runs it")]

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use support::git_server::GitRepo;
use support::world::{World, dockerfile, repository, with};
use support::{setting, unique};

/// Requests of the hostile user that are never fewer.
const WAITING: usize = 6;
/// What is aimed at, as the ratio of the medians.
const AIM: f64 = 1.5;

fn main() {
    let minutes: u64 = setting("MINUTES", "30").parse().expect("MINUTES is a number");
    let beside = Duration::from_secs(60 * minutes);
    let world = World::new()
        // A network of their own, as steps have where nothing is set.
        .with("BUILDER_NETWORK", "")
        .with("BUILDER_CONCURRENCY", "2")
        .with("BUILDER_PER_USER", "1")
        .with("BUILDER_TIMEOUT", "20s")
        .with("RETRY_MAX_ATTEMPTS", "2");
    let worker = world.worker();
    let good =
        repository("good", &[("Dockerfile", &dockerfile("COPY a /a\nRUN sha256sum /a > /b"))]);
    let alone = builds(&world, &good, beside / 6, || ());

    let bad = bad_repositories();
    let mallory = unique("mallory");
    let mut asked = 0;
    let with_neighbour = builds(&world, &good, beside, || {
        while asked - ended(&world, &mallory).values().sum::<usize>() < WAITING {
            let (_, repo) = &bad[asked % bad.len()];
            let request = world.request(repo);
            world.publish(&with(
                request,
                json!({"userID": mallory, "applicationID": unique("app")}),
            ));
            asked += 1;
        }
    });
    println!("{:<28} {:>7} {:>9} {:>9} {:>9}", "", "builds", "median s", "95 % s", "longest s");
    for (name, took) in [("alone", &alone), ("beside a hostile user", &with_neighbour)] {
        let [half, most, all] = [0.5, 0.95, 1.0].map(|part| quantile(took, part));
        println!("{name:<28} {:>7} {half:>9.2} {most:>9.2} {all:>9.2}", took.len());
    }
    let ratio = quantile(&with_neighbour, 0.5) / quantile(&alone, 0.5);
    println!("ratio of the medians {ratio:.2} (at most {AIM})");
    println!("of the hostile user's, by how they ended: {:?}", ended(&world, &mallory));
    let memory = std::fs::read_to_string(format!("/proc/{}/status", worker.pid()));
    let peak = memory
        .unwrap_or_default()
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .map(str::to_owned);
    println!("the worker's memory at the most: {}", peak.unwrap_or_default());
    worker.kill();
}

/// Builds one commit after the other, each of which has to work; returns how long each took, in seconds.
fn builds(
    world: &World,
    repo: &GitRepo,
    within: Duration,
    mut before_each: impl FnMut(),
) -> Vec<f64> {
    let begun = Instant::now();
    let mut took = Vec::new();
    while begun.elapsed() < within {
        before_each();
        repo.commit(&[("a", &unique("commit"))]);
        let asked = Instant::now();
        world.build(&world.request(repo)).ready();
        took.push(asked.elapsed().as_secs_f64());
    }
    took
}

/// How many builds of a user ended, and how.
fn ended(world: &World, user: &str) -> BTreeMap<String, usize> {
    let mut ended = BTreeMap::new();
    for told in world.managers.all() {
        if told.text("/userID") == user && told.answered < 300 {
            let how = match told.kind() {
                "build.failed" => told.text("/reason").to_owned(),
                kind => kind.to_owned(),
            };
            *ended.entry(how).or_default() += 1;
        }
    }
    ended
}

fn bad_repositories() -> Vec<(&'static str, GitRepo)> {
    let salt = || unique("salt");
    let step = |step: &str| dockerfile(&format!("RUN : {}; {step}", salt()));
    let many: String = (0..400).map(|n| format!("FROM scratch AS s{n}\nCOPY a /a{n}\n")).collect();
    let large = "x".repeat(1 << 20);
    let files: Vec<(String, String)> =
        (0..100).map(|n| (format!("d/{n}"), format!("{n}{large}"))).collect();
    let of = |name: &'static str, dockerfile: &str| {
        (name, repository("bad", &[("Dockerfile", dockerfile), ("a", "a")]))
    };
    let heavy = repository("bad", &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    heavy.commit(
        &files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect::<Vec<_>>(),
    );
    vec![
        of("never ends, and takes a core", &step("while :; do :; done")),
        of("writes without end", &step("yes a long line of output that says nothing at all")),
        of("fills memory", &step("head -c 300000000 /dev/zero | tail | wc -c")),
        of("fills the disk", &step("head -c 300000000 /dev/urandom > /big; exit 1")),
        of("many processes", &step("for i in $(seq 200); do sleep 30 & done; wait")),
        of("fails", &step("exit 3")),
        of("nonsense", "\u{0}\u{1}FROMM x"),
        of("a base that is not there", "FROM registry.invalid/none:1\n"),
        of("very many stages", &many),
        ("a large context", heavy),
    ]
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
}
