//! What git may cost the worker: it has a process of its own, with limits.

use std::time::Duration;

use image_builder::source::GitSettings;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::{RepoName, Target};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::git::{connector, limited, name, settings, with};
use super::git_server::GitRepo;
use super::{refused, request};
use crate::stand_in::{Answer, StandIn};

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

/// A blob, and a delta that makes the same blob: libgit2 looks at it for as long as it has memory.
const ENDLESS: &str = "UEFDSwAAAAIAAAACNnicKynPTE7lAgAIsgIndG67bUqki11IwTzyGamqAHsPNy5OeJxjY5vABgABVACjn31UhSAt4npi2R0eSB+sqGWUEY8=";

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_git_would_read_for_ever_is_too_large() {
    let pack = STANDARD.decode(ENDLESS).expect("base64");
    let server = StandIn::start(move |asked| {
        let line = |text: &[u8]| [format!("{:04x}", text.len() + 4).as_bytes(), text].concat();
        if asked.path.contains("info/refs") {
            let head = format!("{} HEAD\0shallow side-band-64k\n", "1".repeat(40));
            let body = [line(head.as_bytes()), b"0000".to_vec()].concat();
            let kind = "application/x-git-upload-pack-advertisement";
            return Answer::bytes(body).with("content-type", kind);
        }
        let pack = [&[1], &pack[..]].concat();
        Answer::bytes([b"0000".to_vec(), line(b"NAK\n"), line(&pack), b"0000".to_vec()].concat())
    })
    .await;
    let limits = Limits { git_memory_bytes: 64 << 20, ..Limits::default() };
    let connector = connector(&server.url(), &server.url(), limits);
    let somewhere = RepoName { owner: "some".to_owned(), name: "where".to_owned() };
    let request = request(&somewhere, Target::DefaultBranch, None);
    refused(&connector, &request, Reason::TooLarge, "memory").await;
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
