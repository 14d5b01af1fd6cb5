//! The response future: from the request through a decision, which may take time, to the inner service.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, request};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::gate::gate_body::{AfterBody, ReadBodies, TakesBody};
use crate::gate::{body::ResponseBody, error::VerifyError, headers::append};

/// Decides which requests reach an inner service, immediately or later. Other crates cannot implement this trait.
#[doc(hidden)]
#[allow(unnameable_types, reason = "sealed")]
pub trait Decide: Sized {
    type Mode;
    type Answer;

    /// Starts to decide about a request. May change the head of the request.
    fn admit(self: &Arc<Self>, head: &mut request::Parts) -> Progress<Self>;

    /// Continues with an answer.
    fn answered(answer: Self::Answer, head: &mut request::Parts) -> Progress<Self>;
}

/// The next step for a request.
#[doc(hidden)]
#[allow(
    missing_debug_implementations,
    unnameable_types,
    clippy::exhaustive_enums,
    reason = "private in all but name"
)]
pub enum Progress<D: Decide> {
    /// Call the inner service, and append these headers to its response.
    Forward(Option<Box<HeaderMap>>),
    /// Answer without the inner service.
    Respond(Box<Response<Bytes>>),
    /// Wait for an answer.
    Wait(BoxFuture<'static, D::Answer>),
    /// Read the body, and make an answer from its digest.
    Read(ReadBodies, AfterBody<D::Answer>),
}

impl<D: Decide> Progress<D> {
    /// The same for another decider with the same answers.
    pub(super) fn of_same_answer<E: Decide<Answer = D::Answer>>(self) -> Progress<E> {
        match self {
            Self::Forward(headers) => Progress::Forward(headers),
            Self::Respond(response) => Progress::Respond(response),
            Self::Wait(answer) => Progress::Wait(answer),
            Self::Read(bounds, then) => Progress::Read(bounds, then),
        }
    }
}

pin_project! {
    /// The response future of [`DeviceCheck`](crate::DeviceCheck) and the other services of this crate.
    ///
    /// Dropping the future does not disturb other requests, even if they wait for the same check. Dropping the last of
    /// them ends the check.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, B, D>
    where
        D: Decide,
        D::Mode: TakesBody<B>,
        S: Service<Request<<D::Mode as TakesBody<B>>::Body>>,
    {
        #[pin]
        state: State<S, B, D, D::Mode>,
    }
}

pin_project! {
    // The request and the inner service wait beside the boxed answer, so that their types need no further bounds.
    #[project = StateProj]
    #[project_replace = StateOwned]
    enum State<S, B, D, M>
    where
        D: Decide,
        M: TakesBody<B>,
        S: Service<Request<M::Body>>,
    {
        Forwarding { #[pin] future: S::Future, headers: Option<Box<HeaderMap>> },
        Waiting { answer: BoxFuture<'static, D::Answer>, request: Held<S, WaitingBody<B, M>> },
        Reading { reading: Box<(M::Reading, AfterBody<D::Answer>)>, request: Held<S, ()> },
        /// The request is admitted and waits for the inner service to become ready.
        Readying { request: Held<S, M::Body>, headers: Option<Box<HeaderMap>> },
        Rejected { response: Box<Response<Bytes>> },
        Done,
    }
}

/// An unready service, and the request that it may get.
struct Held<S, B> {
    inner: S,
    head: request::Parts,
    body: B,
}

enum WaitingBody<B, M: TakesBody<B>> {
    Unread(B),
    Read(M::Body),
}

impl<S, B, D> ResponseFuture<S, B, D>
where
    D: Decide,
    D::Mode: TakesBody<B>,
    S: Service<Request<<D::Mode as TakesBody<B>>::Body>> + Clone,
{
    /// Starts to handle a request. `inner` was polled ready.
    ///
    /// A ready service may hold a shared resource, such as a concurrency permit. If the request does not call it now, a
    /// fresh clone replaces the ready service, which frees the permit. A later call polls for readiness again.
    pub(super) fn start(inner: &mut S, decider: &Arc<D>, request: Request<B>) -> Self {
        let (mut head, body) = request.into_parts();
        match decider.admit(&mut head) {
            Progress::Forward(headers) => {
                let body = D::Mode::pass(body, &mut head);
                let request = Request::from_parts(head, body);
                Self { state: State::Forwarding { future: inner.call(request), headers } }
            }
            progress => {
                *inner = inner.clone();
                let body = WaitingBody::Unread(body);
                Self { state: State::next(progress, Held { inner: inner.clone(), head, body }) }
            }
        }
    }
}

impl<S, B, D, M> State<S, B, D, M>
where
    D: Decide,
    M: TakesBody<B>,
    S: Service<Request<M::Body>>,
{
    fn next(mut progress: Progress<D>, request: Held<S, WaitingBody<B, M>>) -> Self {
        let Held { inner, mut head, mut body } = request;
        loop {
            match progress {
                Progress::Forward(headers) => {
                    let body = match body {
                        WaitingBody::Unread(body) => M::pass(body, &mut head),
                        WaitingBody::Read(body) => body,
                    };
                    return Self::Readying { request: Held { inner, head, body }, headers };
                }
                Progress::Respond(response) => return Self::Rejected { response },
                Progress::Wait(answer) => {
                    return Self::Waiting { answer, request: Held { inner, head, body } };
                }
                Progress::Read(bounds, then) => {
                    body = match body {
                        WaitingBody::Unread(unread) => match M::read(unread, bounds) {
                            Ok(reading) => {
                                let request = Held { inner, head, body: () };
                                return Self::Reading { reading: Box::new((reading, then)), request };
                            }
                            Err(unread) => WaitingBody::Unread(unread),
                        },
                        read @ WaitingBody::Read(_) => read,
                    };
                    let error = "a proof needs the body in a layer that reads none, or needs it twice";
                    let error = VerifyError::misconfigured(error);
                    progress = D::answered(then(Err(error.into())), &mut head);
                }
            }
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "Waiting",
            Self::Reading { .. } => "Reading",
            Self::Readying { .. } => "Readying",
            Self::Forwarding { .. } => "Forwarding",
            Self::Rejected { .. } => "Rejected",
            Self::Done => "Done",
        }
    }
}

impl<S, B, D, ResBody> Future for ResponseFuture<S, B, D>
where
    D: Decide,
    D::Mode: TakesBody<B>,
    S: Service<Request<<D::Mode as TakesBody<B>>::Body>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    #[allow(clippy::panic, reason = "a future's own contract: no input leads here")]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            // Each arm consumes the state once the awaited result is there.
            let next = match state.as_mut().project() {
                StateProj::Waiting { answer, .. } => {
                    let answer = ready!(answer.as_mut().poll(cx));
                    let StateOwned::Waiting { mut request, .. } = state.as_mut().project_replace(State::Done)
                    else {
                        continue;
                    };
                    State::next(D::answered(answer, &mut request.head), request)
                }
                StateProj::Reading { reading, .. } => {
                    let (digest, body) = ready!(D::Mode::poll_read(&mut reading.0, cx));
                    let StateOwned::Reading { reading, request } =
                        state.as_mut().project_replace(State::Done)
                    else {
                        continue;
                    };
                    let Held { inner, mut head, .. } = request;
                    let progress = D::answered(reading.1(digest), &mut head);
                    State::next(progress, Held { inner, head, body: WaitingBody::Read(body) })
                }
                StateProj::Readying { request, .. } => {
                    ready!(request.inner.poll_ready(cx))?;
                    let StateOwned::Readying { request, headers } =
                        state.as_mut().project_replace(State::Done)
                    else {
                        continue;
                    };
                    let Held { mut inner, head, body } = request;
                    State::Forwarding { future: inner.call(Request::from_parts(head, body)), headers }
                }
                StateProj::Forwarding { future, headers } => {
                    let Some(headers) = headers else {
                        let response = ready!(future.poll(cx))?;
                        return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                    };
                    let mut response = ready!(future.poll(cx))?;
                    append(response.headers_mut(), mem::take(headers));
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
                StateProj::Rejected { .. } => match state.as_mut().project_replace(State::Done) {
                    StateOwned::Rejected { response } => {
                        return Poll::Ready(Ok(response.map(ResponseBody::rejection)));
                    }
                    _ => continue,
                },
                StateProj::Done => panic!("polled after completion"),
            };
            state.set(next);
        }
    }
}

impl<S, B, D> fmt::Debug for ResponseFuture<S, B, D>
where
    D: Decide,
    D::Mode: TakesBody<B>,
    S: Service<Request<<D::Mode as TakesBody<B>>::Body>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("state", &self.state.name()).finish_non_exhaustive()
    }
}
