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

use crate::{body::ResponseBody, layer::Gate, pipeline::Decision};

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
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B>
    where
        S: Service<Request<B>>,
    {
        /// Waits for the decision. Only the check is boxed: the request and the inner service wait beside
        /// it, so that nothing is demanded of their types.
        Resolving { decision: BoxFuture<'static, Decision>, gate: Arc<Gate>, waiting: Option<Waiting<S, B>> },
        /// Admitted; the inner service becomes ready.
        Readying { waiting: Option<Waiting<S, B>> },
        Forwarding { #[pin] future: S::Future },
        Rejected { response: Option<Response<Bytes>> },
    }
}

/// An unready service and the request that it may get.
struct Waiting<S, B> {
    inner: S,
    head: request::Parts,
    body: B,
}

impl<S: Service<Request<B>>, B> ResponseFuture<S, B> {
    pub(crate) const fn forwarding(future: S::Future) -> Self {
        Self { state: State::Forwarding { future } }
    }

    pub(crate) const fn rejected(response: Response<Bytes>) -> Self {
        Self { state: State::Rejected { response: Some(response) } }
    }

    pub(crate) fn resolving(
        decision: BoxFuture<'static, Decision>,
        gate: Arc<Gate>,
        inner: S,
        head: request::Parts,
        body: B,
    ) -> Self {
        let waiting = Some(Waiting { inner, head, body });
        Self { state: State::Resolving { decision, gate, waiting } }
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Resolving { decision, gate, waiting } => {
                    let decision = ready!(decision.as_mut().poll(cx));
                    match waiting.take() {
                        Some(mut request) => match gate.conclude(decision, &mut request.head) {
                            None => State::Readying { waiting: Some(request) },
                            Some(response) => State::Rejected { response: Some(response) },
                        },
                        None => State::Rejected { response: None },
                    }
                }
                StateProj::Readying { waiting } => {
                    if let Some(request) = waiting {
                        ready!(request.inner.poll_ready(cx))?;
                    }
                    match waiting.take() {
                        Some(Waiting { mut inner, head, body }) => {
                            State::Forwarding { future: inner.call(Request::from_parts(head, body)) }
                        }
                        None => State::Rejected { response: None },
                    }
                }
                StateProj::Forwarding { future } => {
                    let response = ready!(future.poll(cx))?;
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
                #[allow(clippy::expect_used, reason = "a future's own contract: no input leads here")]
                StateProj::Rejected { response } => {
                    let response = response.take().expect("polled after completion");
                    return Poll::Ready(Ok(response.map(ResponseBody::rejection)));
                }
            };
            state.set(next);
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for ResponseFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Resolving { .. } => "Resolving",
            State::Readying { .. } => "Readying",
            State::Forwarding { .. } => "Forwarding",
            State::Rejected { .. } => "Rejected",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}
