//! `make bench`: what the worker adds to the plain commands.
//!
//! Each round does the same work twice, once by `git clone`, `docker build` and `docker push`, once by
//! a request to a worker, on the same git server, engine and registry. Each side builds a commit of
//! its own, so that neither finds what the other has built; which side goes first alternates. What is
//! told are medians: of the worker, its own figures by stage, and the time from the request's
//! publishing to its notification.

#![allow(clippy::print_stdout, reason = "its figures are for whoever runs it")]

#[path = "../support/mod.rs"]
mod support;

use std::process::Command;
use std::time::Instant;

use support::git_server::GitRepo;
use support::world::{World, dockerfile, repository, with};
use support::{engine, registry, setting, unique};

/// Files of the larger repository.
const FILES: usize = 2_000;

fn main() {
    let rounds: usize = setting("ROUNDS", "7").parse().expect("ROUNDS is a number");
    let world = World::new();
    let worker = world.worker();
    println!("{rounds} rounds each; medians, in seconds\n");
    println!("{:<34} {:>7} {:>7} {:>7} {:>7}", "", "clone", "build", "push", "in all");
    for case in cases() {
        let mut sides = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            let mut order = [Side::Commands, Side::Worker];
            if round % 2 == 1 {
                order.reverse();
            }
            for side in order {
                if case.fresh {
                    case.repo.commit(&[("round", &unique("round"))]);
                }
                let times = match side {
                    Side::Commands => commands(&case.repo),
                    Side::Worker => request(&case.repo, &world),
                };
                // The first round fetches what all later ones have.
                if round > 0 {
                    sides[side as usize].push(times);
                }
            }
        }
        let [commands, requests] = sides.map(|times| Times::median(&times));
        println!("{}", case.name);
        println!("  git clone, docker build and push {commands}");
        println!("  image-builder                    {requests}");
        println!("  difference                       {}\n", requests.minus(commands));
    }
    world.finish(&[&worker]);
}

/// What is built.
struct Case {
    name: &'static str,
    repo: GitRepo,
    /// Whether every build is of a commit of its own.
    fresh: bool,
}

fn cases() -> [Case; 4] {
    let files: Vec<_> = (0..FILES)
        .map(|n| (format!("src/{}/{n}.txt", n % 40), format!("{n} ").repeat(400)))
        .collect();
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let one_file = "FROM scratch\nCOPY round /round\n";
    let steps = dockerfile("COPY . /src\nRUN find /src -type f | xargs sha256sum > /sums");
    let small = repository("bench-small", &[("Dockerfile", one_file)]);
    let steps_repo = repository("bench-steps", &[("Dockerfile", &steps)]);
    let large = repository("bench-large", &files);
    large.commit(&[("Dockerfile", &steps)]);
    let same = repository("bench-same", &[("Dockerfile", one_file), ("round", "always the same")]);
    [
        Case { name: "one file", repo: small, fresh: true },
        Case { name: "a step on a base image", repo: steps_repo, fresh: true },
        Case { name: "2,000 files and a step", repo: large, fresh: true },
        Case { name: "the same commit again", repo: same, fresh: false },
    ]
}

#[derive(Clone, Copy)]
enum Side {
    Commands,
    Worker,
}

/// Seconds.
#[derive(Clone, Copy)]
struct Times {
    clone: f64,
    build: f64,
    push: f64,
    all: f64,
}

impl Times {
    fn median(all: &[Times]) -> Self {
        let median = |of: fn(&Times) -> f64| {
            let mut values: Vec<f64> = all.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Self {
            clone: median(|times| times.clone),
            build: median(|times| times.build),
            push: median(|times| times.push),
            all: median(|times| times.all),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            clone: self.clone - other.clone,
            build: self.build - other.build,
            push: self.push - other.push,
            all: self.all - other.all,
        }
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { clone, build, push, all } = self;
        write!(f, " {clone:>7.3} {build:>7.3} {push:>7.3} {all:>7.3}")
    }
}

/// What a person would type.
fn commands(repo: &GitRepo) -> Times {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let tree = directory.path().join("tree");
    let tree = tree.to_str().expect("temporary directories have plain names");
    let image = format!("{}/bench/{}:plain", registry::open(), repo.name);
    let begun = Instant::now();
    let clone = run(Command::new("git").args(["clone", "-q", "--depth", "1", &repo.url(), tree]));
    let build = run(docker().args(["build", "-q", "-t", &image, tree]));
    let push = run(docker().args(["push", "-q", &image]));
    let all = begun.elapsed().as_secs_f64();
    engine::docker(&["rmi", &image]);
    Times { clone, build, push, all }
}

fn docker() -> Command {
    let mut command = Command::new("/usr/bin/docker");
    command.env("DOCKER_BUILDKIT", "1");
    command
}

#[track_caller]
fn run(command: &mut Command) -> f64 {
    let begun = Instant::now();
    let output = command.output().expect("the command is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    begun.elapsed().as_secs_f64()
}

/// The same by the worker.
fn request(repo: &GitRepo, world: &World) -> Times {
    let application = serde_json::json!({"applicationID": repo.name});
    let request = with(world.request(repo), application);
    let begun = Instant::now();
    let told = world.build(&request).ready();
    let all = begun.elapsed().as_secs_f64();
    let seconds = |stage: &str| told.data()["seconds"][stage].as_f64().unwrap_or_default();
    Times { clone: seconds("connector"), build: seconds("builder"), push: seconds("pusher"), all }
}
