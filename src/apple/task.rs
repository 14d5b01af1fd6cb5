//! Work that outlives its caller from a certain point on.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

const WAITING: u8 = 0;
const COMMITTED: u8 = 1;
const LEFT: u8 = 2;

/// The caller's interest, as the work sees it.
pub(super) struct Interest(Arc<AtomicU8>);

impl Interest {
    /// Whether the work may go on. From now on it does, even if the caller leaves.
    pub(super) fn commit(&self) -> bool {
        self.0.compare_exchange(WAITING, COMMITTED, Ordering::AcqRel, Ordering::Acquire) != Err(LEFT)
    }

    /// Whether the caller still waits for the result.
    pub(super) fn is_there(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// The work's task was stopped, which only a runtime does that shuts down.
#[derive(Debug)]
pub(super) struct Stopped;

/// Runs the work, on tokio as a task: dropping this future ends the work only until it has
/// [committed](Interest::commit) itself. Elsewhere dropping always ends it.
pub(super) async fn run<F>(work: impl FnOnce(Interest, Driven) -> F) -> Result<F::Output, Stopped>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let state = Arc::new(AtomicU8::new(WAITING));
    let interest = Interest(Arc::clone(&state));
    #[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        use tracing::Instrument;

        let task = runtime.spawn(work(interest, Driven(true)).in_current_span());
        return Caller { state, task }.await;
    }
    let output = work(interest, Driven(false)).await;
    drop(state);
    Ok(output)
}

/// Whether a runtime drives the work. If not, its caller may stop to poll it at any time.
#[derive(Clone, Copy)]
pub(super) struct Driven(pub(super) bool);

#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
struct Caller<T> {
    state: Arc<AtomicU8>,
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
        if self.state.compare_exchange(WAITING, LEFT, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.task.abort();
        }
    }
}
