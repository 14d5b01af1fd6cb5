//! The response future.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{gate::body::ResponseBody, gate::future::Slow, split_key::layer::Keys};

pin_project! {
    /// The response future of [`SplitKey`](crate::split_key::SplitKey).
    ///
    /// Dropping it ends the look-up of the key.
    #[must_use = "futures do nothing unless polled"]
    pub struct SplitKeyFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        slow: Slow<S, B, Keys>,
    }
}

impl<S: Service<Request<B>>, B> SplitKeyFuture<S, B> {
    pub(super) fn start(inner: &mut S, keys: &Arc<Keys>, request: Request<B>) -> Self
    where
        S: Clone,
    {
        Self { slow: Slow::start(inner, keys, request) }
    }
}

impl<S, B, ResBody> Future for SplitKeyFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().slow.poll(cx)
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for SplitKeyFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitKeyFuture").field("state", &self.slow.state()).finish_non_exhaustive()
    }
}
