//! The build store port on SQL.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use image_builder::store::{Place, Store, StoreSettings, open};
use image_builder_actors::model::build_log::BuildEvent;
use image_builder_actors::model::fault::StageName;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::notification::Subject;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::build_store::{BuildState, BuildStore};
use image_builder_actors::telemetry::history::Recorder;
use image_builder_actors::testing::conformance::build_store::World;
use sqlx::{Connection, Executor};
use tempfile::TempDir;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::postgres::{Database, postgres};
use crate::proxy::{Network, Proxy};

const BUDGET: u64 = 256 * 1024;

fn settings(place: Place) -> StoreSettings {
    StoreSettings { place, ttl: Duration::from_secs(30 * 24 * 60 * 60), budget: BUDGET }
}

/// A file, which one process writes.
struct File {
    store: Store,
    _directory: TempDir,
}

impl File {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("it's 100% odd?.db");
        let store = open(settings(Place::File(path))).expect("opened");
        Self { store, _directory: directory }
    }
}

impl World for File {
    fn worker(&self) -> Arc<dyn BuildStore> {
        Arc::new(self.store.clone())
    }

    fn budget(&self) -> u64 {
        BUDGET
    }
}

mod sqlite {
    image_builder_actors::build_store_conformance!(super::File::new());
}

fn store(database: &Database) -> Store {
    open(settings(Place::Postgres(Secret::new(database.url())))).expect("opened")
}

impl World for Database {
    fn worker(&self) -> Arc<dyn BuildStore> {
        Arc::new(store(self))
    }

    fn budget(&self) -> u64 {
        BUDGET
    }
}

mod on_postgres {
    image_builder_actors::build_store_conformance!(crate::postgres::Database::new().await);
}

#[tokio::test]
async fn workers_that_start_at_once_make_the_tables_once() {
    let database = Database::new().await;
    let stores: Vec<_> = (0..8).map(|_| store(&database)).collect();
    let looks = futures_util::future::join_all(stores.iter().map(|store| store.look())).await;
    assert!(looks.iter().all(Result::is_ok), "{looks:?}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_said_without_its_password() {
    let url = "postgres://builder:canary-4b7d-password@127.0.0.1:1/builds";
    let store = open(settings(Place::Postgres(Secret::new(url)))).expect("it connects to nothing");
    let away = store.look().await.expect_err("nobody answers").to_string();
    assert!(away.starts_with("the build store is not available: "), "{away}");
    assert!(!away.contains("canary-4b7d"), "{away}");
    let wrong = postgres().replace("builder-secret", "canary-4b7d-password");
    let store =
        open(settings(Place::Postgres(Secret::new(wrong)))).expect("it connects to nothing");
    let refused = store.look().await.expect_err("refused").to_string();
    assert!(refused.contains("password authentication failed"), "{refused}");
    assert!(!refused.contains("canary-4b7d"), "{refused}");
}

#[tokio::test]
async fn a_file_is_its_owners_and_shrinks_by_what_is_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history.db");
    let store = open(settings(Place::File(path.clone()))).expect("opened");
    let build = BuildIdentity::new(Some("ann"), "b");
    let (user_id, build_id) = (build.user_id.clone(), build.build_id.clone());
    let subject = Subject { build_id, user_id, ..Subject::default() };
    let recorder = Recorder::start(Arc::new(store.clone()), "worker");
    recorder.requested(&subject, b"{}", OffsetDateTime::now_utc());
    let log = recorder.listener(build.clone());
    for _ in 0..100_000 {
        log.hear(&BuildEvent::Output(Uuid::new_v4().to_string()));
    }
    recorder.flush(Duration::from_secs(60)).await;
    // Pages are free, and given back, once they are in the file itself.
    let pages = async || {
        let url = format!("sqlite://{}", path.display());
        let mut file = sqlx::SqliteConnection::connect(&url).await.expect("opened");
        sqlx::query_scalar::<_, i64>("PRAGMA page_count").fetch_one(&mut file).await.expect("read")
    };
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it is its owner's alone");
    let full = pages().await;
    assert!(full > 250, "{full}");
    let later = OffsetDateTime::now_utc() + Duration::from_secs(31 * 24 * 60 * 60);
    store.tidy(later).await.expect("tidied");
    let left = pages().await;
    assert!(left < full / 4, "{left} of {full} are left");
}

#[tokio::test]
async fn what_a_store_knows_is_there_when_the_file_is_opened_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = Place::File(directory.path().join("history.db"));
    open(settings(place.clone())).expect("opened").look().await.expect("made");
    let again = open(settings(place.clone())).expect("opened");
    again.look().await.expect("the tables are there");

    let mut newer = sqlx::SqliteConnection::connect(&format!(
        "sqlite://{}",
        directory.path().join("history.db").display()
    ))
    .await
    .expect("opened");
    newer.execute("INSERT INTO store_version (step) VALUES (2)").await.expect("written");
    let refused = open(settings(place)).expect("opened").look().await.expect_err("it is newer");
    assert!(refused.to_string().contains("newer version"), "{refused}");
}

#[tokio::test]
async fn what_was_told_while_the_database_was_away_is_there_once_and_what_was_lost_is_marked() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let database = Database::new().await;
    let server = postgres();
    let server = server.rsplit_once('@').expect("a user").1.split('/').next().expect("a server");
    let proxy = Proxy::start(server, Network::Up).await.expect("a proxy");
    let url = database.url().replace(server, &proxy.address.to_string());
    let behind = open(settings(Place::Postgres(Secret::new(url)))).expect("opened");
    let recorder = Recorder::start(Arc::new(behind), "worker");
    let build = BuildIdentity::new(Some("ann"), "b");
    let (user_id, build_id) = (build.user_id.clone(), build.build_id.clone());
    let subject = Subject { build_id, user_id, ..Subject::default() };
    recorder.requested(&subject, b"{}", OffsetDateTime::now_utc());
    let log = recorder.listener(build.clone());
    log.hear(&BuildEvent::Output("before".to_owned()));
    recorder.flush(PATIENCE).await;

    let known = store(&database);
    let whole = async || {
        let part = known.log(&build, 0, usize::MAX).await.expect("read").expect("known");
        String::from_utf8(part.bytes).expect("text")
    };
    assert_eq!(whole().await, "before\n");
    proxy.set(Network::Down);
    recorder.stage(&build, 1, StageName::Builder);
    for number in 0..40_000 {
        log.hear(&BuildEvent::Output(format!("{number} {}", "x".repeat(400))));
    }
    recorder.stage(&build, 1, StageName::Pusher);
    log.hear(&BuildEvent::Output("after".to_owned()));
    // Nothing gets through, and nobody waits for it.
    recorder.flush(Duration::from_millis(500)).await;
    assert_eq!(whole().await, "before\n");
    proxy.set(Network::Up);
    recorder.flush(PATIENCE).await;

    let log = whole().await;
    let lines: Vec<_> = log.lines().collect();
    let gaps: Vec<_> = lines.iter().filter(|line| line.starts_with('…')).collect();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    let lost: usize = gaps[0].split(' ').nth(1).expect("a number").parse().expect("a number");
    assert_eq!(
        (lines.len() - 3 + lost, lines[0], lines[lines.len() - 1]),
        (40_000, "before", "after")
    );
    let builds = known.builds_of_id("b").await.expect("read");
    assert_eq!(builds[0].state, BuildState::Pushing);
}
