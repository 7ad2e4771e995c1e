//! How long fetches take, beside `git clone --depth 1` of the same.
//!
//! `cargo bench --bench sources` after `stack.sh up`, with what `stack.sh env` prints in the environment.
//! `ROUNDS` (7) is how often each is timed.

#![allow(clippy::print_stdout, reason = "it is a bench")]

#[path = "../support/git_server.rs"]
mod git_server;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use image_builder::source::{CacheSettings, GitConnector, GitSettings, GithubSettings};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::request::{RepoName, Target};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::model::workspace::Workspace;
use image_builder_actors::ports::SourceConnector;
use image_builder_actors::testing::conformance::source::request;

use git_server::{GitRepo, server_url};

fn main() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let rounds: u32 =
        std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(7);
    println!("{:>10} {:>10} {:>6}   what", "worker", "git clone", "ratio");
    runtime.block_on(async {
        let small = GitRepo::create("bench", "small");
        small.commit(&[("Dockerfile", "FROM scratch\n"), ("a", "1")]);
        first("first fetch, 2 files", &small, rounds).await;
        let large = GitRepo::create("bench", "large");
        fill(large.work());
        large.commit(&[("a", "1")]);
        first("first fetch, 5,000 files of 100 MB", &large, rounds).await;
        next("next commit of it", &large, rounds, true).await;
        next("the same commit again", &large, rounds, false).await;
    });
}

/// 5,000 files of 20 kB that do not compress.
fn fill(directory: &Path) {
    let mut state = 1u64;
    for number in 0..5_000 {
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(20_000)
        .collect();
        let place = directory.join(format!("d{}", number % 100));
        std::fs::create_dir_all(&place).expect("is writable");
        std::fs::write(place.join(number.to_string()), content).expect("is writable");
    }
}

fn connector(cache: &Path) -> GitConnector {
    let url = server_url();
    let settings = GitSettings {
        github: GithubSettings { url: url.clone(), api_url: url },
        program: env!("CARGO_BIN_EXE_image-builder").into(),
        cache: Some(CacheSettings {
            directory: cache.to_owned(),
            budget: 10 << 30,
            secret: Secret::new("of the bench"),
        }),
        ..GitSettings::default()
    };
    GitConnector::new(settings).expect("the settings are good")
}

async fn fetch(connector: &GitConnector, repo: &GitRepo, scratch: &Path) -> Duration {
    let name = RepoName { owner: repo.owner.clone(), name: repo.name.clone() };
    let request = request(&name, Target::DefaultBranch, None);
    let workspace = Workspace::create(scratch).expect("a workspace");
    let progress = BuildLog::new(&request.build_id, request.redactor());
    let begun = Instant::now();
    let source = connector.fetch(&request, None, workspace, &progress).await.expect("fetched");
    let took = begun.elapsed();
    // Not left to the background, where it would cost the next one time.
    std::fs::remove_dir_all(source.workspace.path()).expect("removed");
    took
}

fn by_hand(repo: &GitRepo, scratch: &Path) -> Duration {
    let begun = Instant::now();
    let status = Command::new("git")
        .args(["clone", "-q", "--depth", "1", &repo.url(), "clone"])
        .current_dir(scratch)
        .status();
    assert!(status.expect("git runs").success());
    let took = begun.elapsed();
    std::fs::remove_dir_all(scratch.join("clone")).expect("removed");
    took
}

async fn first(what: &str, repo: &GitRepo, rounds: u32) {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let scratch = tempfile::tempdir().expect("a directory");
        let connector = connector(&scratch.path().join("git"));
        let worker = fetch(&connector, repo, scratch.path()).await;
        times.push((worker, by_hand(repo, scratch.path())));
    }
    tell(what, times);
}

async fn next(what: &str, repo: &GitRepo, rounds: u32, changed: bool) {
    let scratch = tempfile::tempdir().expect("a directory");
    let connector = connector(&scratch.path().join("git"));
    fetch(&connector, repo, scratch.path()).await;
    let mut times = Vec::new();
    for round in 0..rounds {
        if changed {
            repo.commit(&[("a", &format!("{what} {round}"))]);
        }
        let worker = fetch(&connector, repo, scratch.path()).await;
        times.push((worker, by_hand(repo, scratch.path())));
    }
    tell(what, times);
}

fn tell(what: &str, times: Vec<(Duration, Duration)>) {
    let median = |of: &dyn Fn(&(Duration, Duration)) -> f64| {
        let mut all: Vec<f64> = times.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let worker = median(&|(worker, _)| worker.as_secs_f64());
    let clone = median(&|(_, clone)| clone.as_secs_f64());
    let ratio = median(&|(worker, clone)| worker.as_secs_f64() / clone.as_secs_f64());
    println!("{:>8.0}ms {:>8.0}ms {ratio:>6.2}   {what}", worker * 1e3, clone * 1e3);
}
