//! Builds that are asked for, watched and cancelled over the worker's HTTP API, with the commands that do so.

use serde_json::{Value, json};

use crate::support::turnstile::Steps;
use crate::support::worker::{Ended, Settings, Worker, command, run, run_with_input};
use crate::support::world::{World, dockerfile, held_repository, repository};
use crate::support::{client, free_port, runtime, unique};

/// What a command has to know of a service.
fn at(address: &str) -> Settings {
    Settings::from([("IMAGE_BUILDER_URL".to_owned(), format!("http://{address}"))])
}

fn json_lines(ended: &Ended) -> Vec<Value> {
    let line = |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {ended:?}"));
    ended.stdout.lines().map(line).collect()
}

#[test]
fn a_build_is_submitted_watched_and_shown() {
    let world = World::new();
    let worker = world.worker();
    let service = at(&worker.http());
    let repo = repository("http", &[("Dockerfile", &dockerfile("RUN echo made with care"))]);
    let request = world.request(&repo);
    let id = request["uuid"].as_str().expect("it has an id");
    let submit = ["submit", "--file", "-", "--wait", "--json"];
    let ended = run_with_input(&submit, &service, &request.to_string());
    assert_eq!(ended.code, 0, "{ended:?}");
    let [submitted, outcome] = &json_lines(&ended)[..] else { panic!("two lines: {ended:?}") };
    assert_eq!((&submitted["buildID"], &outcome["state"]), (&json!(id), &json!("ready")));
    assert!(ended.stderr.contains("made with care"), "the log is shown: {ended:?}");
    let told = world.outcome(id).ready();
    assert_eq!(outcome["data"], *told.data(), "the notification's data");

    let shown = run(&["status", id, "--exit-status", "--json"], &service);
    assert_eq!(shown.code, 0, "{shown:?}");
    let [build] = &json_lines(&shown)[..] else { panic!("one line: {shown:?}") };
    assert_eq!((&build["state"], &build["data"]), (&json!("ready"), told.data()));
    assert_eq!(build["commit"], told.data()["commit"]);
    let stages: Vec<_> =
        build["attempts"][0]["stages"].as_array().expect("stages").iter().collect();
    assert!(stages.iter().any(|stage| stage["stage"] == "builder"), "{build}");
    let log = run(&["logs", id], &service);
    assert!(log.code == 0 && log.stdout.contains("made with care"), "{log:?}");
    // The same request is not built twice.
    let again = run_with_input(&submit, &service, &request.to_string());
    assert_eq!((again.code, &json_lines(&again)[1]["data"]), (0, told.data()));
    let (told, _) = world.finish(&[&worker]);
    assert_eq!(told.len(), 1);
}

/// Asks the worker for JSON.
fn post(address: &str, path: &str, body: &Value) -> (u16, Value) {
    let sent = client()
        .post(format!("http://{address}{path}"))
        .header("content-type", "application/json")
        .body(body.to_string());
    runtime().block_on(async {
        let answer = sent.send().await.expect("the worker answers");
        let status = answer.status().as_u16();
        let text = answer.text().await.expect("the answer has an end");
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
    })
}

#[test]
fn what_would_be_built_is_what_is_built() {
    let world = World::new();
    let worker = world.worker();
    let address = worker.http();
    let text = dockerfile("ARG A\nRUN echo planned");
    let repo = repository("plan", &[("web/Dockerfile", &text), ("README", "")]);
    let mut request = world.request(&repo);
    request["buildPlan"] =
        json!({"rootDirectory": "web", "buildArgs": {"A": "1", "HTTP_PROXY": "x"}});
    let (status, plan) = post(&address, "/v1/plan", &request);
    assert_eq!(status, 200, "{plan}");
    assert_eq!(
        (&plan["dockerfile"]["text"], &plan["builder"]),
        (&json!(text), &json!("dockerfile"))
    );
    assert_eq!((&plan["buildArgs"], &plan["context"]["files"]), (&json!(["A"]), &json!(1)));
    assert_eq!(plan["warnings"].as_array().map(Vec::len), Some(1), "{plan}");
    // A push after it changes nothing of what was shown.
    let planned = plan["commit"].clone();
    let later = repo.commit(&[("web/Dockerfile", "FROM scratch")]);
    assert_ne!(planned, json!(later));
    request["type"] = json!("commit");
    request["commit"] = planned.clone();
    assert_eq!(post(&address, "/v1/builds", &request).0, 202);
    let id = request["uuid"].as_str().expect("it has an id");
    assert_eq!(world.outcome(id).ready().data()["commit"], planned);
    // There is none: what is said is what the build says.
    let mut bad = world.request(&repo);
    bad["buildPlan"] = json!({"rootDirectory": "nowhere"});
    let (status, problem) = post(&address, "/v1/plan", &bad);
    assert_eq!((status, &problem["reason"]), (422, &json!("invalid_plan")), "{problem}");
    assert_eq!(post(&address, "/v1/builds", &bad).0, 202);
    let id = bad["uuid"].as_str().expect("it has an id");
    let told = world.outcome(id).failed("invalid_plan");
    assert_eq!(told.data()["message"], problem["detail"]);
    world.finish(&[&worker]);
}

#[test]
fn a_build_is_cancelled_over_http() {
    let world = World::new();
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    let service = at(&worker.http());
    let request = world.held_request(&repo, &world.user);
    let id = request["uuid"].as_str().expect("it has an id");
    let submitted = run_with_input(&["submit", "--file", "-"], &service, &request.to_string());
    assert_eq!((submitted.code, submitted.stdout.trim()), (0, id));
    steps.turnstile.until("it runs", |count| count.inside().contains(id));
    let building = run(&["status", id, "--exit-status"], &service);
    assert_eq!(building.code, 75, "it has not ended: {building:?}");
    assert_eq!(run(&["cancel", id], &service).code, 0);
    let followed = run(&["logs", "-f", id], &service);
    assert_eq!(followed.code, 1, "{followed:?}");
    assert!(followed.stderr.contains("cancelled"), "{followed:?}");
    world.outcome(id).cancelled("cancelled");
    let late = run(&["cancel", id], &service);
    assert!(late.code == 1 && late.stderr.contains("has ended"), "{late:?}");
    world.finish(&[&worker]);
}

#[test]
fn a_build_whose_id_the_service_made_is_cancelled_by_that_id_alone() {
    let world = World::new().with("BUILDER_CONCURRENCY", "2").with("LISTENER_CONCURRENCY", "2");
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let worker = world.worker();
    let mut request = world.held_request(&repo, &world.user);
    let chosen = request["uuid"].as_str().expect("it has an id").to_owned();
    assert_eq!(post(&worker.http(), "/v1/builds", &request).0, 202);
    let step = unique("step");
    request.as_object_mut().expect("an object").remove("uuid");
    request["buildPlan"]["buildArgs"]["STEP"] = json!(step);
    let (status, submitted) = post(&worker.http(), "/v1/builds", &request);
    assert_eq!(status, 202, "{submitted}");
    let made = submitted["buildID"].as_str().expect("it has an id");
    let both = [chosen.clone(), step].into();
    steps.turnstile.until("both run", |count| count.inside() == both);

    for id in [chosen.as_str(), made] {
        world.cancel_raw(&json!({"buildID": id}));
    }
    world.outcome(made).cancelled("cancelled");
    steps.turnstile.until("it alone is gone", |count| count.inside() == [chosen.clone()].into());
    steps.turnstile.let_all_go();
    world.outcome(&chosen).ready();
    world.finish(&[&worker]);
}

#[test]
fn whoever_waits_for_a_build_outlives_its_service() {
    let world = World::new();
    let address = format!("127.0.0.1:{}", free_port());
    let mut settings = world.settings();
    settings.insert("HTTP_ADDR".to_owned(), address.clone());
    let steps = Steps::start();
    let repo = held_repository(&steps);
    let request = world.held_request(&repo, &world.user);
    let id = request["uuid"].as_str().expect("it has an id");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("request.json");
    std::fs::write(&file, request.to_string()).expect("a file can be written");
    let killed = Worker::start(&settings);
    let arguments = ["submit", "--wait", "--file", file.to_str().expect("text")];
    let waits = command(&arguments, &at(&address), &directory).spawn().expect("the program starts");
    steps.turnstile.until("it runs", |count| count.inside().contains(id));
    killed.kill();
    killed.wait();
    steps.turnstile.let_all_go();
    let worker = Worker::start(&settings);
    let ended = Ended::from(waits.wait_with_output().expect("the program ends"));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("trying again"), "{ended:?}");
    let told = world.outcome(id).ready();
    let image = &told.data()["image"];
    let deployed = format!(
        "{}@{}",
        image["repository"].as_str().unwrap_or(""),
        image["digest"].as_str().unwrap_or("")
    );
    assert_eq!(ended.stdout.trim(), deployed);
    world.finish(&[&worker]);
}
