//! How the file is made and opened to write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sqlx::Executor;
use sqlx::sqlite::SqliteConnection;

use super::clock::Clock;
use super::file::{QUEUES, Tx};
use super::messages;

/// Marks the file as a queue of this program (`PRAGMA application_id`): "imgq".
const APPLICATION: i32 = 0x696d_6771;

/// What the tables are like (`PRAGMA user_version`).
const VERSION: i32 = 1;

const SCHEMA: &str = include_str!("schema.sql");

/// Why the queue's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the queue cannot be opened: {path}: {error}")]
    Io { path: String, error: io::Error },
    #[error("the queue cannot be opened: {path}: {error}")]
    Sqlite { path: String, error: sqlx::Error },
    #[error("{path} is no queue of image-builder: move it away")]
    Foreign { path: String },
    #[error(
        "{path} was made by a newer image-builder (its tables are of version {version}, this one knows \
         {VERSION}): use that one"
    )]
    Newer { path: String, version: i32 },
}

/// Opens the file to write, and makes it where it is missing. What somebody had in hand comes back: only one
/// process has the file at a time, so whoever that was is gone.
pub(super) async fn open(path: &Path, clock: Clock) -> Result<Tx, OpenError> {
    make(path).map_err(|error| OpenError::Io { path: path.display().to_string(), error })?;
    let failed = |error| OpenError::Sqlite { path: path.display().to_string(), error };
    let mut tx = Tx::connect(path, clock).await.map_err(failed)?;
    check(path, &mut tx.connection).await?;
    tx.begin().await.map_err(failed)?;
    prepare(&mut tx).await.map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok(tx)
}

/// Makes the file for its owner alone: requests hold credentials.
fn make(path: &Path) -> io::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the file is this program's, and none that it does not know yet.
async fn check(path: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let failed = |error| OpenError::Sqlite { path: path.display().to_string(), error };
    let path = || path.display().to_string();
    let (application, version): (i32, i32) = sqlx::query_as(
        "SELECT application_id, user_version FROM pragma_application_id, pragma_user_version",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(failed)?;
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
        .fetch_one(connection)
        .await
        .map_err(failed)?;
    match (application, version) {
        (0, 0) if tables == 0 => Ok(()),
        (APPLICATION, version) if version > VERSION => {
            Err(OpenError::Newer { path: path(), version })
        }
        (APPLICATION, _) => Ok(()),
        _ => Err(OpenError::Foreign { path: path() }),
    }
}

/// Makes the tables where there are none, and begins anew what an earlier process had begun.
async fn prepare(tx: &mut Tx) -> sqlx::Result<()> {
    let version: i32 =
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut tx.connection).await?;
    if version == 0 {
        tx.connection.execute(SCHEMA).await?;
        let mark =
            format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}");
        tx.connection.execute(&*mark).await?;
    }
    for (id, name) in QUEUES {
        sqlx::query("INSERT OR IGNORE INTO queues VALUES (?, ?)")
            .bind(id)
            .bind(name)
            .execute(&mut tx.connection)
            .await?;
    }
    let leases: Vec<i64> =
        sqlx::query_scalar("SELECT id FROM leases").fetch_all(&mut tx.connection).await?;
    for lease in leases {
        messages::end_lease(tx, lease).await?;
    }
    // A clock that was set back in between makes no delay longer than it was to be.
    sqlx::query("UPDATE messages SET due = ?1 + delay WHERE due IS NOT NULL AND due > ?1 + delay")
        .bind(tx.now())
        .execute(&mut tx.connection)
        .await?;
    Ok(())
}
