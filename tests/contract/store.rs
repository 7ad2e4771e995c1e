//! The build store port on SQL.

use std::sync::Arc;
use std::time::Duration;

use image_builder::store::{Place, Store, StoreSettings, open};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::build_store::BuildStore;
use image_builder_actors::testing::conformance::build_store::World;
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use uuid::Uuid;

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

/// A database of its own on the stack's PostgreSQL.
struct Database {
    url: String,
    name: String,
}

/// The PostgreSQL that `stack.sh env` tells of.
fn postgres() -> String {
    std::env::var("POSTGRES_URL").expect("POSTGRES_URL, as `stack.sh env` prints it")
}

impl Database {
    async fn new() -> Self {
        let name = format!("t{}", Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(&postgres()).await.expect("PostgreSQL answers");
        admin.execute(format!("CREATE DATABASE {name}").as_str()).await.expect("made");
        let url = postgres();
        let (server, _) = url.rsplit_once('/').expect("it names a database");
        Self { url: format!("{server}/{name}"), name }
    }

    fn store(&self) -> Store {
        open(settings(Place::Postgres(Secret::new(self.url.as_str())))).expect("opened")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop_it = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        // Not in the test's own runtime, which may be ending.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let mut admin = PgConnection::connect(&postgres()).await?;
                admin.execute(drop_it.as_str()).await
            })
        });
        if let Ok(Err(error)) = dropped.join() {
            eprintln!("a test's database is left behind: {error}");
        }
    }
}

impl World for Database {
    fn worker(&self) -> Arc<dyn BuildStore> {
        Arc::new(self.store())
    }

    fn budget(&self) -> u64 {
        BUDGET
    }
}

mod postgres {
    image_builder_actors::build_store_conformance!(super::Database::new().await);
}

#[tokio::test]
async fn workers_that_start_at_once_make_the_tables_once() {
    let database = Database::new().await;
    let stores: Vec<_> = (0..8).map(|_| database.store()).collect();
    let looks = futures_util::future::join_all(stores.iter().map(|store| store.look())).await;
    assert!(looks.iter().all(Result::is_ok), "{looks:?}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_said_without_its_password() {
    let url = "postgres://builder:hunter2hunter2@127.0.0.1:1/builds";
    let store = open(settings(Place::Postgres(Secret::new(url)))).expect("it connects to nothing");
    let away = store.look().await.expect_err("nobody answers").to_string();
    assert!(away.starts_with("the build store is not available: "), "{away}");
    assert!(!away.contains("hunter2"), "{away}");
    let wrong = postgres().replace("builder-secret", "hunter2hunter2");
    let store =
        open(settings(Place::Postgres(Secret::new(wrong)))).expect("it connects to nothing");
    let refused = store.look().await.expect_err("refused").to_string();
    assert!(refused.contains("password authentication failed"), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
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
