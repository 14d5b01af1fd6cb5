//! Work that outlives its caller once it has committed itself.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use tracing::Instrument;

use crate::runtime::{Attendance, Started, Stopped, Task, has_tasks, start};

/// The caller's interest, as the work sees it.
#[derive(Clone, Default)]
pub(super) struct Interest {
    caller: Arc<AtomicU8>,
    /// The requests behind the caller, which may leave without it.
    attendance: Attendance,
}

impl Interest {
    const COMMITTED: u8 = 1;
    const LEFT: u8 = 2;

    /// Commits the work: from now on it continues even if the caller leaves. Returns false if the caller has already
    /// left.
    pub(super) fn commit(&self) -> bool {
        self.attendance.must_finish();
        self.caller.fetch_or(Self::COMMITTED, Ordering::AcqRel) & Self::LEFT == 0
    }

    /// Whether the caller still waits for the result.
    pub(super) fn is_there(&self) -> bool {
        self.caller.load(Ordering::Acquire) & Self::LEFT == 0 && !self.attendance.is_deserted()
    }

    /// Ends the interest. Returns whether the work may be stopped.
    fn leave(&self) -> bool {
        self.caller.fetch_or(Self::LEFT, Ordering::AcqRel) & Self::COMMITTED == 0
    }
}

/// Whether a runtime drives the work. If not, its caller may stop polling it at any time.
#[derive(Clone, Copy)]
pub(super) struct Driven(pub(super) bool);

/// Runs the work. Where there are tasks it is one, and dropping this future ends the work only before it has
/// [committed](Interest::commit) itself. Elsewhere dropping always ends it.
pub(super) async fn run<F>(
    attendance: Attendance,
    work: impl FnOnce(Interest, Driven) -> F,
) -> Result<F::Output, Stopped>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let interest = Interest { caller: Arc::default(), attendance };
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
