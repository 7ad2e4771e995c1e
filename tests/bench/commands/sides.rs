//! The two that do the same work.

use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::median;
use crate::support::git_server::GitRepo;
use crate::support::world::{World, with};
use crate::support::{engine, registry};

/// Seconds.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) clone: f64,
    pub(crate) build: f64,
    pub(crate) push: f64,
    pub(crate) all: f64,
}

impl Times {
    pub(crate) fn median(all: &[Times]) -> Self {
        let median = |of: fn(&Times) -> f64| median(all.iter().map(of));
        Self {
            clone: median(|times| times.clone),
            build: median(|times| times.build),
            push: median(|times| times.push),
            all: median(|times| times.all),
        }
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { clone, build, push, all } = self;
        write!(f, "{clone:>7.3} {build:>7.3} {push:>7.3} {all:>7.3}")
    }
}

/// What a person would type, always in the same directory: the engine's client knows by it what it has sent.
pub(crate) struct Commands(TempDir);

impl Commands {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory can be made"))
    }

    pub(crate) fn build(&self, repo: &GitRepo) -> Times {
        let tree = self.0.path().join(&repo.name);
        if tree.exists() {
            std::fs::remove_dir_all(&tree).expect("it is ours");
        }
        let tree = tree.to_str().expect("temporary directories have plain names");
        let image = format!("{}/bench/{}:plain", registry::open(), repo.name);
        let begun = Instant::now();
        let clone =
            run(Command::new("git").args(["clone", "-q", "--depth", "1", &repo.url(), tree]));
        let build = run(docker().args(["build", "-q", "-t", &image, tree]));
        let push = run(docker().args(["push", "-q", &image]));
        let all = begun.elapsed().as_secs_f64();
        engine::docker(&["rmi", &image]);
        Times { clone, build, push, all }
    }
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

/// A request for a repository, as an application of its own.
pub(crate) fn request(world: &World, repo: &GitRepo) -> Value {
    with(world.request(repo), json!({"applicationID": repo.name}))
}

/// The same by a worker: its own figures by stage, and the time from the request to its notification.
pub(crate) fn worker(world: &World, repo: &GitRepo) -> Times {
    let request = request(world, repo);
    let begun = Instant::now();
    let told = world.build(&request).ready();
    let all = begun.elapsed().as_secs_f64();
    let seconds = |stage: &str| told.data()["seconds"][stage].as_f64().unwrap_or_default();
    Times { clone: seconds("connector"), build: seconds("builder"), push: seconds("pusher"), all }
}
