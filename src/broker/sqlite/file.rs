//! The file itself: its connections, and what is common to all that is done in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use image_builder_actors::ports::{BrokerError, Queue};
use sqlx::error::{DatabaseError, ErrorKind};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};

use super::clock::{Clock, Millis};

/// How long another process's look into the file is waited for.
const BUSY: Duration = Duration::from_secs(5);

/// Where requests wait for their turn, beside the queues that the port names.
pub(super) const BACKLOG: i64 = 4;

/// The number and the name of each queue, in the file.
pub(super) const QUEUES: [(i64, &str); 5] =
    [(0, "build"), (1, "fail"), (2, "outcome"), (3, "result"), (BACKLOG, "backlog")];

pub(super) fn number(queue: Queue) -> i64 {
    match queue {
        Queue::Build => 0,
        Queue::Fail => 1,
        Queue::Outcome => 2,
        Queue::Result => 3,
    }
}

/// Opens the file to read, where there is one.
pub(super) async fn open_to_read(path: &Path) -> sqlx::Result<SqliteConnection> {
    options(path).read_only(true).connect().await
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY).disable_statement_logging()
}

/// The connection that writes, and what its transaction makes known once it is committed.
pub(super) struct Tx {
    pub(super) connection: SqliteConnection,
    pub(super) news: News,
    clock: Clock,
}

/// What somebody may wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct News {
    /// The queues in which there may be more to hand out, by their numbers.
    pub(super) queues: [bool; QUEUES.len()],
    pub(super) cancellations: bool,
    /// When the first of the messages that were delayed is due.
    pub(super) due: Option<Millis>,
    /// Whether it is time to give back what the file does not need.
    pub(super) is_to_tidy: bool,
}

impl News {
    pub(super) fn in_queue(&mut self, queue: i64) {
        if let Some(news) = usize::try_from(queue).ok().and_then(|queue| self.queues.get_mut(queue))
        {
            *news = true;
        }
    }

    pub(super) fn due(&mut self, due: Millis) {
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }
}

impl Tx {
    /// Connects to a file that is there.
    pub(super) async fn connect(path: &Path, clock: Clock) -> sqlx::Result<Self> {
        let connection = options(path)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // What is deleted is gone: requests hold credentials.
            .pragma("secure_delete", "ON")
            .pragma("wal_autocheckpoint", "1000")
            .pragma("journal_size_limit", "8388608")
            .connect()
            .await?;
        Ok(Self { connection, news: News::default(), clock })
    }

    pub(super) fn now(&self) -> Millis {
        self.clock.now()
    }

    pub(super) async fn begin(&mut self) -> sqlx::Result<()> {
        self.news = News::default();
        self.execute("BEGIN IMMEDIATE").await
    }

    pub(super) async fn commit(&mut self) -> sqlx::Result<()> {
        self.execute("COMMIT").await
    }

    /// A statement without parameters and rows.
    pub(super) async fn execute(&mut self, statement: &'static str) -> sqlx::Result<()> {
        sqlx::query(statement).execute(&mut self.connection).await?;
        Ok(())
    }

    /// Ends the connection; a transaction that is under way is undone.
    pub(super) async fn close(self) -> sqlx::Result<()> {
        self.connection.close().await
    }
}

/// What the port's users are told of an error.
pub(super) fn told(error: &sqlx::Error) -> BrokerError {
    let kind = error.as_database_error().map(DatabaseError::kind);
    match kind {
        Some(ErrorKind::ForeignKeyViolation) => {
            BrokerError::Refused("there is no such queue in the file any more".to_owned())
        }
        _ => BrokerError::Unavailable(error.to_string()),
    }
}

/// A connection that only reads, opened when it is first needed, and anew after every error.
pub(super) struct Reader {
    path: PathBuf,
    connection: tokio::sync::Mutex<Option<SqliteConnection>>,
}

impl Reader {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, connection: tokio::sync::Mutex::default() }
    }

    pub(super) async fn read<T>(
        &self,
        query: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, sqlx::Result<T>>,
    ) -> sqlx::Result<T> {
        let mut held = self.connection.lock().await;
        let mut connection = match held.take() {
            Some(connection) => connection,
            None => open_to_read(&self.path).await?,
        };
        let read = query(&mut connection).await?;
        *held = Some(connection);
        Ok(read)
    }

    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            // There is nothing that it could still lose.
            let _ = connection.close().await;
        }
    }
}
