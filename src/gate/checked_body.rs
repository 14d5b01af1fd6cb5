//! A request body whose digest the head has promised, checked while it passes.

use std::{
    error::Error,
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use sha2::{Digest, Sha256};

/// The mark of a request whose body must have this SHA-256.
#[derive(Clone, Copy)]
pub(super) struct PromisedDigest(pub(super) [u8; 32]);

pin_project! {
    /// A body that ends in an error if its SHA-256 is another one. It passes each chunk only when more bytes have come,
    /// so that nobody has the whole body before the check.
    pub(super) struct CheckedBody<B> {
        #[pin]
        body: B,
        promised: PromisedDigest,
        hash: Sha256,
        held: Option<Bytes>,
        end: End,
    }
}

enum End {
    NotReached,
    /// The digest is right, and these may follow the chunk that is held.
    Right(Option<HeaderMap>),
    Over,
}

impl<B> CheckedBody<B> {
    pub(super) fn new(body: B, promised: PromisedDigest) -> Self {
        Self { body, promised, hash: Sha256::new(), held: None, end: End::NotReached }
    }
}

impl<B: Body<Data = Bytes>> Body for CheckedBody<B> {
    type Data = Bytes;
    type Error = GateBodyError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GateBodyError<B::Error>>>> {
        let mut this = self.project();
        while matches!(this.end, End::NotReached) {
            let trailers = match ready!(this.body.as_mut().poll_frame(cx)) {
                Some(Err(error)) => {
                    *this.end = End::Over;
                    return Poll::Ready(Some(Err(GateBodyError::Broken(error))));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.hash.update(&data);
                        // An empty chunk may be the end of the bytes, so it frees none. It passes itself, as does one
                        // in place of the first chunk: a caller that gets nothing may give other tasks a turn.
                        let before =
                            if data.is_empty() { data } else { this.held.replace(data).unwrap_or_default() };
                        return Poll::Ready(Some(Ok(Frame::data(before))));
                    }
                    Err(frame) => frame.into_trailers().ok(),
                },
                None => None,
            };
            if this.hash.finalize_reset()[..] != this.promised.0 {
                *this.end = End::Over;
                return Poll::Ready(Some(Err(GateBodyError::OtherDigest)));
            }
            *this.end = End::Right(trailers);
        }
        let End::Right(trailers) = this.end else { return Poll::Ready(None) };
        if let Some(data) = this.held.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = mem::take(trailers);
        *this.end = End::Over;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.end {
            End::NotReached => false,
            End::Right(trailers) => self.held.is_none() && trailers.is_none(),
            End::Over => true,
        }
    }

    /// With an exact length, a proxy would send only the bytes, and not see the error that may follow.
    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

/// The error of a [`GateBody`](crate::GateBody).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GateBodyError<E> {
    /// The error of the body that the gate got, unchanged.
    Broken(E),
    /// The bytes are not those that the head of the request promised. Whatever the inner service has read of the body
    /// must not count.
    OtherDigest,
}

impl<E: fmt::Display> fmt::Display for GateBodyError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => error.fmt(f),
            Self::OtherDigest => f.write_str("the body has another digest than its head promised"),
        }
    }
}

// Not only for errors that are `Error`: a `BoxError` is none.
impl<E: fmt::Debug + fmt::Display> Error for GateBodyError<E> {}

impl<B> fmt::Debug for CheckedBody<B> {
    // Omits the bytes, which may hold the client's secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckedBody(..)")
    }
}
