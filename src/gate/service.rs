//! The service around the inner one.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use crate::gate::future::{Decide, ResponseFuture};
use crate::gate::{body::ResponseBody, gate_body::TakesBody};

/// A service around `S` that forwards only the requests that `D` admits, such as [`DeviceCheck`](crate::DeviceCheck).
///
/// See the [crate's docs](crate) for an example. Errors are those of `S`, unchanged.
#[must_use]
pub struct Gated<S, D> {
    inner: S,
    decider: Arc<D>,
}

impl<S, D> Gated<S, D> {
    pub(crate) const fn new(inner: S, decider: Arc<D>) -> Self {
        Self { inner, decider }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, mutably.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Clone, D> Clone for Gated<S, D> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), decider: Arc::clone(&self.decider) }
    }
}

impl<S: fmt::Debug, D: fmt::Debug> fmt::Debug for Gated<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gated").field("inner", &self.inner).field("decider", &self.decider).finish()
    }
}

impl<S, D, B, ResBody> Service<Request<B>> for Gated<S, D>
where
    D: Decide,
    D::Mode: TakesBody<B>,
    S: Service<Request<<D::Mode as TakesBody<B>>::Body>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, D>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ResponseFuture::start(&mut self.inner, &self.decider, request)
    }
}
