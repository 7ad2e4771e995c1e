//! What the inside asks of a broker, kept by a file of this machine's.

mod disk;
mod file;
mod killed;
mod moving;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use image_builder::broker::sqlite::{SqliteBroker, SqliteSettings};
use image_builder_actors::ports::{Broker, DeadLetterStore, DeadLetters, OutcomeLedger, Queue};
use image_builder_actors::testing::conformance;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

/// How long anything may take that comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A queue in a directory of its own, with a quick heartbeat.
struct Embedded {
    directory: TempDir,
    broker: SqliteBroker,
}

impl Embedded {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let broker = open(directory.path().join("queue.db")).await;
        Self { directory, broker }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("queue.db")
    }

    /// Does something to the file behind the worker's back.
    async fn tamper(&self, statement: &'static str) {
        let mut connection = raw(&self.path()).await;
        sqlx::query(statement).execute(&mut connection).await.expect("it is done");
        connection.close().await.expect("closed");
    }
}

fn settings(path: PathBuf) -> SqliteSettings {
    SqliteSettings {
        has_result_queue: true,
        heartbeat: Duration::from_millis(100),
        ..SqliteSettings::new(path)
    }
}

async fn open(path: PathBuf) -> SqliteBroker {
    SqliteBroker::open(settings(path)).await.expect("the file can be used")
}

/// A connection of somebody else's.
async fn raw(path: &std::path::Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.expect("connected")
}

impl conformance::broker::World for Embedded {
    fn broker(&self) -> &dyn Broker {
        &self.broker
    }

    /// Lets the leases run out, which is what there is of a lost connection in a file.
    async fn lose_consumer_connection(&self) {
        self.tamper("UPDATE leases SET until = 0").await;
    }

    async fn delete_queue(&self, queue: Queue) {
        self.tamper(match queue {
            Queue::Build => "DELETE FROM queues WHERE name = 'build'",
            Queue::Fail => "DELETE FROM queues WHERE name = 'fail'",
            Queue::Outcome => "DELETE FROM queues WHERE name = 'outcome'",
            Queue::Result => "DELETE FROM queues WHERE name = 'result'",
        })
        .await;
    }

    async fn publish_unreadable(&self, queue: Queue, body: &[u8]) {
        let name = format!("{queue:?}").to_lowercase();
        let mut connection = raw(&self.path()).await;
        let latin_1 = b"caf\xe9".as_slice();
        sqlx::query(
            "INSERT INTO messages (queue, message_id, body) \
             SELECT id, CAST(? AS TEXT), ? FROM queues WHERE name = ?",
        )
        .bind(latin_1)
        .bind(body)
        .bind(name)
        .execute(&mut connection)
        .await
        .expect("it is put in");
        connection.close().await.expect("closed");
    }

    async fn cancel(&self, body: &[u8]) {
        self.broker.send_cancellation(body.to_vec()).await.expect("sent");
    }
}

impl conformance::outcome_ledger::World for Embedded {
    fn worker(&self) -> Arc<dyn OutcomeLedger> {
        self.broker.outcome_ledger()
    }

    /// Nothing is read ahead that could be lost: what is left is what the leases are for.
    async fn lose_connections(&self) {
        self.tamper("UPDATE leases SET until = 0").await;
    }
}

impl conformance::dead_letters::World for Embedded {
    fn letters(&self) -> &dyn DeadLetters {
        &self.broker
    }

    fn store(&self) -> &dyn DeadLetterStore {
        &self.broker
    }

    fn broker(&self) -> &dyn Broker {
        &self.broker
    }

    async fn delete_build_queue(&self) {
        self.tamper("DELETE FROM queues WHERE name = 'build'").await;
    }
}

mod queues {
    image_builder_actors::broker_conformance!(super::Embedded::start().await);
}

mod outcome_ledger {
    image_builder_actors::outcome_ledger_conformance!(super::Embedded::start().await);
}

mod dead_letters {
    image_builder_actors::dead_letters_conformance!(super::Embedded::start().await);
}
