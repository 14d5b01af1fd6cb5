//! A service that insists on being polled ready before it is called.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tower_layer::Layer;
use tower_service::Service;

/// A service that passes everything on to `S`, and panics when it is called without having been polled ready.
///
/// tower demands that the very service that was polled ready is the one that is called, once per time it was
/// ready. A middleware that clones its inner service into a future, and calls the clone, works in nearly
/// every test and then breaks with a `Buffer`, a `ConcurrencyLimit` or a `RateLimit` inside. Put the probe
/// there to find out: a clone of it is never ready, whatever the original is.
///
/// ```
/// use std::convert::Infallible;
/// use tower::{Service, ServiceExt, service_fn};
/// use tower_devicecheck::testing::readiness::ReadinessProbe;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Infallible> {
/// let probe = ReadinessProbe::new(service_fn(async |n: u32| Ok::<_, Infallible>(n + 1)));
///
/// // A layer of your own goes around the probe here.
/// let mut service = probe.clone();
///
/// assert_eq!(service.ready().await?.call(1).await?, 2);
/// assert_eq!(probe.calls(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ReadinessProbe<S> {
    inner: S,
    ready: bool,
    calls: Arc<AtomicUsize>,
}

impl<S> ReadinessProbe<S> {
    /// Puts the probe around `inner`.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self::counting(inner, Arc::default())
    }

    const fn counting(inner: S, calls: Arc<AtomicUsize>) -> Self {
        Self { inner, ready: false, calls }
    }

    /// How often this probe and its clones were called.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }
}

/// The clone counts its calls with the original, and is not ready.
impl<S: Clone> Clone for ReadinessProbe<S> {
    fn clone(&self) -> Self {
        Self::counting(self.inner.clone(), Arc::clone(&self.calls))
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

    /// # Panics
    ///
    /// If this very service was not polled ready since it was made, cloned or last called.
    #[track_caller]
    fn call(&mut self, request: Request) -> S::Future {
        assert!(self.ready, "a service was called that had not been polled ready");
        self.ready = false;
        self.calls.fetch_add(1, Relaxed);
        self.inner.call(request)
    }
}

/// Puts a [`ReadinessProbe`] around each service; all of them count together.
#[derive(Clone, Debug, Default)]
pub struct ReadinessProbeLayer {
    calls: Arc<AtomicUsize>,
}

impl ReadinessProbeLayer {
    /// A layer whose probes have not been called.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How often the probes of this layer were called.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }
}

impl<S> Layer<S> for ReadinessProbeLayer {
    type Service = ReadinessProbe<S>;

    fn layer(&self, inner: S) -> ReadinessProbe<S> {
        ReadinessProbe::counting(inner, Arc::clone(&self.calls))
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, panic::AssertUnwindSafe};

    use tower::{ServiceExt, service_fn};

    use super::*;

    #[tokio::test]
    async fn only_the_service_that_was_polled_ready_may_be_called() {
        let layer = ReadinessProbeLayer::new();
        let mut probe = layer.layer(service_fn(async |()| Ok::<_, Infallible>(())));
        let panics = |probe: &mut ReadinessProbe<_>| {
            std::panic::catch_unwind(AssertUnwindSafe(|| drop(probe.call(())))).is_err()
        };

        assert!(panics(&mut probe), "never polled");
        probe.ready().await.unwrap();
        assert!(panics(&mut probe.clone()), "a clone");
        probe.call(()).await.unwrap();
        assert!(panics(&mut probe), "a second call");
        assert_eq!((probe.calls(), layer.calls()), (1, 1));
    }
}
