//! Small builds: of many users and of one, each beside the three commands by hand, which push to as many repositories
//! of the registry.
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
    ManyByHand,
    OneUser,
    OneByHand,
}

/// How long one side took for all, and its builds in the middle, stage by stage. Seconds.
#[derive(Clone, Copy, Default)]
struct Times {
    all: f64,
    fetch: f64,
    build: f64,
    push: f64,
}

impl Times {
    fn median(all: &[Times]) -> Self {
        let median = |of: fn(&Times) -> f64| median(&all.iter().map(of).collect::<Vec<_>>());
        Self {
            all: median(|times| times.all),
            fetch: median(|times| times.fetch),
            build: median(|times| times.build),
            push: median(|times| times.push),
        }
    }
}

pub(crate) fn run() {
    let rounds = number("ROUNDS", "7");
    let (world, repo) = (world(), one_file());
    let worker = world.worker();
    let mut times = [const { Vec::new() }; 4];
    for round in 0..=rounds {
        let mut sides = [Side::ManyUsers, Side::ManyByHand, Side::OneUser, Side::OneByHand];
        let first = round % sides.len();
        sides.rotate_left(first);
        for side in sides {
            let branches = commits(&repo, BUILDS);
            let by_hand =
                |image| Times { all: by_hand(&repo, &branches, image), ..Times::default() };
            let took = match side {
                Side::ManyUsers => requests(&world, &repo, &branches, BUILDS),
                Side::OneUser => requests(&world, &repo, &branches, 1),
                Side::ManyByHand => by_hand("$IMAGES/$1:$1"),
                Side::OneByHand => by_hand("$IMAGES:$1"),
            };
            // The first round fetches what all later ones have.
            if round > 0 {
                times[side as usize].push(took);
            }
        }
    }
    let [many, many_by_hand, one, one_by_hand] = times.map(|times| Times::median(&times));
    println!(
        "{BUILDS} small builds, BUILDER_CONCURRENCY=2, {rounds} rounds; medians, in seconds\n"
    );
    println!(
        "{:<42} {:>7} {:>9} {:>9} {:>7} {:>7} {:>7}",
        "", "in all", "a second", "by hand=1", "fetch", "build", "push"
    );
    for (name, times, by_hand) in [
        ("of 40 users", many, many_by_hand),
        ("by hand, 40 repositories of the registry", many_by_hand, many_by_hand),
        ("of one user", one, one_by_hand),
        ("by hand, one repository", one_by_hand, one_by_hand),
    ] {
        let Times { all, fetch, build, push } = times;
        let (rate, relative) = (BUILDS as f64 / all, by_hand.all / all);
        println!(
            "{name:<42} {all:>7.2} {rate:>9.2} {relative:>9.2} {fetch:>7.2} {build:>7.2} {push:>7.2}"
        );
    }
    let (one, many) = (one.all, many.all);
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

/// From the first publish to the last notification. What was built is removed from the engine, as it is by hand.
fn requests(world: &World, repo: &GitRepo, branches: &[String], users: usize) -> Times {
    let name = unique("user");
    let users: Vec<String> = (0..users).map(|number| format!("{name}-{number}")).collect();
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
    let mut builds = Vec::new();
    let ended = world.managers.wait_for_many("all images", branches.len(), PATIENCE, |told| {
        let ours = branches.iter().any(|branch| branch == told.build_id());
        if !ours || told.kind() != "image.ready" {
            return false;
        }
        let [fetch, build, push] = ["connector", "builder", "pusher"]
            .map(|stage| told.data()["seconds"][stage].as_f64().unwrap_or_default());
        builds.push(Times { fetch, build, push, ..Times::default() });
        true
    });
    engine::forget(&name);
    Times { all: (ended - begun).as_secs_f64(), ..Times::median(&builds) }
}

/// What a person would type, two at a time. `image` is what the shell calls the image of branch `$1` below `$IMAGES`.
fn by_hand(repo: &GitRepo, branches: &[String], image: &str) -> f64 {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let images = format!("{}/bench/{}", registry::open(), repo.name);
    let script = format!(
        "git clone -q --depth 1 -b \"$1\" \"$URL\" \"$1\" 2>&1 && \
         /usr/bin/docker build -q -t \"{image}\" \"$1\" && /usr/bin/docker push -q \"{image}\""
    );
    let begun = Instant::now();
    let mut xargs = Command::new("xargs")
        .args(["-P2", "-I{}", "sh", "-c", &script, "sh", "{}"])
        .current_dir(directory.path())
        .env("DOCKER_BUILDKIT", "1")
        .env("URL", repo.url())
        .env("IMAGES", &images)
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
    let tag = |branch: &String| image.replace("$IMAGES", &images).replace("$1", branch);
    let tags: Vec<String> = branches.iter().map(tag).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    engine::docker(&[&["rmi"], &tags[..]].concat());
    took
}
