//! Bodies on their way through the gateway.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::BoxError;
use crate::runtime::{Instant, Timer, boxed_timer, lock};
use crate::split_key::gateway::rejection::GatewayRejection;

/// The last sign of life of an upload: its start, or its last piece.
#[derive(Clone)]
pub(super) struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn note(&self) {
        *lock(&self.0) = Instant::now();
    }

    pub(super) fn elapsed(&self) -> Duration {
        lock(&self.0).elapsed()
    }
}

pin_project! {
    /// A body on its way through the gateway. It passes data on as they come, without a copy, and no trailers, which
    /// would be headers without a list. It fails if there are too many bytes, or if the sender is silent for too long.
    pub struct PassedBody<B> {
        #[pin]
        body: B,
        // As the sender announced it, so that the receiver gets a `Content-Length` where we got one.
        length: SizeHint,
        left: u64,
        idle: Duration,
        on_silence: GatewayRejection,
        // In the place of the sender's own error.
        on_failure: Option<GatewayRejection>,
        waiting_since: Option<Instant>,
        timer: Option<Timer>,
        progress: Option<Progress>,
    }
}

impl<B: Body> PassedBody<B> {
    /// A client's body: of at most `limit` bytes, with at most `idle` between two pieces. Silence is counted only while
    /// somebody waits for the body, and not without a tokio runtime.
    ///
    /// Every error of the new body is a [`GatewayRejection`]: [`BodyTooLarge`](GatewayRejection::BodyTooLarge),
    /// [`RequestTimeout`](GatewayRejection::RequestTimeout), or [`BrokenBody`](GatewayRejection::BrokenBody) for each error
    /// of the client's body.
    pub fn request(body: B, limit: u64, idle: Duration) -> Self {
        let on_failure = Some(GatewayRejection::BrokenBody);
        Self { on_failure, ..Self::new(body, limit, idle, GatewayRejection::RequestTimeout) }
    }

    pub(super) fn with_progress(mut self, progress: &Progress) -> Self {
        self.progress = Some(progress.clone());
        self
    }

    pub(super) fn response(body: B, idle: Duration) -> Self {
        Self::new(body, u64::MAX, idle, GatewayRejection::ProviderTimeout)
    }

    fn new(body: B, left: u64, idle: Duration, on_silence: GatewayRejection) -> Self {
        let length = body.size_hint();
        Self {
            body,
            length,
            left,
            idle,
            on_silence,
            on_failure: None,
            waiting_since: None,
            timer: None,
            progress: None,
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> Body for PassedBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        match this.body.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                *this.waiting_since = None;
                if let Some(progress) = this.progress {
                    progress.note();
                }
                let Ok(data) = frame.into_data() else {
                    return Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new()))));
                };
                match this.left.checked_sub(data.len() as u64) {
                    Some(left) => *this.left = left,
                    None => return Poll::Ready(Some(Err(GatewayRejection::BodyTooLarge.into()))),
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Poll::Ready(Some(Err(error))) => {
                let error = error.into();
                let Some(rejection) = *this.on_failure else { return Poll::Ready(Some(Err(error))) };
                tracing::debug!(error = &*error, "the client's body is malformed or broke off");
                Poll::Ready(Some(Err(rejection.into())))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let silent = this.waiting_since.get_or_insert_with(Instant::now).elapsed();
                let mut left = this.idle.saturating_sub(silent);
                // One timer serves many pieces: where it ends early, the next one waits for the rest.
                loop {
                    if left.is_zero() {
                        return Poll::Ready(Some(Err((*this.on_silence).into())));
                    }
                    if this.timer.is_none() {
                        *this.timer = boxed_timer(left);
                    }
                    let Some(timer) = this.timer else { return Poll::Pending };
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    *this.timer = None;
                    let since = this.waiting_since.get_or_insert_with(Instant::now);
                    left = this.idle.saturating_sub(since.elapsed());
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
    }
}

impl<B> std::fmt::Debug for PassedBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PassedBody").field("idle", &self.idle).finish_non_exhaustive()
    }
}
