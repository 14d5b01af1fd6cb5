//! The response future.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, request};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{gate::body::ResponseBody, layer::Gate};

pin_project! {
    /// The response future of [`DeviceCheck`](crate::DeviceCheck).
    ///
    /// Dropping it disturbs no other request, even if both wait for the same check. The last one to be
    /// dropped ends the check.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        slow: Slow<S, B, Gate>,
    }
}

impl<S: Service<Request<B>>, B> ResponseFuture<S, B> {
    pub(crate) fn start(inner: &mut S, gate: &Arc<Gate>, request: Request<B>) -> Self
    where
        S: Clone,
    {
        Self { slow: Slow::start(inner, gate, request) }
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().slow.poll(cx)
    }
}

/// Decides about requests, at once or after a while.
pub(crate) trait Decide {
    /// What is to be found out about a request.
    type Inquiry;
    type Decision;

    /// Decides at once if that is possible. It may take from the request and put into it.
    fn admit(&self, head: &mut request::Parts) -> Admission<Self::Inquiry>;

    /// Decides when everything is found out.
    fn resolve(self: Arc<Self>, inquiry: Self::Inquiry) -> BoxFuture<'static, Self::Decision>;

    /// Carries a decision out on the request that it is about. Returns the response to a request that shall not
    /// reach the inner service.
    fn conclude(&self, decision: Self::Decision, head: &mut request::Parts) -> Option<Response<Bytes>>;
}

/// What can be done with a request at once.
pub(crate) enum Admission<I> {
    Admitted,
    Rejected(Response<Bytes>),
    Unknown(I),
}

pin_project! {
    /// From a request to the inner service, by a decision that may take time.
    #[project = SlowProj]
    pub(crate) enum Slow<S, B, G>
    where
        S: Service<Request<B>>,
        G: Decide,
    {
        /// Waits for the decision. Only that is boxed: the request and the inner service wait beside it, so
        /// that nothing is demanded of their types.
        Resolving { decision: BoxFuture<'static, G::Decision>, gate: Arc<G>, waiting: Option<Waiting<S, B>> },
        /// Admitted; the inner service becomes ready.
        Readying { waiting: Option<Waiting<S, B>> },
        Forwarding { #[pin] future: S::Future },
        Rejected { response: Option<Response<Bytes>> },
    }
}

/// An unready service and the request that it may get.
pub(crate) struct Waiting<S, B> {
    inner: S,
    head: request::Parts,
    body: B,
}

impl<S: Service<Request<B>>, B, G: Decide> Slow<S, B, G> {
    /// Starts with a request. `inner` was polled ready.
    ///
    /// Its readiness may hold what others wait for, such as a permit of a concurrency limit. A request that
    /// does not call it now gives that back; one that may call it later asks again then.
    pub(crate) fn start(inner: &mut S, gate: &Arc<G>, request: Request<B>) -> Self
    where
        S: Clone,
    {
        let (mut head, body) = request.into_parts();
        match gate.admit(&mut head) {
            Admission::Admitted => Self::Forwarding { future: inner.call(Request::from_parts(head, body)) },
            Admission::Rejected(response) => {
                *inner = inner.clone();
                Self::Rejected { response: Some(response) }
            }
            Admission::Unknown(inquiry) => {
                *inner = inner.clone();
                let waiting = Some(Waiting { inner: inner.clone(), head, body });
                let decision = Arc::clone(gate).resolve(inquiry);
                Self::Resolving { decision, gate: Arc::clone(gate), waiting }
            }
        }
    }

    /// The name of the state, for `Debug`.
    pub(crate) const fn state(&self) -> &'static str {
        match self {
            Self::Resolving { .. } => "Resolving",
            Self::Readying { .. } => "Readying",
            Self::Forwarding { .. } => "Forwarding",
            Self::Rejected { .. } => "Rejected",
        }
    }
}

impl<S, B, G, ResBody> Future for Slow<S, B, G>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    G: Decide,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let next = match self.as_mut().project() {
                SlowProj::Resolving { decision, gate, waiting } => {
                    let decision = ready!(decision.as_mut().poll(cx));
                    match waiting.take() {
                        Some(mut request) => match gate.conclude(decision, &mut request.head) {
                            None => Self::Readying { waiting: Some(request) },
                            Some(response) => Self::Rejected { response: Some(response) },
                        },
                        None => Self::Rejected { response: None },
                    }
                }
                SlowProj::Readying { waiting } => {
                    if let Some(request) = waiting {
                        ready!(request.inner.poll_ready(cx))?;
                    }
                    match waiting.take() {
                        Some(Waiting { mut inner, head, body }) => {
                            Self::Forwarding { future: inner.call(Request::from_parts(head, body)) }
                        }
                        None => Self::Rejected { response: None },
                    }
                }
                SlowProj::Forwarding { future } => {
                    let response = ready!(future.poll(cx))?;
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
                #[allow(clippy::expect_used, reason = "a future's own contract: no input leads here")]
                SlowProj::Rejected { response } => {
                    let response = response.take().expect("polled after completion");
                    return Poll::Ready(Ok(response.map(ResponseBody::rejection)));
                }
            };
            self.set(next);
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for ResponseFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("state", &self.slow.state()).finish_non_exhaustive()
    }
}
