//! Work that outlives its caller once it has committed itself.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use crate::runtime::Attendance;

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
    #[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
    fn leave(&self) -> bool {
        self.caller.fetch_or(Self::LEFT, Ordering::AcqRel) & Self::COMMITTED == 0
    }
}

/// Whether a runtime drives the work. If not, its caller may stop polling it at any time.
#[derive(Clone, Copy)]
pub(super) struct Driven(pub(super) bool);

/// The work's task was stopped. This happens only when its runtime shuts down.
#[derive(Debug)]
pub(super) struct Stopped;

/// Runs the work. On tokio it is a task, and dropping this future ends the work only before it has
/// [committed](Interest::commit) itself. Elsewhere dropping always ends it.
pub(super) async fn run<F>(
    attendance: Attendance,
    work: impl FnOnce(Interest, Driven) -> F,
) -> Result<F::Output, Stopped>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let interest = Interest { caller: Arc::default(), attendance };
    #[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        use std::task::Poll;
        use tracing::Instrument;

        let mut work = Box::pin(work(interest.clone(), Driven(true)).in_current_span());
        // A call that ends at once needs no task. The poll is unconstrained, so it does not consume the caller's coop
        // budget.
        let mut at_once = tokio::task::unconstrained(work.as_mut());
        let polled = std::future::poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut at_once).poll(cx)));
        if let Poll::Ready(output) = polled.await {
            return Ok(output);
        }
        return Caller { interest, task: runtime.spawn(work) }.await;
    }
    Ok(work(interest, Driven(false)).await)
}

#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
struct Caller<T> {
    interest: Interest,
    task: tokio::task::JoinHandle<T>,
}

#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
impl<T> Future for Caller<T> {
    type Output = Result<T, Stopped>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.task).poll(cx).map(|result| {
            match result.map_err(|error| error.try_into_panic()) {
                Ok(output) => Ok(output),
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                Err(Err(_stopped)) => Err(Stopped),
            }
        })
    }
}

#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
impl<T> Drop for Caller<T> {
    fn drop(&mut self) {
        if self.interest.leave() {
            self.task.abort();
        }
    }
}
