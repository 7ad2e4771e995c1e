//! What is known of builds: from every worker, and at no build's cost.

use std::path::Path;
use std::time::Duration;

use image_builder::store::{Place, Store, StoreSettings, open};
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::build_store::{BuildState, BuildStore, StoredBuild};
use serde_json::Value;

use crate::support::postgres::{Database, postgres};
use crate::support::proxy::{Network, Proxy};
use crate::support::turnstile::Steps;
use crate::support::world::{World, dockerfile, held_repository, repository};
use crate::support::{runtime, unique, until};

/// The store, as one more worker has it.
fn store(place: Place) -> Store {
    let _inside = runtime().enter();
    let (ttl, budget) = (Duration::from_secs(24 * 60 * 60), 1 << 30);
    open(StoreSettings { place, ttl, budget }).expect("opened")
}

/// The build of this id, once it is in this state.
fn in_state(store: &Store, build_id: &str, state: BuildState) -> StoredBuild {
    until(state.as_str(), || {
        let builds = runtime().block_on(store.builds_of_id(build_id)).expect("read");
        builds.into_iter().find(|build| build.state == state)
    })
}

fn log(store: &Store, build: &BuildIdentity) -> String {
    let part = runtime().block_on(store.log(build, 0, usize::MAX)).expect("read");
    String::from_utf8(part.expect("known").bytes).expect("text")
}

/// What `/readyz` says of the history.
fn history_of(report: &str) -> Value {
    let report: Value = serde_json::from_str(report).expect("JSON");
    let needs = report["needs"].as_array().expect("a list").clone();
    needs.into_iter().find(|need| need["name"] == "history").expect("it is told of")
}

#[test]
fn a_build_is_known_to_every_worker_from_its_request_to_its_outcome() {
    let database = runtime().block_on(Database::new());
    let steps = Steps::start();
    let world = World::new().with("DATABASE_URL", &database.url());
    let repo = held_repository(&steps);
    let store = store(Place::Postgres(Secret::new(database.url())));
    let worker = world.worker();
    let request = world.held_request(&repo, &world.user);
    let build_id = world.publish(&request);
    let building = in_state(&store, &build_id, BuildState::Building);
    assert_eq!(building.requested.build.user_id.as_deref(), Some(world.user.as_str()));
    assert_eq!(building.requested.repo.as_deref(), request["repo"].as_str());
    assert!(building.commit.is_some() && building.ended_at.is_none());
    steps.turnstile.let_all_go();
    let told = world.outcome(&build_id).ready();

    let ready = in_state(&store, &build_id, BuildState::Ready);
    assert_eq!(ready.commit.as_deref(), Some(told.text("/commit")));
    let outcome: Value = serde_json::from_str(&ready.outcome.expect("an outcome")).expect("JSON");
    assert_eq!(&outcome, told.data());
    let [attempt] = &ready.attempts[..] else { panic!("{:?}", ready.attempts) };
    assert!(attempt.stages.len() == 3 && !attempt.worker.is_empty(), "{attempt:?}");
    let log = log(&store, &ready.requested.build);
    assert!(log.contains("\n=> ") || log.starts_with("=> "), "the steps are there: {log}");
    assert!(log.contains(": done in "), "{log}");
    world.finish(&[&worker]);
}

#[test]
fn without_a_database_the_history_is_a_file_that_has_all_once_the_worker_has_ended() {
    let data = tempfile::tempdir().expect("a directory");
    let world = World::new().with("DATA_DIR", &data.path().display().to_string());
    let words = unique("words");
    let repo =
        repository("history", &[("Dockerfile", &dockerfile(&format!("RUN echo {words}; exit 3")))]);
    let worker = world.worker();
    let build_id = world.publish(&world.request(&repo));
    world.outcome(&build_id).failed("build_failed");
    let (status, report) = worker.get("/readyz");
    assert_eq!((status, &history_of(&report)["ready"]), (200, &true.into()));
    world.finish(&[&worker]);

    let store = store(Place::File(Path::new(data.path()).join("history.db")));
    let failed = in_state(&store, &build_id, BuildState::Failed);
    assert_eq!(failed.attempts.len(), 2);
    let reasons: Vec<_> =
        failed.attempts.iter().filter_map(|attempt| attempt.fault.as_ref()).collect();
    assert!(
        reasons.len() == 2 && reasons.iter().all(|fault| fault.reason.as_str() == "build_failed")
    );
    let log = log(&store, &failed.requested.build);
    assert!(
        log.lines().filter(|line| *line == words).count() >= 2,
        "both attempts are there: {log}"
    );
    assert_eq!(
        log.lines().filter(|line| line.starts_with("-- failed in the builder: ")).count(),
        2,
        "and told apart: {log}"
    );
}

#[test]
fn a_database_that_is_away_costs_no_build_and_hears_of_it_later() {
    let database = runtime().block_on(Database::new());
    let server = postgres();
    let server = server.rsplit_once('@').expect("a user").1.split('/').next().expect("a server");
    let proxy = runtime().block_on(Proxy::start(server, Network::Up)).expect("a proxy");
    let url = database.url().replace(server, &proxy.address.to_string());
    let world = World::new().with("DATABASE_URL", &url);
    world.keep_secret("builder-secret");
    let repo = repository("history", &[("Dockerfile", &dockerfile("RUN echo all is well"))]);
    let worker = world.worker();
    let known = |ready: bool| {
        until("/readyz says so", || {
            let (status, report) = worker.get("/readyz");
            assert_eq!(status, 200, "builds go on: {report}");
            let history = history_of(&report);
            (history["ready"] == ready).then_some(history)
        })
    };
    until("it is ready", || (worker.get("/readyz").0 == 200).then_some(()));
    known(true);
    proxy.set(Network::Down);
    let away = known(false);
    assert_eq!(away["required"], false);
    assert!(!away["detail"].as_str().unwrap_or_default().is_empty(), "{away}");

    let told = world.build(&world.request(&repo)).ready();
    let store = store(Place::Postgres(Secret::new(database.url())));
    let builds = runtime().block_on(store.builds_of_id(told.build_id())).expect("read");
    assert_eq!(builds, [], "nothing gets through");
    proxy.set(Network::Up);
    let ready = in_state(&store, told.build_id(), BuildState::Ready);
    assert_eq!(ready.attempts.len(), 1);
    assert!(log(&store, &ready.requested.build).contains("all is well"));
    known(true);
    world.finish(&[&worker]);
}
