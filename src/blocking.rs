//! Work that blocks, off the async threads. Its log lines are in the span of the job that wanted it,
//! and its panic goes on where it is waited for: it is that job's.

use tokio::task::{JoinError, JoinHandle, spawn_blocking};

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(begin(work)).await
}

/// Begins work on a thread that may block, to be waited for by [`joined`].
pub(crate) fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let span = tracing::Span::current();
    spawn_blocking(move || span.in_scope(work))
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
