//! The log: flat JSON lines with stable names, the build on every line of a job, and the build's
//! own output apart.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::worker::{Settings, Worker, run_with_input};
use crate::support::world::{World, dockerfile, full_name, repository, with};
use crate::support::{unique, until};
use crate::{Idle, hopeless};

fn lines(worker: &Worker) -> Vec<Value> {
    let read = |line: String| match serde_json::from_str(&line) {
        Ok(Value::Object(line)) => Value::Object(line),
        _ => panic!("not a JSON line: {line}"),
    };
    worker.lines().into_iter().map(read).collect()
}

/// Builds something that writes this text.
fn build_that_says(world: &World, text: &str) -> String {
    let file = dockerfile(&format!("RUN echo {text}"));
    let repo = repository("says", &[("Dockerfile", &file)]);
    let told = world.build(&world.request(&repo)).ready();
    told.build_id().to_owned()
}

#[test]
fn every_line_of_a_job_names_its_build_stage_and_try() {
    let world = World::new();
    let worker = world.worker();
    let text = unique("hello");
    let good = build_that_says(&world, &text);
    let request = hopeless(&world);
    let bad = request["uuid"].as_str().expect("a request has an id").to_owned();
    world.build(&request).failed("repository_not_found");
    world.finish(&[&worker]);

    let lines = lines(&worker);
    for line in &lines {
        for name in ["timestamp", "level", "message", "target"] {
            assert!(line[name].is_string(), "{name}: {line}");
        }
        let keys: BTreeSet<_> = line.as_object().expect("an object").keys().collect();
        assert!(!keys.contains(&"span".to_owned()) && !keys.contains(&"fields".to_owned()));
    }
    let of_job = |build_id: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line.to_string().contains(build_id)).collect()
    };
    for build_id in [&good, &bad] {
        for line in of_job(build_id) {
            assert_eq!(line["build_id"], **build_id, "{line}");
            assert!(line["stage"].is_string(), "{line}");
            assert_eq!(line["attempt"], 1, "{line}");
        }
    }
    let messages = |build_id: &str, stage: &str| -> Vec<String> {
        let of_stage = of_job(build_id).into_iter().filter(|line| line["stage"] == stage);
        of_stage.map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert!(messages(&good, "listener").contains(&"job accepted".to_owned()));
    assert!(messages(&good, "connector").contains(&"source fetched".to_owned()));
    assert!(messages(&good, "builder").contains(&"image built".to_owned()));
    assert!(messages(&good, "pusher").contains(&"image is ready".to_owned()));
    assert!(messages(&good, "notifier").contains(&"notified".to_owned()));
    assert!(messages(&bad, "connector").iter().any(|text| text.starts_with("given up")));
    let output = of_job(&good).into_iter().find(|line| line["message"] == text).cloned();
    let output = output.expect("what the build wrote is in the log");
    assert_eq!(output["target"], "image_builder::output");
    assert_eq!((&output["stage"], &output["attempt"]), (&"builder".into(), &1.into()));
}

#[test]
fn what_builds_write_can_be_left_out_of_the_log() {
    let world = World::new().with("RUST_LOG", "info,image_builder::output=off");
    let worker = world.worker();
    let text = unique("hush");
    build_that_says(&world, &text);
    world.finish(&[&worker]);
    let lines = lines(&worker);
    assert!(lines.iter().all(|line| line["target"] != "image_builder::output"));
    assert!(lines.iter().all(|line| line["message"] != text.as_str()));
    assert!(lines.iter().any(|line| line["message"] == "step finished"));
}

#[test]
fn a_log_of_warnings_only_still_names_the_build() {
    let world = World::new();
    // Makes the queues, and tells when it has.
    world.finish(&[&world.worker()]);
    let world = world.with("RUST_LOG", "warn");
    let worker = Worker::spawn(&world.settings());
    let build_id = world.publish(&hopeless(&world));
    world.outcome(&build_id).failed("repository_not_found");
    world.finish(&[&worker]);
    let lines = lines(&worker);
    assert!(lines.iter().all(|line| line["level"] != "INFO"));
    let failed = lines.iter().find(|line| line["reason"] == "repository_not_found");
    let failed = failed.expect("a failure is worth a warning");
    assert_eq!(failed["build_id"], build_id.as_str());
    assert_eq!(failed["attempt"], 1);
}

/// What `image-builder read-log` makes of these lines, without the time of day.
fn as_text(lines: &[String]) -> Vec<String> {
    let read = run_with_input(&["read-log"], &Settings::new(), &(lines.join("\n") + "\n"));
    assert_eq!((read.code, read.stderr.as_str()), (0, ""));
    let untimed = |line: &str| line.split_once(' ').map(|(_, rest)| rest.to_owned());
    read.stdout.lines().filter_map(untimed).collect()
}

/// The lines of a build, without what stands in front of what happened.
fn of_build(lines: &[String], id: &str, application: &str) -> Vec<String> {
    let front = |level| format!("{level} {id} {application:<12} ");
    let fronts = [front("INFO "), front("WARN ")];
    let said = lines.iter().filter_map(|line| fronts.iter().find_map(|at| line.strip_prefix(at)));
    said.map(str::to_owned).collect()
}

/// What a worker says at each start about what a world of the tests sets: all users are one, and
/// steps have the machine's network.
fn is_of_the_settings(line: &str) -> bool {
    [
        "TENANCY: with `trusted` every user can reach",
        "BUILDER_NETWORK: with `host` every build step",
    ]
    .iter()
    .any(|start| line.contains(start))
}

#[test]
fn a_builds_lines_read_as_documented() {
    let world = World::new().with("CONTAINER_MANAGER_URL", "");
    let worker = world.worker();
    let text = unique("hello");
    let repo = repository("says", &[("Dockerfile", &dockerfile(&format!("RUN echo {text}")))]);
    let request = with(world.request(&repo), json!({"uuid": "order-17", "applicationID": "shop"}));
    world.publish(&request);
    worker.wait_for_line("only logged");
    world.finish(&[&worker]);

    let lines = as_text(&worker.lines());
    let said = lines.iter().filter(|line| !is_of_the_settings(line));
    let all = said.cloned().collect::<Vec<_>>().join("\n");
    for noise in ["WARN", "ERROR", "step started", "actor is", "health", "build_id", "attempt"] {
        assert!(!all.contains(noise), "{noise}:\n{all}");
    }
    let said = of_build(&lines, "order-17", "shop");
    // In their order; others may stand between them, such as how far a transfer is.
    let mut rest = said.iter();
    for start in [
        format!("accepted {} for ", full_name(&repo)),
        "fetched main at ".to_owned(),
        "building by the Dockerfile `Dockerfile`".to_owned(),
        format!("| {text}"),
        format!("[2/2] RUN echo {text}  "),
        "built in ".to_owned(),
        "ready in ".to_owned(),
        "image.ready goes to nobody: CONTAINER_MANAGER_URL is not set".to_owned(),
    ] {
        assert!(rest.any(|line| line.starts_with(&start)), "{start}:\n{all}");
    }
}

#[test]
fn an_outcome_that_nobody_is_told_has_its_fields_in_the_log() {
    let world = World::new().with("CONNECTOR_MANAGER_URL", "");
    let worker = world.worker();
    let build_id = world.publish(&hopeless(&world));
    worker.wait_for_line("only logged");
    world.finish(&[&worker]);
    let lines = lines(&worker);
    let outcome = lines.iter().find(|line| line["type"] == "build.failed").expect("it is logged");
    assert_eq!(outcome["build_id"], build_id.as_str());
    assert_eq!(outcome["reason"], "repository_not_found");
    assert_eq!(outcome["failed_stage"], "connector");
    assert_eq!(outcome["fault"], "user");
    assert!(outcome["outcome"].as_str().is_some_and(|text| text.contains("does not exist")));
    assert!(!outcome.to_string().contains("\\\""), "no JSON inside of JSON: {outcome}");
}

#[test]
fn an_idle_worker_says_so_once_to_people_and_each_interval_to_collectors() {
    let world = World::new().with("SUPERVISOR_HEALTH_INTERVAL", "100ms");
    let worker = world.worker();
    let is_health = |line: &&String| line.contains(r#""message":"health""#);
    until("three rounds of health lines are written", || {
        (worker.lines().iter().filter(is_health).count() >= 18).then_some(())
    });
    world.finish(&[&worker]);
    let lines = as_text(&worker.lines());
    let idle = lines.iter().filter(|line| line.ends_with(" idle")).count();
    assert_eq!(idle, 1, "{lines:#?}");
}

#[test]
fn a_normal_start_and_stop_warn_of_nothing() {
    let world = World::new();
    let worker = world.worker();
    until("all that it needs is there", || (worker.get("/readyz").0 == 200).then_some(()));
    world.finish(&[&worker]);
    let lines = lines(&worker);
    let of_settings = |line: &Value| line["message"].as_str().is_some_and(is_of_the_settings);
    assert!(lines.iter().all(|line| line["level"] == "INFO" || of_settings(line)), "{lines:#?}");
}

#[test]
fn a_broker_that_refuses_is_one_error_in_our_words() {
    let world = World::new();
    let bad = world.settings["RABBITMQ_URI"].replacen("guest:guest", "guest:wr0ng", 1);
    assert!(bad.contains("wr0ng"), "the broker of the tests has its usual user");
    // It has the directory of the worker's data, which stands until the worker has ended.
    let world = world.with("RABBITMQ_URI", &bad);
    let worker = Worker::spawn(&world.settings());
    assert_eq!(worker.wait(), 78);
    let lines = lines(&worker);
    let errors: Vec<_> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let text = errors[0]["message"].as_str().unwrap_or_default();
    assert!(text.starts_with("cannot start: RABBITMQ_URI: "), "{text}");
}

#[test]
fn what_cannot_be_reached_is_said_once_and_in_our_words() {
    let idle = Idle::start_with(&[("LOG_FORMAT", "text")]);
    let line = idle.worker.wait_for_line("cannot reach the broker yet");
    let said = "cannot reach the broker yet, amqp://guest@127.0.0.1:1/%2f: Connection refused";
    assert!(line.contains(said), "{line}");
    // The worker has tried again by then.
    idle.worker.wait_for_line("WARN  worker                broker is not ready: not connected");
    let lines = idle.worker.lines();
    let said = lines.iter().filter(|line| line.contains("cannot reach the broker yet")).count();
    assert_eq!(said, 1, "{lines:#?}");
}

#[test]
fn text_is_for_people_and_has_no_colours_where_there_is_no_terminal() {
    let idle = Idle::start_with(&[("LOG_FORMAT", "text")]);
    let line = idle.worker.wait_for_line(" starting ");
    assert!(line.contains(" INFO  worker                starting image-builder "), "{line}");
    assert!(line.contains(" on http://127.0.0.1:"), "{line}");
    assert!(!line.contains(char::is_control), "{line}");
    assert!(!line.contains('{'), "{line}");
}
