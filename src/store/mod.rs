//! The build store port on SQL: SQLite in a file of this worker's, or PostgreSQL that several workers share.
//!
//! Both speak the same statements but for what [`Dialect`] names. A build is one row, which is locked, read, changed
//! by the port's own function and written back; its log is beside it, in compressed chunks.
//!
//! | file | what it does |
//! |---|---|
//! | `schema.rs` | the tables, and how older ones become them |
//! | `builds.rs` | builds: written, found, listed |
//! | `logs.rs` | logs: appended, read |
//! | `tidy.rs` | what is kept no longer goes |
//! | `changes.rs` | hears of what other workers record |

mod builds;
mod changes;
mod logs;
mod schema;
mod tidy;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::build_store::{
    Acceptance, BuildStore, Filter, LogPart, Page, Recorded, RequestedBuild, StoreError,
    StoredBuild, Tally,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{Any, AnyPool, Transaction};
use time::OffsetDateTime;
use tokio::sync::{OnceCell, watch};

use self::changes::Listening;

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Longest that a look takes.
const LOOK_LIMIT: Duration = Duration::from_secs(4);
/// Longest that one call takes, tidying apart.
const LIMIT: Duration = Duration::from_secs(15);
/// Tidying may have a lot to remove.
const TIDY_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Connections of one worker at the most.
const CONNECTIONS: u32 = 4;

/// Where the store is.
#[derive(Debug, Clone)]
pub enum Place {
    /// A SQLite file, which is made where it is missing. One process writes it at a time.
    File(PathBuf),
    /// The address of a PostgreSQL, as `postgres://user:password@host/database`.
    Postgres(Secret),
}

/// What the store needs to know.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    pub place: Place,
    /// What was not changed for longer goes.
    pub ttl: Duration,
    /// How many bytes all builds may hold, compressed logs included; the oldest that ended go first.
    pub budget: u64,
}

/// What differs between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// Begins a transaction that writes. SQLite takes its one write lock at once: a transaction that read
    /// first could not wait for it later.
    fn begin(self) -> &'static str {
        match self {
            Dialect::Sqlite => "BEGIN IMMEDIATE",
            Dialect::Postgres => "BEGIN",
        }
    }

    /// Ends a query of rows that are to be written back. In SQLite nobody else writes meanwhile.
    fn locked(self) -> &'static str {
        match self {
            Dialect::Sqlite => "",
            Dialect::Postgres => " FOR UPDATE",
        }
    }

    /// The type of bytes.
    fn bytes(self) -> &'static str {
        match self {
            Dialect::Sqlite => "BLOB",
            Dialect::Postgres => "BYTEA",
        }
    }
}

/// The builds of a database. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    pool: AnyPool,
    /// Those who write in SQLite take turns at one connection, in the order of their coming.
    writers: AnyPool,
    dialect: Dialect,
    /// Whether the tables are there.
    tables: Arc<OnceCell<()>>,
    ttl: Duration,
    budget: u64,
    /// How often something was recorded, as far as this worker has heard.
    changes: watch::Sender<u64>,
    /// Hears of what others record.
    _listening: Option<Arc<Listening>>,
}

/// The store at this place. Nothing is connected to yet: a database that is not there is found missing when it
/// is needed. Must be called inside a Tokio runtime.
///
/// # Errors
///
/// The address cannot be read; the message does not hold it.
pub fn open(settings: StoreSettings) -> Result<Store, StoreError> {
    sqlx::any::install_default_drivers();
    let (url, dialect) = match &settings.place {
        Place::File(path) => {
            // For its owner alone: what builds write is nobody else's business. Where it cannot be made, SQLite
            // will say so.
            let _ = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let path = path.to_string_lossy();
            let path: Vec<_> = path
                .split('/')
                .map(|part| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string())
                .collect();
            (format!("sqlite://{}?mode=rwc", path.join("/")), Dialect::Sqlite)
        }
        Place::Postgres(url) => (url.expose().to_owned(), Dialect::Postgres),
    };
    let options: AnyConnectOptions = url.parse().map_err(|_| {
        // What cannot be read may hold a password.
        StoreError::Unavailable("the address of the database cannot be read".to_owned())
    })?;
    let connections = |most| {
        AnyPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(CONNECT_LIMIT)
            .after_connect(move |connection, _| Box::pin(schema::prepare(connection, dialect)))
            .connect_lazy_with(options.clone())
    };
    let pool = connections(CONNECTIONS);
    let writers = match dialect {
        Dialect::Sqlite => connections(1),
        Dialect::Postgres => pool.clone(),
    };
    let changes = watch::Sender::new(0);
    let listening = match dialect {
        Dialect::Sqlite => None,
        Dialect::Postgres => Some(Arc::new(Listening::start(url, changes.clone()))),
    };
    let StoreSettings { ttl, budget, .. } = settings;
    let tables = Arc::default();
    Ok(Store { pool, writers, dialect, tables, ttl, budget, changes, _listening: listening })
}

impl Store {
    /// The database, with its tables.
    async fn there(&self) -> Result<&AnyPool, StoreError> {
        let made = async || schema::make(&self.writers, self.dialect).await;
        self.tables.get_or_try_init(made).await?;
        Ok(&self.pool)
    }

    /// Begins a transaction that writes.
    async fn write(&self) -> Result<Transaction<'static, Any>, StoreError> {
        self.there().await?;
        self.writers.begin_with(self.dialect.begin()).await.map_err(unavailable)
    }

    /// Has heard of something new.
    fn changed_here(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Does something within a limit.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let seconds = limit.as_secs();
        Err(StoreError::Unavailable(format!("no answer within {seconds} s")))
    })
}

/// What the database said, which never holds its password.
fn unavailable(error: sqlx::Error) -> StoreError {
    if let sqlx::Error::Database(said) = &error
        // PostgreSQL's class of values that it cannot hold: they are no better the next time.
        && said.code().is_some_and(|code| code.len() == 5 && code.starts_with("22"))
    {
        return StoreError::Refused(said.message().to_owned());
    }
    StoreError::Unavailable(match error {
        sqlx::Error::PoolTimedOut => {
            format!("no connection within {} s", CONNECT_LIMIT.as_secs())
        }
        error => error.to_string(),
    })
}

/// What is stored is not what this version writes.
fn unreadable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("what is stored cannot be read: {error}"))
}

impl BuildStore for Store {
    fn accept<'a>(
        &'a self,
        requested: &'a RequestedBuild,
    ) -> BoxFuture<'a, Result<Acceptance, StoreError>> {
        Box::pin(within(LIMIT, builds::accept(self, requested)))
    }

    fn record<'a>(&'a self, changes: &'a [Recorded]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            within(LIMIT, builds::record(self, changes)).await?;
            self.changed_here();
            Ok(())
        })
    }

    fn builds_of_id<'a>(
        &'a self,
        build_id: &'a str,
    ) -> BoxFuture<'a, Result<Vec<StoredBuild>, StoreError>> {
        Box::pin(within(LIMIT, builds::of_id(self, build_id)))
    }

    fn list<'a>(
        &'a self,
        filter: &'a Filter,
        cursor: Option<&'a str>,
        most: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(within(LIMIT, builds::list(self, filter, cursor, most)))
    }

    fn tally(&self) -> BoxFuture<'_, Result<Tally, StoreError>> {
        Box::pin(within(LIMIT, builds::tally(self)))
    }

    fn log<'a>(
        &'a self,
        build: &'a BuildIdentity,
        offset: u64,
        most: usize,
    ) -> BoxFuture<'a, Result<Option<LogPart>, StoreError>> {
        Box::pin(within(LIMIT, logs::read(self, build, offset, most)))
    }

    fn tidy(&self, now: OffsetDateTime) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(within(TIDY_LIMIT, tidy::tidy(self, now)))
    }

    fn look(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let look = async {
                let pool = self.there().await?;
                sqlx::query("SELECT 1 FROM builds LIMIT 1")
                    .fetch_optional(pool)
                    .await
                    .map_err(unavailable)
            };
            within(LOOK_LIMIT, look).await.map(drop)
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // The sender is `self`, so it cannot be gone.
            let _ = self.changes.subscribe().changed().await;
        })
    }
}
