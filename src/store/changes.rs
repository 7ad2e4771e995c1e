//! Hears of what other workers record, by PostgreSQL's notifications.

use std::time::Duration;

use sqlx::AnyConnection;
use sqlx::postgres::PgListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the notifications are called.
const CHANNEL: &str = "image_builder_builds";

/// Pause before it is connected again. Whoever waits looks as often meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// A task that listens, until the value is dropped.
pub(super) struct Listening(JoinHandle<()>);

impl Listening {
    /// Counts up with each notification that the database at this address gives.
    pub(super) fn start(url: String, changes: watch::Sender<u64>) -> Self {
        Self(tokio::spawn(async move {
            loop {
                if let Err(error) = listen(&url, &changes).await {
                    tracing::debug!(%error, "cannot hear of what is recorded");
                }
                tell(&changes);
                tokio::time::sleep(PAUSE).await;
            }
        }))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Listens until the connection is lost.
async fn listen(url: &str, changes: &watch::Sender<u64>) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen(CHANNEL).await?;
    // What was recorded meanwhile was told to nobody.
    tell(changes);
    while listener.try_recv().await?.is_some() {
        tell(changes);
    }
    Ok(())
}

fn tell(changes: &watch::Sender<u64>) {
    changes.send_modify(|count| *count = count.wrapping_add(1));
}

/// Tells all workers, once the transaction is committed.
pub(super) async fn announce(tx: &mut AnyConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1 FROM pg_notify($1, '')").bind(CHANNEL).execute(tx).await.map(drop)
}
