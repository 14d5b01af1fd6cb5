//! A service that insists on being polled ready before it is called.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tower::{Service, ServiceExt, service_fn};

/// Passes everything on to `S`, and panics when it is called without having been polled ready.
///
/// tower demands that the very service that was polled ready is the one that is called, once per time it was
/// ready. A middleware that clones its inner service into a future, and calls the clone, works in nearly
/// every test and then breaks with a `Buffer`, a `ConcurrencyLimit` or a `RateLimit` inside. A clone of this
/// probe is never ready, whatever the original is. Clones count their calls together.
#[derive(Debug)]
pub(crate) struct ReadinessProbe<S> {
    inner: S,
    ready: bool,
    calls: Arc<AtomicUsize>,
}

impl<S> ReadinessProbe<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, ready: false, calls: Arc::default() }
    }
}

impl<S: Clone> Clone for ReadinessProbe<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), ready: false, calls: Arc::clone(&self.calls) }
    }
}

impl<S, Request> Service<Request> for ReadinessProbe<S>
where
    S: Service<Request>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let result = ready!(self.inner.poll_ready(cx));
        self.ready = result.is_ok();
        Poll::Ready(result)
    }

    #[track_caller]
    fn call(&mut self, request: Request) -> S::Future {
        assert!(self.ready, "a service was called that had not been polled ready");
        self.ready = false;
        self.calls.fetch_add(1, Relaxed);
        self.inner.call(request)
    }
}

#[tokio::test]
async fn only_the_service_that_was_polled_ready_may_be_called() {
    let mut probe = ReadinessProbe::new(service_fn(async |()| Ok::<_, Infallible>(())));
    let calls = Arc::clone(&probe.calls);
    let panics =
        |probe: &mut ReadinessProbe<_>| catch_unwind(AssertUnwindSafe(|| drop(probe.call(())))).is_err();

    assert!(panics(&mut probe), "never polled");
    probe.ready().await.unwrap();
    assert!(panics(&mut probe.clone()), "a clone");
    probe.call(()).await.unwrap();
    assert!(panics(&mut probe), "a second call");
    assert_eq!(calls.load(Relaxed), 1);
}
