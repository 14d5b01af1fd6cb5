//! Clients that leave: a request is dropped at every await that it has, on every path through the crate.
//!
//! Each path is driven by hand. A step polls the request, if it was woken, or lets all other tasks run once. The request
//! is dropped before step 0, 1, 2 and so on, in a new world each time, until it completes by itself. The plug-ins suspend
//! their caller before they act and after it, so that a drop also meets a store that has written and not yet answered.
//!
//! The follow-up comes twice: at once, beside the work that goes on in the background, and when all is quiet.

#[cfg(feature = "app-attest")]
mod app_attest;
mod asking;
mod companions;
#[cfg(feature = "gateway")]
mod gateway;
mod sessions;
mod single_use;
mod turn;
mod world;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use tokio::{task::yield_now, time::Instant};
use tower::{Service, ServiceExt};
use tower_devicecheck::{
    BoxError, Owner,
    cache::{CacheError, CachedVerdict, MayAsk, VerdictCache, VerdictKey},
    replay::{Claim, Claimed, GuardError, ReplayGuard, ReplayKey},
};

/// More steps than any request takes.
const TOO_MANY: usize = 300;

/// The waker of a request, as its server sees it.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Drives a future for so many steps, and drops it. Returns its output if it was done before.
async fn drop_after<F: Future>(future: F, steps: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut may_poll = true;
    for _ in 0..steps {
        if may_poll && woken.0.swap(false, Ordering::SeqCst) {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(output);
            }
            may_poll = false;
        } else {
            yield_now().await;
            may_poll = true;
        }
    }
    None
}

/// The moment at which a client leaves, and whether the world rests before the follow-up.
#[derive(Clone, Copy, Debug)]
struct Leave {
    #[allow(dead_code, reason = "the message of an assertion")]
    path: &'static str,
    step: usize,
    rests: bool,
}

impl Leave {
    /// Drives the request up to this moment.
    async fn of<F: Future>(self, request: F) -> Option<F::Output> {
        let output = drop_after(request, self.step).await;
        if self.rests {
            rest().await;
        }
        output
    }
}

/// Tries one drop after the other. `attempt` makes a world, drops the request there, checks what is left, and tells
/// whether the request was done before. `least` is the number of steps of a request that is not dropped, at least.
async fn explore(path: &'static str, least: usize, attempt: impl AsyncFn(Leave) -> bool) {
    explore_for(Duration::ZERO, path, least, attempt).await;
}

/// The same for an attempt in which the clock may move so far. A clock that moves farther has woken somebody whom nobody
/// else would have woken.
async fn explore_for(time: Duration, path: &'static str, least: usize, attempt: impl AsyncFn(Leave) -> bool) {
    for rests in [true, false] {
        let mut step = 0;
        loop {
            let started = Instant::now();
            let is_done = attempt(Leave { path, step, rests }).await;
            assert!(started.elapsed() <= time, "{path}: a wake-up is lost at step {step}");
            if is_done {
                break;
            }
            step += 1;
            assert!(step < TOO_MANY, "{path}: the request hangs");
        }
        assert!(step >= least, "{path}: only {step} drops");
    }
}

/// Lets all work in the background end that can end without the clock.
async fn rest() {
    for _ in 0..60 {
        yield_now().await;
    }
}

/// Suspends its caller before it acts, and after.
async fn slowly<F: Future>(act: F) -> F::Output {
    yield_now().await;
    let output = act.await;
    yield_now().await;
    output
}

/// A plug-in whose every step suspends its caller, twice.
#[derive(Clone, Debug)]
struct Slow<T>(T);

impl<C: VerdictCache> VerdictCache for Slow<C> {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        self.0.peek(key)
    }

    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        slowly(self.0.get(key)).await
    }

    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        slowly(self.0.put(key, verdict)).await
    }

    /// Under a lease, which lapses by itself.
    async fn lease(&self, _: &VerdictKey<'_>) -> MayAsk {
        slowly(async { MayAsk::UnderLease(Owner::random()) }).await
    }

    async fn release(&self, _: &VerdictKey<'_>, _: Owner) {
        slowly(async {}).await;
    }
}

impl<G: ReplayGuard> ReplayGuard for Slow<G> {
    async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        slowly(self.0.reserve(key, claim)).await
    }

    async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        slowly(self.0.confirm(key, claim)).await
    }

    async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        slowly(self.0.release(key, claim)).await
    }

    async fn withdraw(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        slowly(self.0.withdraw(key, claim)).await
    }

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        self.0.abandon(key, claim);
    }
}

/// A service that is never ready at once, and answers late.
#[derive(Debug)]
struct SlowService<S> {
    inner: S,
    is_ready: bool,
}

impl<S> SlowService<S> {
    fn new(inner: S) -> Self {
        Self { inner, is_ready: false }
    }
}

impl<S: Clone> Clone for SlowService<S> {
    // Readiness belongs to one instance.
    fn clone(&self) -> Self {
        Self::new(self.inner.clone())
    }
}

impl<S, Q> Service<Request<Q>> for SlowService<S>
where
    S: Service<Request<Q>, Response: Send, Error: Send, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = futures::future::BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if !std::mem::replace(&mut self.is_ready, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called before it was ready");
        Box::pin(slowly(self.inner.call(request)))
    }
}

/// A transport to Apple that suspends its caller before the request leaves, and after the answer has come.
fn slow_transport<T>(
    transport: T,
) -> impl Service<Request<Bytes>, Response = Response<Bytes>, Error = BoxError, Future: Send> + Clone + Send + Sync
where
    T: Service<Request<Bytes>, Response = Response<Bytes>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    tower::service_fn(move |request| slowly(transport.clone().oneshot(request)))
}
