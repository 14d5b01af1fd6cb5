//! Work that outlives its caller from a certain point on.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use tracing::Instrument;

use crate::runtime::{Started, Stopped, Task, has_tasks, start};

/// The caller's interest, as the work sees it.
#[derive(Clone, Default)]
pub(super) struct Interest(Arc<AtomicU8>);

impl Interest {
    const COMMITTED: u8 = 1;
    const LEFT: u8 = 2;

    /// Whether the work may go on. From now on it does, even if the caller leaves.
    pub(super) fn commit(&self) -> bool {
        self.0.fetch_or(Self::COMMITTED, Ordering::AcqRel) & Self::LEFT == 0
    }

    /// Whether the caller still waits for the result.
    pub(super) fn is_there(&self) -> bool {
        self.0.load(Ordering::Acquire) & Self::LEFT == 0
    }

    /// Ends the interest. Whether the work may be stopped.
    fn leave(&self) -> bool {
        self.0.fetch_or(Self::LEFT, Ordering::AcqRel) & Self::COMMITTED == 0
    }
}

/// Whether a runtime drives the work. If not, its caller may stop to poll it at any time.
#[derive(Clone, Copy)]
pub(super) struct Driven(pub(super) bool);

/// Runs the work, as a task where there are tasks: dropping this future ends the work only until it has
/// [committed](Interest::commit) itself. Elsewhere dropping always ends it.
pub(super) async fn run<F>(work: impl FnOnce(Interest, Driven) -> F) -> Result<F::Output, Stopped>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let interest = Interest::default();
    let work = work(interest.clone(), Driven(has_tasks()));
    match start(Box::pin(work.in_current_span())).await {
        Started::Done(output) => Ok(output),
        Started::Task(task) => Caller { interest, task }.await,
    }
}

struct Caller<T> {
    interest: Interest,
    task: Task<T>,
}

impl<T> Future for Caller<T> {
    type Output = Result<T, Stopped>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().task.poll(cx)
    }
}

impl<T> Drop for Caller<T> {
    fn drop(&mut self) {
        if self.interest.leave() {
            self.task.stop();
        }
    }
}
