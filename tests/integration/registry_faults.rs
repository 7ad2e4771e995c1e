//! A registry that is away, refuses, asks for patience or fails, when the image is built already: it
//! is never built again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::marked::Marked;
use crate::support::stand_in::{Answer, Asked, StandIn, with_immutable_tags};
use crate::support::worker::Worker;
use crate::support::world::{World, with};
use crate::support::{Door, registry, runtime, until};

/// A world whose registry answers so.
fn world_with(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> (World, StandIn) {
    let stand_in = runtime().block_on(StandIn::start(answer));
    let url = stand_in.url();
    (World::new().with("REGISTRY_URL", url.trim_start_matches("http://")), stand_in)
}

/// The real registry's answer.
fn real() -> Answer {
    Answer::From(format!("http://{}", registry::open()))
}

/// An error as the distribution specification writes it.
fn error(status: u16, code: &str) -> Answer {
    let body = json!({"errors": [{"code": code, "message": "the test wants it so"}]});
    let Answer::Text { body, .. } = Answer::json(&body) else { unreachable!("JSON is text") };
    Answer::Text { status, headers: Vec::new(), body }.with("content-type", "application/json")
}

fn begins_upload(asked: &Asked) -> bool {
    asked.method == "POST" && asked.path.contains("/blobs/uploads/")
}

fn count(worker: &Worker, text: &str) -> usize {
    worker.lines().iter().filter(|line| line.contains(text)).count()
}

/// The delays before each further try, in seconds.
fn delays(worker: &Worker) -> Vec<f64> {
    let lines = worker.lines();
    let lines = lines.iter().filter(|line| line.contains("\"to be tried again\""));
    let lines = lines.map(|line| serde_json::from_str(line).expect("log lines are JSON"));
    lines.filter_map(|line: Value| line["delay_seconds"].as_f64()).collect()
}

#[test]
fn one_that_goes_away_before_the_push_costs_no_try_and_no_build() {
    let door = Door::closed();
    let world = World::new().with("REGISTRY_URL", &format!("localhost:{}", door.port));
    let worker = world.worker();
    // Forced builds are not looked up: they come as far as the push.
    let force = |source: &Marked| with(world.request(&source.repo), json!({"force": true}));
    let (first, second) = (Marked::good(), Marked::good());
    let built = world.publish(&force(&first));
    worker.wait_for_line_where("the registry is down", |line| {
        line.contains("registry_down") && line.contains("\"pusher\"") && line.contains(&built)
    });
    worker.wait_for_line("the listener pauses");
    let waiting = world.publish(&force(&second));
    until("it is looked for", || (count(&worker, "still no room to work") >= 2).then_some(()));
    until("readiness tells", || {
        let (status, report) = worker.get("/readyz");
        let report: Value = serde_json::from_str(&report).expect("the report is JSON");
        let needs = report["needs"].as_array().expect("a list");
        let registry = needs.iter().find(|need| need["name"] == "registry").expect("it is needed");
        (status == 503 && registry["ready"] == false).then_some(())
    });
    assert_eq!(count(&worker, &waiting), 0, "a worker that pauses takes no work");
    assert!(world.managers.all().is_empty(), "nobody is told of waiting");

    door.open(&registry::open());
    worker.wait_for_line("the listener resumes");
    for build_id in [&built, &waiting] {
        world.outcome(build_id).ready().after(1);
    }
    until("it is ready", || (worker.get("/readyz").0 == 200).then_some(()));
    assert_eq!((first.builds(&[&worker]), second.builds(&[&worker])), (1, 1));
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (2, 0));
}

#[track_caller]
fn fails_at_once(status: u16, code: &'static str) {
    let (world, _registry) = world_with(move |asked| match asked.path.as_str() {
        "/v2/" => Answer::bytes("{}"),
        _ if begins_upload(asked) => error(status, code),
        _ => Answer::status(404),
    });
    let worker = world.worker();
    let source = Marked::good();
    let told = world.build(&world.request(&source.repo)).failed("registry_refused").after(1);
    assert_eq!((told.text("/fault"), told.text("/stage")), ("service", "pusher"), "{}", told.raw);
    assert_eq!(delays(&worker), [0.0; 0], "an operator has to act");
    assert_eq!(count(&worker, "the listener pauses"), 0);
    assert_eq!(source.builds(&[&worker]), 1);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 1));
}

#[test]
fn one_that_denies_the_push_is_told_at_once() {
    fails_at_once(403, "DENIED");
}

#[test]
fn one_that_does_not_know_the_worker_is_told_at_once() {
    fails_at_once(401, "UNAUTHORIZED");
}

#[test]
fn one_that_asks_for_patience_is_left_alone_for_as_long_and_no_try_is_counted() {
    let looked_up: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let times = looked_up.clone();
    let (world, _registry) = world_with(move |asked| {
        let mut times = times.lock().expect("no answer panics");
        if asked.path.contains("/manifests/") {
            times.push(Instant::now());
        }
        match times.len() {
            1 if asked.path.contains("/manifests/") => Answer::status(429).with("retry-after", "3"),
            _ => real(),
        }
    });
    let worker = world.worker();
    let source = Marked::good();
    world.build(&world.request(&source.repo)).ready().after(1);
    let times = looked_up.lock().expect("no answer panics").clone();
    let pause = times[1] - times[0];
    assert!(pause >= Duration::from_secs(3), "{pause:?}");
    for line in ["rate_limited", "the listener pauses", "the listener resumes"] {
        worker.wait_for_line(line);
    }
    assert_eq!(source.builds(&[&worker]), 1);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 0));
}

#[test]
fn one_that_takes_no_more_pushes_for_a_while_costs_no_try_and_no_build() {
    let busy = Arc::new(AtomicBool::new(true));
    let is_busy = busy.clone();
    let (world, _registry) =
        world_with(move |asked| match begins_upload(asked) && is_busy.load(Ordering::Relaxed) {
            true => error(429, "TOOMANYREQUESTS"),
            false => real(),
        });
    let worker = world.worker();
    let source = Marked::good();
    let build_id = world.publish(&world.request(&source.repo));
    until("it was pushed three times", || (delays(&worker).len() >= 3).then_some(()));
    busy.store(false, Ordering::Relaxed);
    world.outcome(&build_id).ready().after(1);
    assert!(count(&worker, "rate_limited") >= 3);
    assert_eq!(source.builds(&[&worker]), 1);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 0));
}

#[test]
fn one_that_fails_is_tried_again_with_backoff_and_the_image_is_only_pushed() {
    // Takes the image, and cannot say of it.
    let failures = AtomicUsize::new(0);
    let (world, _registry) = world_with(move |asked| {
        let checks = asked.method == "GET" && asked.path.contains("/manifests/sha256:");
        match checks && failures.fetch_add(1, Ordering::Relaxed) < 2 {
            true => Answer::status(500),
            false => real(),
        }
    });
    let worker = world.worker();
    let source = Marked::good();
    world.build(&world.request(&source.repo)).ready().after(3);
    assert_eq!(delays(&worker), [0.2, 0.6]);
    assert_eq!(count(&worker, "built by an earlier try: only to be pushed"), 2);
    assert_eq!(source.builds(&[&worker]), 1);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 0));
}

#[test]
fn one_with_immutable_tags_serves_a_request_again_and_refuses_another_image_once() {
    let refusal = || error(412, "PRECONDITION");
    let (world, _registry) = world_with(move |asked| {
        with_immutable_tags(asked, &format!("http://{}", registry::open()), refusal)
    });
    let worker = world.worker();
    let source = Marked::good();
    let first = world.build(&world.request(&source.repo)).ready().after(1);
    let again = world.build(&world.request(&source.repo)).ready().after(1);
    assert_eq!(again.data()["image"], first.data()["image"]);
    assert_eq!(again.data()["reused"], true, "{}", again.raw);

    // Another image of the same commit.
    let forced = with(
        world.request(&source.repo),
        json!({"force": true, "buildPlan": {"buildArgs": {"OTHER": "1"}}}),
    );
    let told = world.build(&forced).failed("registry_refused").after(1);
    assert_eq!((told.text("/fault"), told.text("/stage")), ("service", "pusher"), "{}", told.raw);
    for part in ["immutable", "the tag stands for sha256:"] {
        assert!(told.text("/message").contains(part), "{}", told.raw);
    }
    assert_eq!(delays(&worker), [0.0; 0], "an operator has to act");
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (3, 1));
}
