//! Request bodies in layers that read them, for proofs that need a body's digest.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use sha2::{Digest, Sha256};

use crate::gate::{decision::Rejected, rejection::Rejection};
use crate::runtime::{Timer, boxed_timer};

/// Whether a layer reads request bodies: [`HeadOnly`] or [`ReadBodies`]. Not for others to implement.
#[doc(hidden)]
#[allow(unnameable_types, reason = "sealed")]
pub trait BodyMode: Copy + fmt::Debug + Send + Sync + 'static {
    const READS: bool;

    fn bounds(&self) -> ReadBodies;
}

/// A [`BodyMode`]'s treatment of bodies of type `B`.
#[doc(hidden)]
#[allow(unnameable_types, reason = "sealed")]
pub trait TakesBody<B>: Sized {
    /// The body that the inner service gets.
    type Body;
    /// A body that is being read.
    type Reading;

    fn pass(body: B) -> Self::Body;

    /// Begins to read. `Err` where this mode does not.
    fn read(body: B, bounds: ReadBodies) -> Result<Self::Reading, B>;

    /// The digest of a body, or why it is not to be had; and the body as the inner service gets it.
    fn poll_read(reading: &mut Self::Reading, cx: &mut Context<'_>) -> Poll<(BodyDigest, Self::Body)>;
}

/// SHA-256 of a body that arrived whole.
pub(crate) type BodyDigest = Result<[u8; 32], Rejected>;

/// The step after a body was read.
pub(super) type AfterBody<T> = Box<dyn FnOnce(BodyDigest) -> T + Send>;

/// The default: a layer that decides by the head of a request. The inner service gets the body as it is.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit struct, to be named as a type")]
pub struct HeadOnly;

impl BodyMode for HeadOnly {
    const READS: bool = false;

    /// Never reached.
    fn bounds(&self) -> ReadBodies {
        ReadBodies::new()
    }
}

impl<B> TakesBody<B> for HeadOnly {
    type Body = B;
    type Reading = Infallible;

    fn pass(body: B) -> B {
        body
    }

    fn read(body: B, _: ReadBodies) -> Result<Infallible, B> {
        Err(body)
    }

    fn poll_read(reading: &mut Infallible, _: &mut Context<'_>) -> Poll<(BodyDigest, B)> {
        match *reading {}
    }
}

/// A layer that reads the bodies of requests for proofs that need them. The inner service gets a [`GateBody`].
///
/// A body that is read is held in memory whole: at most the [limit](Self::with_limit) for each request.
/// Bodies that no proof asks for pass unread.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct ReadBodies {
    limit: usize,
    deadline: Duration,
}

impl ReadBodies {
    /// Bodies of up to 1 MiB, within 10 seconds.
    pub const fn new() -> Self {
        Self { limit: 1024 * 1024, deadline: Duration::from_secs(10) }
    }

    /// The most bytes of a body that are read, whatever a proof asks for. Default: 1 MiB. A longer body is
    /// [`TooLarge`](Rejection::TooLarge).
    pub const fn with_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// The same bounds for a proof that wants no more than `limit` bytes.
    pub(super) fn within(self, limit: usize) -> Self {
        Self { limit: limit.min(self.limit), ..self }
    }

    /// The time within which a body must have arrived. Default: 10 seconds. A later one is
    /// [`IncompleteBody`](Rejection::IncompleteBody). A stream without end, such as that of a gRPC call, ends so.
    ///
    /// Holds inside of a tokio runtime, with the feature `tokio`, and on `wasm32-unknown-unknown`.
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl Default for ReadBodies {
    fn default() -> Self {
        Self::new()
    }
}

impl BodyMode for ReadBodies {
    const READS: bool = true;

    fn bounds(&self) -> Self {
        *self
    }
}

impl<B: Body<Data = Bytes>> TakesBody<B> for ReadBodies {
    type Body = GateBody<B>;
    type Reading = Reading<B>;

    fn pass(body: B) -> GateBody<B> {
        GateBody { kind: GateBodyKind::AsItCame { body } }
    }

    fn read(body: B, bounds: Self) -> Result<Reading<B>, B> {
        Ok(Reading {
            limit: bounds.limit,
            body: Some(Box::pin(body)),
            bytes: BytesMut::new(),
            frames: 0,
            hash: Sha256::new(),
            end: boxed_timer(bounds.deadline),
        })
    }

    fn poll_read(reading: &mut Reading<B>, cx: &mut Context<'_>) -> Poll<(BodyDigest, GateBody<B>)> {
        reading.poll(cx)
    }
}

/// A body on its way into one buffer: a queue of small chunks would take many times its bytes.
#[allow(missing_debug_implementations, unnameable_types, reason = "hidden inside of the response future")]
pub struct Reading<B: Body> {
    limit: usize,
    body: Option<Pin<Box<B>>>,
    bytes: BytesMut,
    frames: usize,
    hash: Sha256,
    end: Option<Timer>,
}

impl<B: Body<Data = Bytes>> Reading<B> {
    /// More frames than any client sends for a small body: a flood of empty ones.
    const MAX_FRAMES: usize = 1 << 16;
    /// One frame more is allowed for so many bytes: a large body comes in many.
    const BYTES_A_FRAME: usize = 256;
    /// After so many frames without a pause, other tasks get their turn, and the deadline is looked at.
    const FRAMES_A_TURN: usize = 64;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(BodyDigest, GateBody<B>)> {
        let Some(body) = self.body.as_mut() else { return Poll::Pending };
        let (mut over, mut trailers, mut error) = (None, None, None);
        let mut turn = 0;
        let outcome = loop {
            let left = self.limit - self.bytes.len();
            // A body that says that it is too large is not read at all.
            if body.size_hint().lower() > left as u64 {
                break Err(Rejection::TooLarge);
            }
            let polled = if turn < Self::FRAMES_A_TURN {
                body.as_mut().poll_frame(cx)
            } else {
                cx.waker().wake_by_ref();
                Poll::Pending
            };
            turn += 1;
            match polled {
                Poll::Pending => match self.end.as_mut().map(|end| end.as_mut().poll(cx)) {
                    Some(Poll::Ready(())) => break Err(Rejection::IncompleteBody),
                    _ => return Poll::Pending,
                },
                Poll::Ready(None) => break Ok(()),
                Poll::Ready(Some(Err(reason))) => {
                    error = Some(reason);
                    break Err(Rejection::IncompleteBody);
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.frames += 1;
                        let max_frames = Self::MAX_FRAMES + self.bytes.len() / Self::BYTES_A_FRAME;
                        if data.len() > left || self.frames > max_frames {
                            over = Some(data);
                            break Err(Rejection::TooLarge);
                        }
                        self.hash.update(&data);
                        self.bytes.extend_from_slice(&data);
                    }
                    Err(frame) => {
                        trailers = frame.into_trailers().ok();
                        break Ok(());
                    }
                },
            }
        };
        let digest = outcome.map(|()| self.hash.finalize_reset().into()).map_err(Rejected::from);
        let read = Some(self.bytes.split().freeze()).filter(|bytes| !bytes.is_empty());
        let over = over.filter(|bytes| !bytes.is_empty());
        let rest = self.body.take().filter(|_| digest.is_err() && error.is_none());
        Poll::Ready((digest, GateBody { kind: GateBodyKind::Rebuilt { read, over, trailers, error, rest } }))
    }
}

pin_project! {
    /// A request's body behind a layer that [reads bodies](ReadBodies): as it came, or, where a proof needed it,
    /// rebuilt from the bytes that were read, trailers included.
    ///
    /// If the layer only monitors, a body that could not be read whole also reaches the inner service: first
    /// the bytes that were read, then the rest or its error.
    pub struct GateBody<B: Body> {
        #[pin]
        kind: GateBodyKind<B>,
    }
}

pin_project! {
    #[project = GateBodyKindProj]
    enum GateBodyKind<B: Body> {
        AsItCame { #[pin] body: B },
        Rebuilt {
            read: Option<Bytes>,
            // The piece that was too much.
            over: Option<Bytes>,
            trailers: Option<HeaderMap>,
            error: Option<B::Error>,
            rest: Option<Pin<Box<B>>>,
        },
    }
}

impl<B: Body<Data = Bytes>> Body for GateBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            GateBodyKindProj::AsItCame { body } => body.poll_frame(cx),
            GateBodyKindProj::Rebuilt { read, over, trailers, error, rest } => {
                if let Some(data) = read.take().or_else(|| over.take()) {
                    Poll::Ready(Some(Ok(Frame::data(data))))
                } else if let Some(trailers) = trailers.take() {
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                } else if let Some(error) = error.take() {
                    Poll::Ready(Some(Err(error)))
                } else if let Some(rest) = rest {
                    rest.as_mut().poll_frame(cx)
                } else {
                    Poll::Ready(None)
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            GateBodyKind::AsItCame { body } => body.is_end_stream(),
            GateBodyKind::Rebuilt { read, over, trailers, error, rest } => {
                read.is_none()
                    && over.is_none()
                    && trailers.is_none()
                    && error.is_none()
                    && rest.as_ref().is_none_or(|rest| rest.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            GateBodyKind::AsItCame { body } => body.size_hint(),
            GateBodyKind::Rebuilt { read, over, trailers, error, rest } => {
                let read: u64 = [read, over].into_iter().flatten().map(|bytes| bytes.len() as u64).sum();
                let rest = rest.as_ref().map_or_else(|| SizeHint::with_exact(0), |rest| rest.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(read));
                // With an exact length, a proxy would send the bytes alone: without the trailers, or as if no error
                // came after them.
                let more = trailers.is_some() || error.is_some();
                if let (false, Some(upper)) = (more, rest.upper().and_then(|upper| upper.checked_add(read))) {
                    hint.set_upper(upper);
                }
                hint
            }
        }
    }
}

impl<B: Body> fmt::Debug for GateBody<B> {
    // The bytes are the client's own, and may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            GateBodyKind::AsItCame { .. } => f.write_str("AsItCame(..)"),
            GateBodyKind::Rebuilt { read, .. } => f
                .debug_struct("Rebuilt")
                .field("read", &read.as_ref().map_or(0, Bytes::len))
                .finish_non_exhaustive(),
        }
    }
}
