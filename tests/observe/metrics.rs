//! The metrics: all there from the start, clean, and right.

use std::collections::BTreeSet;

use image_builder_actors::model::fault::{Kind, Reason};
use image_builder_actors::model::scope::Scope;
use lapin::BasicProperties;
use serde_json::json;
use time::OffsetDateTime;

use crate::scrape::{Scrape, assert_clean, promtool};
use crate::support::stand_in::{Answer, StandIn};
use crate::support::world::{World, repository};
use crate::support::{runtime, unique, until};
use crate::{Idle, hopeless};

/// Every family, with its type.
const FAMILIES: [(&str, &str); 24] = [
    ("image_builder_actor_deaths_total", "counter"),
    ("image_builder_actor_done_total", "counter"),
    ("image_builder_actor_failed_total", "counter"),
    ("image_builder_actor_in_hand", "gauge"),
    ("image_builder_actor_oldest_seconds", "gauge"),
    ("image_builder_actor_restarts_total", "counter"),
    ("image_builder_actor_running", "gauge"),
    ("image_builder_actor_waiting", "gauge"),
    ("image_builder_build_duration_seconds", "histogram"),
    ("image_builder_build_info", "gauge"),
    ("image_builder_builds_total", "counter"),
    ("image_builder_cache_bytes", "gauge"),
    ("image_builder_capacity_holds", "gauge"),
    ("image_builder_capacity_paused", "gauge"),
    ("image_builder_crashes_total", "counter"),
    ("image_builder_draining", "gauge"),
    ("image_builder_hooks_total", "counter"),
    ("image_builder_log_lines_dropped_total", "counter"),
    ("image_builder_need_ready", "gauge"),
    ("image_builder_notifications_total", "counter"),
    ("image_builder_queue_wait_seconds", "histogram"),
    ("image_builder_requests_waiting", "gauge"),
    ("image_builder_retries_total", "counter"),
    ("image_builder_stage_duration_seconds", "histogram"),
];

const ACTORS: [&str; 6] = ["builder", "connector", "listener", "notifier", "pusher", "retry"];
const STAGES: [&str; 4] = ["builder", "connector", "listener", "pusher"];

fn set<'a>(values: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    values.into_iter().collect()
}

fn reasons(kinds: &[Kind]) -> BTreeSet<&'static str> {
    Reason::ALL.iter().filter(|r| kinds.contains(&r.kind())).map(|r| r.as_str()).collect()
}

#[test]
fn every_family_and_every_value_of_its_labels_is_there_before_any_job_is() {
    let idle = Idle::start();
    let scrape = Scrape::of(&idle.worker);
    let families = scrape.types.iter().map(|(family, kind)| (family.as_str(), kind.as_str()));
    assert_eq!(families.collect::<Vec<_>>(), FAMILIES);
    let values = |family: &str, label| scrape.values(&format!("image_builder_{family}"), label);

    for family in ["in_hand", "waiting", "running", "oldest_seconds"] {
        assert_eq!(values(&format!("actor_{family}"), "actor"), set(ACTORS), "{family}");
    }
    for family in ["done", "failed", "restarts", "deaths"] {
        assert_eq!(values(&format!("actor_{family}_total"), "actor"), set(ACTORS), "{family}");
    }
    assert_eq!(values("actor_deaths_total", "cause"), set(["panic", "stopped", "hung", "lost"]));
    let all = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(values("actor_failed_total", "reason"), all);
    let results = set(["ready", "reused", "failed", "cancelled"]);
    assert_eq!(values("builds_total", "result"), results);
    assert_eq!(values("build_duration_seconds_count", "result"), results);
    assert_eq!(values("builds_total", "fault"), set(["none", "user", "service"]));
    let capacity = reasons(&[Kind::Capacity]);
    let mut told: BTreeSet<_> = all_but(&capacity);
    told.insert("none");
    assert_eq!(values("builds_total", "reason"), told);
    assert_eq!(values("stage_duration_seconds_count", "stage"), set(STAGES));
    assert_eq!(values("crashes_total", "stage"), set(STAGES));
    let again = [Kind::Build, Kind::Service, Kind::Capacity, Kind::Crash];
    assert_eq!(values("retries_total", "reason"), reasons(&again));
    assert_eq!(values("capacity_paused", "reason"), capacity);
    assert_eq!(values("capacity_holds", "scope"), set(Scope::HELD));
    let types = set(["image.ready", "build.failed", "build.cancelled"]);
    assert_eq!(values("hooks_total", "forge"), set(["github", "gitlab", "gitea"]));
    assert_eq!(values("notifications_total", "type"), types);
    assert_eq!(values("notifications_total", "result"), set(["delivered", "failed"]));
    for histogram in ["build_duration_seconds", "stage_duration_seconds", "queue_wait_seconds"] {
        let bounds = values(&format!("{histogram}_bucket"), "le");
        assert!(bounds.contains("3600"), "{histogram} reaches an hour: {bounds:?}");
    }
    assert_clean(&scrape.page);
}

fn all_but(without: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    Reason::ALL.iter().map(|r| r.as_str()).filter(|name| !without.contains(name)).collect()
}

#[test]
fn promtool_would_say_so_if_a_metric_were_not_clean() {
    let page = "# TYPE image_builder_seconds counter\nimage_builder_seconds 1\n";
    let (clean, said) = promtool(&["check", "metrics"], page);
    assert!(!clean && said.contains("_total"), "{said}");
}

#[test]
fn builds_stages_waits_and_notifications_are_counted() {
    let world = World::new();
    let worker = world.worker();
    let before: BTreeSet<String> = Scrape::of(&worker).samples.into_keys().collect();

    let failing = hopeless(&world);
    let build_id = failing["uuid"].as_str().expect("a request has an id").to_owned();
    world.managers.refuse(&build_id, &[(500, None)]);
    let a_minute_ago = OffsetDateTime::now_utc().unix_timestamp() - 60;
    let timestamp = u64::try_from(a_minute_ago).expect("it is after 1970");
    let properties = BasicProperties::default().with_timestamp(timestamp);
    world.publish_raw(failing.to_string().as_bytes(), properties);
    world.outcome_where("the second try to tell", |told| {
        told.build_id() == build_id && told.answered < 300
    });
    let repo = repository(
        "seen",
        &[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", &unique("x"))],
    );
    world.build(&world.request(&repo)).ready();
    world.build(&world.request(&repo)).ready();

    let counted = "image_builder_notifications_total{result=\"delivered\",type=\"image.ready\"}";
    // The manager has its notification a moment before the worker knows that.
    let scrape = until("all is counted", || {
        let scrape = Scrape::of(&worker);
        (scrape.value(counted) == 2.0).then_some(scrape)
    });
    for (series, value) in [
        ("builds_total{fault=\"none\",reason=\"none\",result=\"ready\"}", 1.0),
        ("builds_total{fault=\"none\",reason=\"none\",result=\"reused\"}", 1.0),
        ("builds_total{fault=\"user\",reason=\"repository_not_found\",result=\"failed\"}", 1.0),
        ("build_duration_seconds_count{result=\"ready\"}", 1.0),
        ("build_duration_seconds_count{result=\"failed\"}", 1.0),
        ("stage_duration_seconds_count{stage=\"listener\"}", 3.0),
        ("stage_duration_seconds_count{stage=\"connector\"}", 3.0),
        ("stage_duration_seconds_count{stage=\"builder\"}", 2.0),
        ("stage_duration_seconds_count{stage=\"pusher\"}", 2.0),
        // One was made long before it was published.
        ("queue_wait_seconds_count", 3.0),
        ("queue_wait_seconds_bucket{le=\"40\"}", 2.0),
        ("notifications_total{result=\"failed\",type=\"build.failed\"}", 1.0),
        ("notifications_total{result=\"delivered\",type=\"build.failed\"}", 1.0),
        ("actor_failed_total{actor=\"connector\",reason=\"repository_not_found\"}", 1.0),
        ("actor_done_total{actor=\"pusher\"}", 2.0),
        ("actor_running{actor=\"builder\"}", 1.0),
    ] {
        assert_eq!(scrape.value(&format!("image_builder_{series}")), value, "{series}");
    }
    let after: BTreeSet<String> = scrape.samples.keys().cloned().collect();
    assert_eq!(after, before, "no series comes up only when it is counted");
    assert_clean(&scrape.page);
    world.finish(&[&worker]);
}

#[test]
fn tries_that_are_put_off_are_counted_by_their_fault() {
    let forge = runtime().block_on(StandIn::start(|_| Answer::status(500)));
    let world = World::new().with("GITHUB_URL", &forge.url()).with("RETRY_MAX_ATTEMPTS", "3");
    let worker = world.worker();
    let told = world.build(&hopeless(&world));
    assert_eq!(told.data()["attempts"], json!(3));
    let told = told.failed("forge_failed");
    assert_eq!(told.data()["fault"], "service");
    let scrape = Scrape::of(&worker);
    let retries = "image_builder_retries_total{kind=\"service\",reason=\"forge_failed\"}";
    assert_eq!(scrape.value(retries), 2.0);
    let failed =
        "image_builder_builds_total{fault=\"service\",reason=\"forge_failed\",result=\"failed\"}";
    assert_eq!(scrape.value(failed), 1.0);
}

#[test]
fn a_try_that_took_its_worker_down_is_counted_as_a_crash() {
    let world = World::new();
    let worker = world.worker();
    let request = hopeless(&world);
    // As the broker does with what was delivered too often: without any history.
    let fail_queue = &world.settings["FAIL_QUEUE"];
    world.broker.publish(fail_queue, request.to_string().as_bytes(), BasicProperties::default());
    let build_id = request["uuid"].as_str().expect("a request has an id");
    let told = world.outcome(build_id).failed("repository_not_found");
    assert_eq!(told.data()["attempts"], 2);
    let scrape = Scrape::of(&worker);
    assert_eq!(scrape.value("image_builder_crashes_total{stage=\"listener\"}"), 1.0);
    let retries = "image_builder_retries_total{kind=\"crash\",reason=\"crashed\"}";
    assert_eq!(scrape.value(retries), 1.0);
    world.finish(&[&worker]);
}

#[test]
fn a_pause_for_want_of_an_engine_is_shown_with_what_is_lacking() {
    let world = World::new().with("DOCKER_HOST", "tcp://127.0.0.1:1");
    let worker = world.worker();
    let repo = repository("waits", &[("Dockerfile", "FROM scratch\n")]);
    world.publish(&world.request(&repo));
    let scrape = until("the worker pauses", || {
        let scrape = Scrape::of(&worker);
        let paused = scrape.value("image_builder_capacity_paused{reason=\"engine_down\"}") == 1.0;
        let connected = scrape.value("image_builder_need_ready{need=\"broker\"}") == 1.0;
        (paused && connected).then_some(scrape)
    });
    assert_eq!(scrape.value("image_builder_capacity_paused{reason=\"disk_low\"}"), 0.0);
    assert_eq!(scrape.value("image_builder_need_ready{need=\"engine\"}"), 0.0);
    assert_eq!(worker.get("/readyz").0, 503);
}
