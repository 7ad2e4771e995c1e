//! Databases of a test's own on the stack's PostgreSQL.

use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

/// A database that nobody else uses. Dropping it removes it, whoever is connected to it.
pub(crate) struct Database {
    name: String,
}

/// The PostgreSQL that `stack.sh env` tells of.
pub(crate) fn postgres() -> String {
    std::env::var("POSTGRES_URL").expect("POSTGRES_URL, as `stack.sh env` prints it")
}

impl Database {
    pub(crate) async fn new() -> Self {
        let name = format!("t{}", Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(&postgres()).await.expect("PostgreSQL answers");
        admin.execute(format!("CREATE DATABASE {name}").as_str()).await.expect("made");
        Self { name }
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        let url = postgres();
        let (server, _) = url.rsplit_once('/').expect("it names a database");
        format!("{server}/{}", self.name)
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
