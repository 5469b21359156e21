//! The only place that starts tasks.
//!
//! Every task has an owner that joins it: a [`Tasks`] set belongs to whoever started them, and dropping it
//! aborts what still runs. A task that panics is reported by the join, never lost.

use std::future::Future;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::Instrument;

/// A set of tasks with one owner. Dropping it aborts the tasks that still run.
#[derive(Debug)]
pub struct Tasks<T: 'static> {
    set: JoinSet<T>,
}

impl<T: Send + 'static> Default for Tasks<T> {
    fn default() -> Self {
        Self { set: JoinSet::new() }
    }
}

impl<T: Send + 'static> Tasks<T> {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task in the current tracing span.
    pub fn spawn(&mut self, task: impl Future<Output = T> + Send + 'static) -> AbortHandle {
        // A simulated worker that stands still does so with all its tasks.
        #[cfg(feature = "sandbox")]
        let task = crate::sandbox::pause::inherit(task);
        self.set.spawn(task.in_current_span())
    }

    /// Waits for the next task to end; `None` when there are none. Cancel-safe.
    pub async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
        self.set.join_next().await
    }

    /// How many tasks have not been joined yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether there are no tasks left to join.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Aborts all tasks and waits until they are gone.
    pub async fn abort_all(&mut self) {
        self.set.shutdown().await;
    }
}
