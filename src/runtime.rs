//! The crate's clocks, timers and tasks: all behaviour that depends on the platform.
//!
//! Under tokio the monotonic clock is tokio's, so that a test that pauses tokio's time moves every time to
//! live, renewal and latency of this crate with it. Elsewhere it is the platform's.
//!
//! On `wasm32-unknown-unknown` the standard library's clocks panic. Clocks and timers are those of the JavaScript host
//! there, such as Cloudflare Workers. tokio's clocks and tasks panic there, too, and this crate does not use them
//! even if the feature `tokio` is on.

pub(crate) use web_time::SystemTime;

#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
pub(crate) use tokio::time::Instant;
#[cfg(not(all(feature = "tokio", not(target_arch = "wasm32"))))]
pub(crate) use web_time::Instant;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use web_time::UNIX_EPOCH;

/// Whether a request may wait for what another request does. On wasm it must not: hosts such as Cloudflare Workers
/// let no request wait for the I/O of another one.
pub(crate) const REQUESTS_MAY_AWAIT_EACH_OTHER: bool = cfg!(not(target_arch = "wasm32"));

/// Whether a request may end without a trace. Where the client leaves, such hosts poll a request no more, and do not
/// drop it either.
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
pub(crate) const REQUESTS_MAY_VANISH: bool = cfg!(target_arch = "wasm32");

/// One reading of both clocks. Decisions about time take it as an argument, which makes them pure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timestamp {
    /// For durations: never jumps.
    pub(crate) monotonic: Instant,
    /// For what others see: may jump.
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

/// Time since the Unix epoch; zero for a clock that stands before it.
#[cfg_attr(not(any(feature = "memory-cache", feature = "redis", feature = "_apple")), allow(dead_code))]
pub(crate) fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A number from `low` to `high`, for what shall not happen to everybody at the same time. Not for secrets.
pub(crate) fn spread(low: u64, high: u64) -> u64 {
    // The standard library's own randomness, which is there on every platform. On wasm it only tells the requests of
    // one process apart.
    let random = RandomState::new().build_hasher().finish();
    low + random % (high.saturating_sub(low) + 1)
}

/// In whole milliseconds, for what keeps or sends times as a number.
#[cfg_attr(not(any(feature = "memory-cache", feature = "redis", feature = "split-key")), allow(dead_code))]
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Year, month and day in the Gregorian calendar, from the days since 1970-01-01.
#[cfg(any(feature = "split-key", feature = "testing"))]
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

/// The time was over before the future was done.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Waits for `future` no longer than `limit`: where there is a timer. Elsewhere for as long as it takes.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut end = pin!(None);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        // Only now: what is done at once needs no timer.
        if end.is_none() {
            end.set(timer(limit));
        }
        end.as_mut().as_pin_mut().map_or(Poll::Pending, |end| end.poll(cx).map(|()| Err(Elapsed)))
    })
    .await
}

/// The number of parts in which [`patiently`] waits.
const PARTS: u32 = 10;

/// Waits for `future` no longer than `limit`, as far as this process can tell: time in which it was too busy to
/// look does not count. The limit is waited for in parts, and a timer that is heard late counts as one part.
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

/// Waits this long where there is a timer. Elsewhere for ever.
pub(crate) async fn pause(time: Duration) {
    let _ = within(time, std::future::pending::<()>()).await;
}

/// Makes the future a task in the current span. Where that is not possible, it is dropped.
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

/// Whether there are tasks, which go on when the request goes away for which they were started.
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
pub(crate) fn has_tasks() -> bool {
    #[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
    let has_tasks = tokio::runtime::Handle::try_current().is_ok();
    #[cfg(not(all(feature = "tokio", not(target_arch = "wasm32"))))]
    let has_tasks = false;
    has_tasks
}

/// Work that was started.
#[allow(dead_code, reason = "there is not everywhere a task")]
pub(crate) enum Started<T> {
    Done(T),
    Task(Task<T>),
}

/// Starts the work as a task. Work that ends at once needs none, and where there are no tasks, this future is the work.
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
pub(crate) async fn start<F>(mut work: Pin<Box<F>>) -> Started<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    if !has_tasks() {
        return Started::Done(work.await);
    }
    // The first poll leaves the caller its share of tokio's time.
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

/// The task was stopped, which only a runtime does that shuts down.
#[cfg_attr(not(feature = "_apple"), allow(dead_code))]
#[derive(Debug)]
pub(crate) struct Stopped;

/// A task. Dropping this leaves it alone.
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

/// No task: there is none without tokio.
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

/// Adds to an instant. A century is as good as any longer time, and does not overflow.
pub(crate) fn later(now: Instant, duration: Duration) -> Instant {
    now + duration.min(Duration::from_secs(100 * 365 * 24 * 60 * 60))
}

/// Locks, poisoned or not: what this crate keeps behind a mutex is whole at every point where code can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A deadline that a state machine holds.
pub(crate) type Timer = BoxFuture<'static, ()>;

/// Ends after `limit`. `None` where no clock runs that could end it.
pub(crate) fn boxed_timer(limit: Duration) -> Option<Timer> {
    timer(limit).map(|timer| Box::pin(timer) as Timer)
}

/// Heard even when the future beside it has used up its share of tokio's time.
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
