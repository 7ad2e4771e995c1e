//! Failures: what is tried again, how often, and what is given up and told once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::canary;
use crate::support::git_server::{self, GitRepo};
use crate::support::stand_in::{Answer, StandIn};
use crate::support::world::{World, dockerfile, repository, with};
use crate::support::{Door, registry, runtime, unique};

#[test]
fn a_build_that_fails_at_the_same_step_twice_is_given_up_and_told_once() {
    let world = World::new();
    let worker = world.worker();
    let repo = failing();
    let commit = repo.git(&["rev-parse", "HEAD"]);
    let told = world.build(&world.request(&repo)).failed("build_failed").after(2);
    assert_eq!(told.text("/fault"), "user");
    assert_eq!(told.text("/stage"), "builder");
    assert_eq!(told.text("/commit"), commit);
    assert!(told.text("/message").contains("exit 3"), "{}", told.raw);
    let log: Vec<&str> =
        told.data()["log"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(log.contains(&"the last words"), "{log:?}");
    assert_eq!(worker.restarts(), [0; 6]);

    let (told, letters) = world.finish(&[&worker]);
    assert_eq!(told.len(), 1);
    let [letter] = &letters[..] else { panic!("one dead letter: {letters:?}") };
    let letter: Value = serde_json::from_slice(&letter.body).expect("dead letters are JSON");
    assert_eq!(letter["buildID"], told[0].build_id());
    assert_eq!(letter["history"]["attempts"].as_array().map(Vec::len), Some(2), "{letter}");
}

/// A repository whose build fails in its last step.
fn failing() -> GitRepo {
    let steps = format!("RUN echo {}\nRUN echo the last words; exit 3", unique("step"));
    repository("failing", &[("Dockerfile", &dockerfile(&steps))])
}

#[test]
fn a_build_that_outlasts_its_time_is_stopped_and_given_up() {
    let world = World::new().with("BUILDER_TIMEOUT", "2s");
    let worker = world.worker();
    let repo = repository("endless", &[("Dockerfile", &dockerfile("RUN sleep 600"))]);
    let told = world.build(&world.request(&repo)).failed("build_timeout").after(2);
    assert!(told.text("/message").contains("2 s"), "{}", told.raw);
    world.finish(&[&worker]);
}

#[test]
fn a_registry_that_fails_is_tried_five_times_and_then_given_up() {
    let broken = runtime().block_on(StandIn::start(|asked| match asked.path.as_str() {
        "/v2/" => Answer::bytes("{}"),
        _ => Answer::status(500),
    }));
    let url = broken.url();
    let world = World::new().with("REGISTRY_URL", url.trim_start_matches("http://"));
    let worker = world.worker();
    let repo = repository("no-registry", &[("Dockerfile", &dockerfile("RUN true"))]);
    let told = world.build(&world.request(&repo)).failed("registry_failed").after(5);
    assert_eq!(told.text("/fault"), "service");
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 1));
}

#[test]
fn an_image_that_cannot_be_pushed_in_time_is_built_once_and_pushed_again() {
    // Lets everything be looked up, and takes nothing: the engine tries again for a minute.
    let silent = runtime().block_on(StandIn::start(|asked| match asked.path.as_str() {
        "/v2/" => Answer::bytes("{}"),
        _ if asked.method == "GET" || asked.method == "HEAD" => Answer::status(404),
        _ => Answer::status(500),
    }));
    let url = silent.url();
    let world = World::new()
        .with("REGISTRY_URL", url.trim_start_matches("http://"))
        .with("PUSHER_TIMEOUT", "1s")
        .with("RETRY_MAX_ATTEMPTS", "3");
    let worker = world.worker();
    let repo = repository("unpushable", &[("Dockerfile", &dockerfile("RUN true"))]);
    let told = world.build(&world.request(&repo));
    let reason = told.text("/reason").to_owned();
    assert!(matches!(reason.as_str(), "timeout" | "registry_failed"), "{}", told.raw);
    assert_eq!(told.data()["attempts"], 3);
    assert_eq!(told.text("/stage"), "pusher");
    let built = worker.lines().iter().filter(|line| line.contains("\"image built\"")).count();
    assert_eq!(built, 1);
    world.finish(&[&worker]);
}

#[test]
fn a_registry_that_refuses_the_workers_password_is_told_at_once() {
    let (url, username, _) = registry::guarded();
    let wrong = canary::secret("wrong-password");
    let world = World::new()
        .with("REGISTRY_URL", &url)
        .with("REGISTRY_USERNAME", &username)
        .with("REGISTRY_PASSWORD", &wrong);
    world.keep_secret(&wrong);
    let worker = world.worker();
    let repo = repository("refused", &[("Dockerfile", &dockerfile("RUN true"))]);
    let told = world.build(&world.request(&repo)).failed("registry_refused").after(1);
    assert_eq!(told.text("/fault"), "service");
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 1));
}

#[test]
fn a_build_waits_for_a_registry_that_is_down_and_no_try_is_counted() {
    let door = Door::closed();
    let world = World::new().with("REGISTRY_URL", &format!("localhost:{}", door.port));
    let worker = world.worker();
    let repo = repository("waiting", &[("Dockerfile", &dockerfile("RUN true"))]);
    let build_id = world.publish(&world.request(&repo));
    worker.wait_for_line_where("the registry is down", |line| {
        line.contains("registry_down") && line.contains(&build_id)
    });
    worker.wait_for_line("the listener pauses");
    assert!(world.managers.of(&build_id).is_empty(), "nobody is told of waiting");

    door.open(&registry::open());
    worker.wait_for_line("the listener resumes");
    world.outcome(&build_id).ready().after(1);
    world.finish(&[&worker]);
}

#[test]
fn a_forge_that_fails_is_tried_again_until_it_works() {
    let failures = AtomicUsize::new(0);
    let forge = git_server::server_url();
    let flaky = runtime().block_on(StandIn::start(move |_| {
        match failures.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Answer::status(500),
            _ => Answer::From(forge.clone()),
        }
    }));
    let world = World::new().with("GITHUB_URL", &flaky.url());
    let worker = world.worker();
    let repo = repository("flaky-forge", &[("Dockerfile", &dockerfile("RUN true"))]);
    world.build(&world.request(&repo)).ready().after(3);
    world.finish(&[&worker]);
}

#[test]
fn a_forge_that_asks_for_patience_costs_no_try() {
    let asked_before = AtomicBool::new(false);
    let forge = git_server::server_url();
    let limited = runtime().block_on(StandIn::start(move |_| {
        match asked_before.swap(true, Ordering::Relaxed) {
            false => Answer::status(429).with("retry-after", "1"),
            true => Answer::From(forge.clone()),
        }
    }));
    let world = World::new().with("GITHUB_URL", &limited.url());
    let worker = world.worker();
    let repo = repository("limited-forge", &[("Dockerfile", &dockerfile("RUN true"))]);
    world.build(&world.request(&repo)).ready().after(1);
    assert!(worker.lines().iter().any(|line| line.contains("rate_limited")));
    world.finish(&[&worker]);
}

#[test]
fn a_store_of_large_files_that_asks_for_patience_holds_up_its_repository_alone() {
    let patience = Arc::new(AtomicBool::new(true));
    let (asks, forge) = (patience.clone(), git_server::server_url());
    let store = runtime().block_on(StandIn::start(move |asked| {
        match asked.path.ends_with("/objects/batch") {
            true if asks.load(Ordering::Relaxed) => Answer::status(429).with("retry-after", "2"),
            true => Answer::status(404),
            false => Answer::From(forge.clone()),
        }
    }));
    let world = World::new().with("GITHUB_URL", &store.url());
    let worker = world.worker();
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12\n",
        "0".repeat(64)
    );
    let attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n";
    let limited = repository(
        "large-files",
        &[
            ("Dockerfile", &dockerfile("RUN true")),
            ("a.bin", &pointer),
            (".gitattributes", attributes),
        ],
    );
    let waiting = world.publish(&world.request(&limited));
    worker.wait_for_line_where("it is held up", |line| line.contains("held up: builds of"));
    for user in ["somebody", "else"] {
        let other = repository("other", &[("Dockerfile", &dockerfile("RUN true"))]);
        let request = with(world.request(&other), json!({"userID": user}));
        world.build(&request).ready().after(1);
    }
    assert!(world.managers.of(&waiting).is_empty(), "it waits");
    assert!(!worker.lines().iter().any(|line| line.contains("the listener pauses")));
    patience.store(false, Ordering::Relaxed);
    // It was not counted; its file is not in the store.
    world.outcome(&waiting).failed("forbidden_source").after(1);
    world.finish(&[&worker]);
}

#[test]
fn the_limit_of_requests_without_a_token_holds_up_those_alone() {
    let api = runtime().block_on(StandIn::start(|asked| match asked.header("authorization") {
        "" => Answer::status(403).with("x-ratelimit-remaining", "0").with("retry-after", "3600"),
        _ => Answer::json(&json!({"tag_name": "v1"})),
    }));
    let world = World::new().with("GITHUB_API_URL", &api.url()).with("JOB_MAX_AGE", "20s");
    let worker = world.worker();
    let repo = repository("released", &[("Dockerfile", &dockerfile("RUN true"))]);
    repo.tag("v1");
    let release = |token: &str| {
        let fields = json!({"type": "release", "release": "v1", "token": token});
        with(world.request(&repo), fields)
    };
    let waiting = world.publish(&release(""));
    worker.wait_for_line_where("it is held up", |line| line.contains("without a token"));
    world.build(&release("canary-4b7d-of-somebody")).ready().after(1);
    world.build(&with(world.request(&repo), json!({"token": ""}))).ready();
    let told = world.outcome(&waiting).failed("timeout");
    assert_eq!(told.text("/fault"), "service");
    let message = "The build has waited for 20 s in all, and is given up. It waited for the server of \
                   the repository to take more requests.";
    assert_eq!(told.text("/message"), message);
    assert!(!worker.lines().iter().any(|line| line.contains("the listener pauses")));
    world.finish(&[&worker]);
}

#[test]
fn a_build_that_waits_through_a_pause_for_too_long_is_told_meanwhile() {
    let world = World::new().with("DOCKER_HOST", "tcp://127.0.0.1:1").with("JOB_MAX_AGE", "5s");
    let worker = world.worker();
    let repo = repository("no-engine", &[("Dockerfile", &dockerfile("RUN true"))]);
    let told = world.build(&world.request(&repo)).failed("timeout");
    assert_eq!(told.text("/fault"), "service");
    assert!(told.text("/message").contains("the container engine, which"), "{}", told.raw);
    assert!(!worker.lines().iter().any(|line| line.contains("the listener resumes")));
    world.finish(&[&worker]);
}

#[test]
fn an_engine_that_is_not_there_costs_no_try() {
    let socket = tempfile::tempdir().expect("a temporary directory can be made");
    let path = socket.path().join("docker.sock");
    let world = World::new().with("DOCKER_HOST", &format!("unix://{}", path.display()));
    let worker = world.worker();
    let repo = repository("no-engine", &[("Dockerfile", &dockerfile("RUN true"))]);
    let build_id = world.publish(&world.request(&repo));
    worker.wait_for_line_where("the engine is down", |line| line.contains("engine_down"));
    std::os::unix::fs::symlink("/var/run/docker.sock", &path).expect("a link can be made");
    world.outcome(&build_id).ready().after(1);
    world.finish(&[&worker]);
}

#[test]
fn no_copy_is_kept_where_none_is_wanted() {
    let world = World::new().with("DEAD_QUEUE_TTL", "0");
    let worker = world.worker();
    let repo = repository("forgotten", &[("readme.md", "nothing to build")]);
    world.build(&world.request(&repo)).failed("no_build_plan");
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 0));
}
