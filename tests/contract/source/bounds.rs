//! What git may cost the worker: it has a process of its own, with limits.

use std::time::Duration;

use image_builder::source::GitSettings;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::Target;

use super::git::{limited, name, settings, with};
use super::git_server::GitRepo;
use super::{refused, request};

#[tokio::test(flavor = "multi_thread")]
async fn what_unpacks_to_more_than_git_may_have_is_too_large() {
    let repo = GitRepo::create("contract", "unpacks");
    let zeros = vec![0; 100 << 20];
    std::fs::write(repo.work().join("zeros"), &zeros).expect("is writable");
    repo.commit(&[("a", "1")]);
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let limits = Limits { git_memory_bytes: 64 << 20, ..Limits::default() };
    refused(&limited(limits), &request, Reason::TooLarge, "memory").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_git_busy_for_too_long_is_too_large() {
    let repo = GitRepo::create("contract", "busy");
    let zeros = vec![0; 500 << 20];
    for name in ["a", "b", "c", "d", "e", "f"] {
        std::fs::write(repo.work().join(name), &zeros).expect("is writable");
        std::fs::write(repo.work().join(name).with_extension("x"), name).expect("is writable");
    }
    repo.commit(&[("x", "1")]);
    let request = request(&name(&repo), Target::DefaultBranch, None);
    let limits = Limits { git_cpu_time: Duration::from_secs(1), ..Limits::default() };
    refused(&limited(limits), &request, Reason::TooLarge, "1 s of processor time").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn git_that_does_not_run_is_the_workers_fault() {
    let repo = GitRepo::create("contract", "not-run");
    repo.commit(&[("a", "1")]);
    let request = request(&name(&repo), Target::DefaultBranch, None);
    for program in ["/bin/false", "/not/there"] {
        let connector = with(GitSettings { program: program.into(), ..settings_of_the_server() });
        refused(&connector, &request, Reason::Crashed, "git").await;
    }
}

fn settings_of_the_server() -> GitSettings {
    use image_builder::source::GithubSettings;
    let url = super::git_server::server_url();
    GitSettings { github: GithubSettings { url: url.clone(), api_url: url }, ..settings() }
}
