//! The crate's clocks, timers and tasks: all behaviour that depends on the platform.
//!
//! Under tokio the monotonic clock is tokio's. A test that pauses tokio's time therefore controls every time to live,
//! renewal and latency of this crate. Elsewhere the clock is the platform's.
//!
//! On `wasm32-unknown-unknown` the standard library's clocks panic, and so do tokio's clocks and tasks. The clocks and
//! timers there are those of the JavaScript host, such as Cloudflare Workers, even if the feature `tokio` is on.

pub(crate) use web_time::SystemTime;

#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
pub(crate) use tokio::time::Instant;
#[cfg(not(all(feature = "tokio", not(target_arch = "wasm32"))))]
pub(crate) use web_time::Instant;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use web_time::UNIX_EPOCH;

use crate::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU8, Ordering},
};

/// Whether a request may wait for the work of another request. On wasm it must not: hosts such as Cloudflare Workers do
/// not let a request wait for the I/O of another one.
pub(crate) const REQUESTS_MAY_AWAIT_EACH_OTHER: bool = cfg!(not(target_arch = "wasm32"));

/// Whether a request may end without a trace: when a client leaves, such hosts neither poll nor drop its request.
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
pub(crate) const REQUESTS_MAY_VANISH: bool = cfg!(target_arch = "wasm32");

/// One reading of both clocks. Decisions about time take it as an argument, which makes them pure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timestamp {
    /// The monotonic clock, for durations. It never jumps.
    pub(crate) monotonic: Instant,
    /// The wall clock, for times that others see. It may jump.
    pub(crate) wall: SystemTime,
}

impl Timestamp {
    pub(crate) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: wall_clock() }
    }
}

/// The wall clock. A unit test can set this thread's with `set_wall_clock`; the monotonic clock stands still and
/// moves with tokio's paused time.
pub(crate) fn wall_clock() -> SystemTime {
    #[cfg(test)]
    if let Some(time) = WALL_CLOCK.get() {
        return time;
    }
    SystemTime::now()
}

#[cfg(test)]
thread_local! {
    static WALL_CLOCK: std::cell::Cell<Option<SystemTime>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
pub(crate) fn set_wall_clock(time: SystemTime) {
    WALL_CLOCK.set(Some(time));
}

/// The time since the Unix epoch; zero for a time before it.
pub(crate) fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A random number from `low` to `high`, to spread events over time. Not for secrets.
pub(crate) fn spread(low: u64, high: u64) -> u64 {
    // This uses the standard library's randomness, which is available on every platform. On wasm it only tells the
    // requests of one process apart.
    let random = RandomState::new().build_hasher().finish();
    low + random % (high.saturating_sub(low) + 1)
}

/// A duration in whole milliseconds, for code that stores or sends times as numbers.
#[cfg_attr(not(any(feature = "memory-cache", feature = "redis", feature = "split-key")), allow(dead_code))]
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Year, month and day in the Gregorian calendar, from the days since 1970-01-01.
pub(crate) const fn date(days: u64) -> (u64, u64, u64) {
    // Years are counted from March here, so that a leap day is the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * day_of_year + 2) / 153;
    let month = (months_since_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + (month <= 2) as u64;
    (year, month, day_of_year - (153 * months_since_march + 2) / 5 + 1)
}

/// A computation and those that wait for it: whether anybody does, and whether it must finish all the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attendance(Arc<AtomicU8>);

impl Attendance {
    const MUST_FINISH: u8 = 1;
    const DESERTED: u8 = 2;

    /// The computation has gone so far that it must finish, even if all that wait for it leave.
    pub(crate) fn must_finish(&self) {
        self.0.fetch_or(Self::MUST_FINISH, Ordering::AcqRel);
    }

    /// All that waited for the computation have left. Returns whether it must finish all the same.
    pub(crate) fn desert(&self) -> bool {
        self.0.fetch_or(Self::DESERTED, Ordering::AcqRel) & Self::MUST_FINISH != 0
    }

    /// Somebody waits for it again.
    pub(crate) fn join(&self) {
        self.0.fetch_and(!Self::DESERTED, Ordering::AcqRel);
    }

    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    pub(crate) fn is_deserted(&self) -> bool {
        self.0.load(Ordering::Acquire) & Self::DESERTED != 0
    }
}

/// The time limit passed before the future was done.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Waits for `future`, at most for `limit` if there are timers. Elsewhere there is no limit.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut end = pin!(None);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        // The timer is made only now, because a future that is ready at once needs none.
        if end.is_none() {
            end.set(timer(limit));
        }
        end.as_mut().as_pin_mut().map_or(Poll::Pending, |end| end.poll(cx).map(|()| Err(Elapsed)))
    })
    .await
}

/// The number of parts in which [`patiently`] waits.
const PARTS: u32 = 10;

/// Waits for `future`, at most for `limit`. Time in which this process was too busy to poll does not count: the wait
/// has several parts, and a timer that fires late counts as one part only.
#[cfg_attr(not(any(feature = "redis", feature = "tokio")), allow(dead_code))]
pub(crate) async fn patiently<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let part = (limit / PARTS).max(Duration::from_millis(1));
    let mut left = limit;
    loop {
        match within(part.min(left), future.as_mut()).await {
            Err(Elapsed) if left > part => left -= part,
            answer => return answer,
        }
    }
}

/// Waits for this time if there are timers. Elsewhere waits for ever.
pub(crate) async fn pause(time: Duration) {
    let _ = within(time, std::future::pending::<()>()).await;
}

/// Spawns the future as a task in the current span. Without a runtime, drops it.
#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(tracing::Instrument::in_current_span(future));
    }
}

#[cfg(not(all(feature = "tokio", not(target_arch = "wasm32"))))]
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    drop(future);
}

/// Runs work that blocks its thread: on a thread of its own, if there is a runtime that has some.
#[cfg(all(feature = "split-key", not(target_arch = "wasm32")))]
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    #[cfg(feature = "tokio")]
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        return runtime.spawn_blocking(work).await.map_err(std::io::Error::other)?;
    }
    work()
}

/// Whether there are tasks, which continue when the request that started them is dropped.
pub(crate) fn has_tasks() -> bool {
    #[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
    let has_tasks = tokio::runtime::Handle::try_current().is_ok();
    #[cfg(not(all(feature = "tokio", not(target_arch = "wasm32"))))]
    let has_tasks = false;
    has_tasks
}

/// Work that was started.
#[allow(dead_code, reason = "not every platform has tasks")]
pub(crate) enum Started<T> {
    Done(T),
    Task(Task<T>),
}

/// Starts the work as a task, unless it ends at once. Where there are no tasks, this future is the work.
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
pub(crate) async fn start<F>(mut work: Pin<Box<F>>) -> Started<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    if !has_tasks() {
        return Started::Done(work.await);
    }
    // The poll is unconstrained, so it does not consume the caller's coop budget.
    let mut at_once = tokio::task::unconstrained(work.as_mut());
    match poll_fn(|cx| Poll::Ready(Pin::new(&mut at_once).poll(cx))).await {
        Poll::Ready(output) => Started::Done(output),
        Poll::Pending => Started::Task(Task(tokio::spawn(work))),
    }
}

#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
#[cfg(not(all(feature = "tokio", not(target_arch = "wasm32"))))]
pub(crate) async fn start<F: Future>(work: Pin<Box<F>>) -> Started<F::Output> {
    Started::Done(work.await)
}

/// The task was stopped. This happens only when its runtime shuts down.
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
#[derive(Debug)]
pub(crate) struct Stopped;

/// A task, which continues when this is dropped.
#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
pub(crate) struct Task<T>(tokio::task::JoinHandle<T>);

#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
impl<T> Task<T> {
    pub(crate) fn stop(&self) {
        self.0.abort();
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Stopped>> {
        Pin::new(&mut self.0).poll(cx).map(|result| {
            result.map_err(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_stopped) => Stopped,
            })
        })
    }
}

/// A task where there are none.
#[cfg(not(all(feature = "tokio", not(target_arch = "wasm32"))))]
pub(crate) struct Task<T>(std::convert::Infallible, std::marker::PhantomData<fn() -> T>);

#[cfg(not(all(feature = "tokio", not(target_arch = "wasm32"))))]
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
impl<T> Task<T> {
    pub(crate) fn stop(&self) {
        match self.0 {}
    }

    pub(crate) fn poll(&mut self, _: &mut Context<'_>) -> Poll<Result<T, Stopped>> {
        match self.0 {}
    }
}

/// Adds a duration to an instant. A longer duration than a century counts as a century, which does not overflow.
pub(crate) fn later(now: Instant, duration: Duration) -> Instant {
    now + duration.min(Duration::from_secs(100 * 365 * 24 * 60 * 60))
}

/// Locks a mutex, even if it is poisoned: this crate's data behind a mutex is consistent at every point where code can
/// panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for reading, even if the lock is poisoned: see [`lock`].
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for writing, even if the lock is poisoned: see [`lock`].
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// A boxed deadline, for a state machine.
pub(crate) type Timer = BoxFuture<'static, ()>;

/// Makes a timer that ends after `limit`. Returns `None` if no clock runs.
pub(crate) fn boxed_timer(limit: Duration) -> Option<Timer> {
    timer(limit).map(|timer| Box::pin(timer) as Timer)
}

/// The timer is unconstrained, so it fires even if the future beside it has used up tokio's coop budget.
#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
fn timer(limit: Duration) -> Option<impl Future<Output = ()>> {
    let is_running = tokio::runtime::Handle::try_current().is_ok();
    is_running.then(|| tokio::task::unconstrained(tokio::time::sleep(limit)))
}

/// The host's `setTimeout`.
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
fn timer(limit: Duration) -> Option<impl Future<Output = ()> + Send> {
    // The host counts in an `i32`, and a number beyond it would be no time at all.
    let millis = limit.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128);
    // The futures of the crate must be `Send`. There is one thread.
    Some(send_wrapper::SendWrapper::new(gloo_timers::future::TimeoutFuture::new(millis as u32)))
}

#[cfg(not(any(
    all(feature = "tokio", not(target_arch = "wasm32")),
    all(target_family = "wasm", target_os = "unknown")
)))]
fn timer(_: Duration) -> Option<std::future::Pending<()>> {
    None
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    #[cfg(any(feature = "split-key", feature = "testing"))]
    fn dates() {
        let cases = [
            (0, (1970, 1, 1)),
            (86_399, (1970, 1, 1)),
            (86_400, (1970, 1, 2)),
            (2_678_399, (1970, 1, 31)),
            (2_678_400, (1970, 2, 1)),
            (951_782_400, (2000, 2, 29)),
            (951_868_800, (2000, 3, 1)),
            (1_709_164_800, (2024, 2, 29)),
            (1_709_251_200, (2024, 3, 1)),
            (1_735_603_200, (2024, 12, 31)),
            (1_735_689_599, (2024, 12, 31)),
            (1_735_689_600, (2025, 1, 1)),
            (4_107_542_399, (2100, 2, 28)),
            (4_107_542_400, (2100, 3, 1)),
            (13_574_563_200, (2400, 2, 29)),
        ];
        for (seconds, expected) in cases {
            assert_eq!(date(seconds / (24 * 60 * 60)), expected, "{seconds}");
        }
    }

    #[test]
    fn without_a_runtime_there_is_no_deadline() {
        let result = within(Duration::ZERO, std::future::ready(7)).now_or_never();
        assert!(matches!(result, Some(Ok(7))));
    }
}
