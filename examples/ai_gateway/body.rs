//! The client's body on its way to the provider.

use std::{
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::HeaderMap,
};
use http_body::{Frame, SizeHint};
use http_body_util::Limited;
use tower_devicecheck::BoxError;
use tower_http::timeout::TimeoutBody;

/// Passes data on as it comes, and no trailers, which would be headers without a list; fails when there are too many bytes, or when the client is silent for too
/// long.
pub(crate) struct Upload {
    // reqwest wants bodies that are `Sync`. Nobody ever waits for the lock.
    body: Mutex<Pin<Box<TimeoutBody<Limited<Body>>>>>,
    length: SizeHint,
    empty: bool,
}

impl Upload {
    pub(crate) fn new(body: Body, limit: usize, idle: Duration) -> Self {
        let (length, empty) = (body.size_hint(), body.is_end_stream());
        let body = Mutex::new(Box::pin(TimeoutBody::new(idle, Limited::new(body, limit))));
        Self { body, length, empty }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.get_mut().body.get_mut().unwrap_or_else(PoisonError::into_inner);
        body.as_mut().poll_frame(cx).map_ok(without_trailers)
    }

    fn is_end_stream(&self) -> bool {
        self.empty
    }

    /// As the client announced it, so that the provider gets a `Content-Length` where we got one.
    fn size_hint(&self) -> SizeHint {
        self.length
    }
}

/// The data of a frame. Trailers become empty.
pub(crate) fn without_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    frame.into_data().map_or_else(|_| Frame::trailers(HeaderMap::new()), Frame::data)
}
