//! Workers that stand still: what SIGSTOP does to a process, done to the tasks of one worker of many in a process.
//!
//! A task under a [`Pause`] is not polled while it holds, and neither are the tasks that it starts
//! ([`crate::task::Tasks`] passes the pause on). Time goes on meanwhile, and so does what was sent before: timers
//! of the worker are late when it goes on, exactly as those of a stopped process are. Outside of a pause nothing
//! changes.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

tokio::task_local! {
    static AMBIENT: Pause;
}

/// Stops and resumes the tasks that run under it. Clones are handles to the same one.
#[derive(Debug, Clone, Default)]
pub struct Pause(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    holds: bool,
    /// Tasks that were to be polled meanwhile, in that order.
    waiting: Vec<Waker>,
}

impl Pause {
    /// A pause that does not hold yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on the tasks stand still.
    pub fn hold(&self) {
        self.state().holds = true;
    }

    /// The tasks go on; those that were to be polled meanwhile are woken in that order.
    pub fn resume(&self) {
        let waiting = {
            let mut state = self.state();
            state.holds = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Runs a future, and whatever tasks it starts, under this pause.
    pub fn over<F: Future>(&self, inner: F) -> Paused<F> {
        Paused { pause: Some(self.clone()), inner: Box::pin(inner) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it holds; if so, the task is woken when it goes on.
    fn stops(&self, task: &Waker) -> bool {
        let mut state = self.state();
        if state.holds && !state.waiting.iter().any(|waiting| waiting.will_wake(task)) {
            state.waiting.push(task.clone());
        }
        state.holds
    }
}

/// Puts a task under the pause of the task that starts it, if that has one.
pub(crate) fn inherit<F: Future>(inner: F) -> Paused<F> {
    Paused { pause: AMBIENT.try_with(Clone::clone).ok(), inner: Box::pin(inner) }
}

/// A future that may have to stand still.
#[derive(Debug)]
pub struct Paused<F> {
    pause: Option<Pause>,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Paused<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(pause) = self.pause.clone() else { return self.inner.as_mut().poll(context) };
        if pause.stops(context.waker()) {
            return Poll::Pending;
        }
        AMBIENT.sync_scope(pause, || self.inner.as_mut().poll(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Tasks;
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn tasks_and_their_tasks_stand_still_and_go_on_late() {
        let (pause, begun) = (Pause::new(), Instant::now());
        let mut tasks = Tasks::new();
        tasks.spawn(pause.over(async move {
            let mut children = Tasks::new();
            children.spawn(async move {
                sleep(Duration::from_secs(1)).await;
                begun.elapsed()
            });
            let child = children.join_next().await.unwrap().unwrap();
            (child, begun.elapsed())
        }));
        sleep(Duration::from_millis(500)).await;
        pause.hold();
        sleep(Duration::from_secs(9)).await;
        pause.resume();
        let (child, parent) = tasks.join_next().await.unwrap().unwrap();
        assert_eq!((child, parent), (Duration::from_millis(9_500), Duration::from_millis(9_500)));
    }
}
