//! The log: flat JSON lines with stable names, the build on every line of a job, and the build's
//! own output apart.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::unique;
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, repository};
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

#[test]
fn text_is_for_people_and_has_no_colours_where_there_is_no_terminal() {
    let idle = Idle::start_with(&[("LOG_FORMAT", "text")]);
    let line = idle.worker.wait_for_line(" starting ");
    assert!(line.contains(" INFO "), "{line}");
    assert!(line.contains(" http=127.0.0.1:"), "{line}");
    assert!(!line.contains(char::is_control), "{line}");
    assert!(!line.contains('{'), "{line}");
}
