//! A panic in each of the six actors, in its handler (which takes the actor down) and in its work
//! (which takes the job down and nothing else), on whatever thread that runs: every job still has its
//! one outcome, and nobody else notices.
//!
//! The points are those of the `failpoints` feature: the program panics once at the one it is told.

use serde_json::Value;

use crate::support::engine;
use crate::support::git_server::GitRepo;
use crate::support::turnstile::Steps;
use crate::support::until;
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, held_repository, repository};

const ACTORS: [&str; 6] = ["listener", "connector", "builder", "pusher", "notifier", "retry"];

/// Runs three builds while an actor panics once at this point; `attempts` are those of their
/// outcomes, in ascending order.
#[track_caller]
fn survives(point: &str, repo: &GitRepo, kind: &str, attempts: [u64; 3]) {
    let world = World::new().with("FAILPOINTS", &format!("{point}=1*panic"));
    let worker = world.worker();
    let published = world.publish_many(repo, 3);
    for build_id in &published {
        assert_eq!(world.outcome(build_id).kind(), kind);
    }

    match point.split_once("::").expect("a point is in an actor") {
        (actor, "handle") => assert_died(&worker, actor, point),
        (actor, _) => assert_crashed(&worker, actor, point, &published),
    }

    let (told, letters) = world.finish(&[&worker]);
    assert_eq!(told.len(), 3, "each was told once: {told:?}");
    let mut found: Vec<_> =
        told.iter().filter_map(|told| told.data()["attempts"].as_u64()).collect();
    found.sort_unstable();
    assert_eq!(found, attempts);
    assert_eq!(letters.len(), if kind == "build.failed" { 3 } else { 0 });
}

/// The one line that contains this.
#[track_caller]
fn only_line(worker: &Worker, text: &str) -> Value {
    let lines = worker.lines();
    let found: Vec<_> = lines.iter().filter(|line| line.contains(text)).collect();
    let [line] = &found[..] else { panic!("one line on it: {found:?}") };
    serde_json::from_str(line).expect("log lines are JSON")
}

/// The actor died of the panic, once, and nobody else.
#[track_caller]
fn assert_died(worker: &Worker, actor: &str, point: &str) {
    let expected = ACTORS.map(|name| u64::from(name == actor));
    assert_eq!(worker.restarts(), expected, "{actor} was restarted once, and nobody else");
    let deaths = |cause: &str| {
        worker.metric(&format!(
            "image_builder_actor_deaths_total{{actor=\"{actor}\",cause=\"{cause}\"}}"
        ))
    };
    assert_eq!(["panic", "stopped", "hung", "lost"].map(deaths), [1.0, 0.0, 0.0, 0.0]);
    let line = only_line(worker, "an actor died");
    assert_eq!(line["actor"], actor);
    let cause = line["cause"].as_str().unwrap_or_default();
    assert!(cause.starts_with("panic: ") && cause.contains(point), "{line}");
}

/// A job of the actor crashed of the panic, and no actor died of it.
#[track_caller]
fn assert_crashed(worker: &Worker, actor: &str, point: &str, published: &[String]) {
    assert_eq!(worker.restarts(), [0; 6], "{actor}");
    let crashed =
        format!("image_builder_actor_failed_total{{actor=\"{actor}\",reason=\"crashed\"}}");
    until("the crash is counted", || (worker.metric(&crashed) == 1.0).then_some(()));
    let line = only_line(worker, "panicked: ");
    assert_eq!(line["level"], "ERROR");
    assert!(line["message"].as_str().is_some_and(|text| text.contains(point)), "{line}");
    // What these three work on has no name before they have read it.
    if !["listener", "notifier", "retry"].contains(&actor) {
        assert_eq!(line["stage"], actor, "{line}");
        assert!(published.iter().any(|build_id| line["build_id"] == **build_id), "{line}");
    }
}

#[track_caller]
fn survives_good_builds(point: &str, attempts: [u64; 3]) {
    let repo = repository("panics", &[("Dockerfile", &dockerfile("COPY . /src"))]);
    survives(point, &repo, "image.ready", attempts);
}

#[track_caller]
fn survives_failing_builds(point: &str, attempts: [u64; 3]) {
    let repo = repository("panics", &[("Dockerfile", &dockerfile("RUN exit 3"))]);
    survives(point, &repo, "build.failed", attempts);
}

// A job that only waited in the actor's mailbox loses no try; one that was worked on loses one.

#[test]
fn the_listener_panics_in_its_handler() {
    survives_good_builds("listener::handle", [1, 1, 1]);
}

#[test]
fn the_listener_panics_at_work() {
    survives_good_builds("listener::work", [1, 1, 2]);
}

#[test]
fn the_connector_panics_in_its_handler() {
    survives_good_builds("connector::handle", [1, 1, 1]);
}

#[test]
fn the_connector_panics_at_work() {
    survives_good_builds("connector::work", [1, 1, 2]);
}

#[test]
fn the_builder_panics_in_its_handler() {
    survives_good_builds("builder::handle", [1, 1, 1]);
}

#[test]
fn the_builder_panics_at_work() {
    survives_good_builds("builder::work", [1, 1, 2]);
}

#[test]
fn the_pusher_panics_in_its_handler() {
    survives_good_builds("pusher::handle", [1, 1, 1]);
}

#[test]
fn the_pusher_panics_at_work() {
    survives_good_builds("pusher::work", [1, 1, 2]);
}

// What blocks, works on threads of its own.

#[test]
fn the_connector_panics_in_the_thread_that_fetches() {
    survives_good_builds("connector::fetching", [1, 1, 2]);
}

#[test]
fn the_builder_panics_in_the_thread_that_plans() {
    survives_good_builds("builder::planning", [1, 1, 2]);
}

#[test]
fn the_builder_panics_in_the_thread_that_opens_the_context() {
    survives_good_builds("builder::opening", [1, 1, 2]);
}

#[test]
fn the_builder_panics_in_the_thread_that_sends_the_context() {
    survives_good_builds("builder::sending", [1, 1, 2]);
}

#[test]
fn a_context_that_breaks_off_never_becomes_an_image() {
    // After the first of its two files, which is the Dockerfile.
    let world = World::new().with("FAILPOINTS", "builder::sending=1*off->1*panic");
    let files = [("Dockerfile", &*dockerfile("COPY . /src")), ("last", "all is here")];
    let repo = repository("broken-off", &files);
    let worker = world.worker();
    let told = world.build(&world.request(&repo)).ready().after(2);
    assert_eq!(engine::file_in(told.text("/image/imageID"), "/src/last"), "all is here");
    let (told, _) = world.finish(&[&worker]);
    assert_eq!(told.len(), 1);
}

#[test]
fn an_actor_that_stops_is_replaced_and_its_build_goes_on() {
    let world = World::new()
        .with("FAILPOINTS", "builder::beat=1*off->1*return")
        .with("SUPERVISOR_HEALTH_INTERVAL", "2s");
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    let build_id = world.publish(&world.held_request(&repo, &world.user));
    steps.turnstile.until("it builds", |count| count.inside().contains(&build_id));
    worker.wait_for_line_where("the builder stops", |line| {
        line.contains("an actor died") && line.contains("\"stopped: by itself\"")
    });
    steps.turnstile.let_all_go();
    world.outcome(&build_id).ready().after(1);
    assert_eq!(worker.restarts(), ACTORS.map(|name| u64::from(name == "builder")));
    let stopped = "image_builder_actor_deaths_total{actor=\"builder\",cause=\"stopped\"}";
    assert_eq!(worker.metric(stopped), 1.0);
    world.finish(&[&worker]);
    assert_eq!(steps.turnstile.count().came, [build_id]);
}

// What these two lose is told, or decided, again: no build has to do with it.

#[test]
fn the_notifier_panics_in_its_handler() {
    survives_good_builds("notifier::handle", [1, 1, 1]);
}

#[test]
fn the_notifier_panics_at_work() {
    survives_good_builds("notifier::work", [1, 1, 1]);
}

#[test]
fn the_retry_actor_panics_in_its_handler() {
    survives_failing_builds("retry::handle", [2, 2, 2]);
}

#[test]
fn the_retry_actor_panics_at_work() {
    survives_failing_builds("retry::work", [2, 2, 2]);
}

#[test]
fn an_actor_that_dies_again_and_again_ends_the_worker_and_no_job_is_lost() {
    let failing = World::new()
        .with("FAILPOINTS", "builder::handle=panic")
        .with("SUPERVISOR_MAX_RESTARTS", "2")
        .with("RETRY_MAX_DELAY", "200ms");
    let repo = repository("hopeless", &[("Dockerfile", &dockerfile("COPY . /src"))]);
    let worker = failing.worker();
    let build_id = failing.publish(&failing.request(&repo));
    assert_eq!(worker.wait(), 75, "start it again");
    let lines = worker.lines();
    let lines = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(lines("an actor died: it is restarted"), 2);
    assert_eq!(lines("an actor died too often"), 1);
    assert!(failing.managers.of(&build_id).is_empty());

    let world = failing.with("FAILPOINTS", "");
    let next = world.worker();
    world.outcome(&build_id).ready().after(1);
    let (told, _) = world.finish(&[&next]);
    assert_eq!(told.len(), 1);
}
