//! Small builds: of many users, of one, and the three commands by hand.
//!
//! Each build is of a commit of its own, so that none finds what another has built. Which side goes first
//! alternates; what is told are medians.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use crate::support::git_server::GitRepo;
use crate::support::world::{World, full_name};
use crate::support::{engine, registry, unique};
use crate::{DOCKERFILE, PATIENCE, median, number, one_file, world};

/// Builds of one side in one round.
const BUILDS: usize = 40;

#[derive(Clone, Copy)]
enum Side {
    ManyUsers,
    OneUser,
    ByHand,
}

pub(crate) fn run() {
    let rounds = number("ROUNDS", "7");
    let (world, repo) = (world(), one_file());
    let worker = world.worker();
    let mut seconds = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..=rounds {
        let mut sides = [Side::ManyUsers, Side::OneUser, Side::ByHand];
        sides.rotate_left(round % 3);
        for side in sides {
            let branches = commits(&repo, BUILDS);
            let took = match side {
                Side::ManyUsers => requests(&world, &repo, &branches, BUILDS),
                Side::OneUser => requests(&world, &repo, &branches, 1),
                Side::ByHand => by_hand(&repo, &branches),
            };
            // The first round fetches what all later ones have.
            if round > 0 {
                seconds[side as usize].push(took);
            }
        }
    }
    let [many, one, by_hand] = seconds.map(|seconds| median(&seconds));
    println!("{BUILDS} small builds, BUILDER_CONCURRENCY=2, {rounds} rounds; medians\n");
    println!("{:<40} {:>8} {:>10} {:>10}", "", "seconds", "a second", "by hand=1");
    for (name, seconds) in [
        ("of 40 users", many),
        ("of one user", one),
        ("git, docker build, docker push, xargs -P2", by_hand),
    ] {
        let rate = BUILDS as f64 / seconds;
        println!("{name:<41} {seconds:>7.2} {rate:>10.2} {:>10.2}", by_hand / seconds);
    }
    println!("one user's take {:.2} of the time of 40 users' (at most 1.10)", one / many);
    world.finish(&[&worker]);
}

/// So many commits of different trees, each on a branch of its own; returns the branches.
fn commits(repo: &GitRepo, count: usize) -> Vec<String> {
    let branches: Vec<String> = (0..count).map(|_| unique("b")).collect();
    let mut stream = String::new();
    for branch in &branches {
        let _ = write!(
            stream,
            "commit refs/heads/{branch}\ncommitter A Tester <tester@example.invalid> 1700000000 +0000\n\
             data 1\nx\nM 100644 inline Dockerfile\ndata {}\n{DOCKERFILE}\nM 100644 inline file\ndata {}\n{branch}\n\n",
            DOCKERFILE.len(),
            branch.len(),
        );
    }
    let bare = repo.bare_path();
    repo.git_with_input(&["--git-dir", &bare, "fast-import", "--quiet"], stream.as_bytes());
    branches
}

/// Seconds from the first publish to the last notification.
fn requests(world: &World, repo: &GitRepo, branches: &[String], users: usize) -> f64 {
    let users: Vec<String> = (0..users).map(|_| unique("user")).collect();
    let bodies: Vec<String> = branches
        .iter()
        .zip(users.iter().cycle())
        .map(|(branch, user)| {
            json!({"userID": user, "repo": full_name(repo), "type": "branch", "branch": branch, "uuid": branch})
                .to_string()
        })
        .collect();
    let begun = Instant::now();
    world.broker.publish_all(&world.settings["BUILD_QUEUE"], &bodies);
    let ended = world.managers.wait_for_many("all images", branches.len(), PATIENCE, |told| {
        branches.iter().any(|branch| branch == told.build_id()) && told.kind() == "image.ready"
    });
    (ended - begun).as_secs_f64()
}

/// What a person would type, two at a time.
fn by_hand(repo: &GitRepo, branches: &[String]) -> f64 {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let image = format!("{}/bench/{}", registry::open(), repo.name);
    let script = "git clone -q --depth 1 -b \"$1\" \"$URL\" \"$1\" 2>&1 && \
                  /usr/bin/docker build -q -t \"$IMAGE:$1\" \"$1\" && /usr/bin/docker push -q \"$IMAGE:$1\"";
    let begun = Instant::now();
    let mut xargs = Command::new("xargs")
        .args(["-P2", "-I{}", "sh", "-c", script, "sh", "{}"])
        .current_dir(directory.path())
        .env("DOCKER_BUILDKIT", "1")
        .env("URL", repo.url())
        .env("IMAGE", &image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("xargs is installed");
    let mut stdin = xargs.stdin.take().expect("it is a pipe");
    std::io::Write::write_all(&mut stdin, (branches.join("\n") + "\n").as_bytes())
        .expect("it is read");
    drop(stdin);
    assert!(xargs.wait().is_ok_and(|ended| ended.success()), "the commands by hand work");
    let took = begun.elapsed().as_secs_f64();
    let tags: Vec<String> = branches.iter().map(|branch| format!("{image}:{branch}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    engine::docker(&[&["rmi"], &tags[..]].concat());
    took
}
