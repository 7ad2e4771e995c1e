//! Work that blocks, off the async threads. Its panic goes on where it is waited for: it is the
//! panic of the job that wanted it.

use tokio::task::{JoinError, JoinHandle, spawn_blocking};

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(spawn_blocking(work)).await
}

/// Waits for work that was begun earlier.
pub(crate) async fn joined<T>(task: JoinHandle<T>) -> T {
    match task.await.map_err(JoinError::try_into_panic) {
        Ok(value) => value,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime is going down, and this task with it.
        Err(Err(_)) => std::future::pending().await,
    }
}
