//! Request bodies in layers that read them, for proofs that need a body's digest.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, request};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use sha2::{Digest, Sha256};

use crate::gate::checked_body::{CheckedBody, GateBodyError};
use crate::gate::{decision::Rejected, rejection::Rejection};
use crate::runtime::{Timer, boxed_timer};

/// Whether a layer reads request bodies: [`HeadOnly`] or [`ReadBodies`]. Other crates cannot implement this trait.
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

    fn pass(body: B, head: &mut request::Parts) -> Self::Body;

    /// Starts to read. Returns `Err` if this mode does not read bodies.
    fn read(body: B, bounds: ReadBodies) -> Result<Self::Reading, B>;

    /// Returns the digest of a body, or the reason why there is none, and the body for the inner service.
    fn poll_read(reading: &mut Self::Reading, cx: &mut Context<'_>) -> Poll<(BodyDigest, Self::Body)>;
}

/// The SHA-256 of a body that arrived whole.
pub(crate) type BodyDigest = Result<[u8; 32], Rejected>;

/// The step after a body was read.
pub(super) type AfterBody<T> = Box<dyn FnOnce(BodyDigest) -> T + Send>;

/// The default mode: the layer decides by the head of a request, and the inner service gets the body unchanged.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit struct, to be named as a type")]
pub struct HeadOnly;

impl BodyMode for HeadOnly {
    const READS: bool = false;

    /// Unreachable.
    fn bounds(&self) -> ReadBodies {
        ReadBodies::new()
    }
}

impl<B> TakesBody<B> for HeadOnly {
    type Body = B;
    type Reading = Infallible;

    fn pass(body: B, _: &mut request::Parts) -> B {
        body
    }

    fn read(body: B, _: ReadBodies) -> Result<Infallible, B> {
        Err(body)
    }

    fn poll_read(reading: &mut Infallible, _: &mut Context<'_>) -> Poll<(BodyDigest, B)> {
        match *reading {}
    }
}

/// A mode with bounds: the layer reads the bodies of requests for proofs that need them. The inner service gets a
/// [`GateBody`].
///
/// The layer holds the whole body in memory: at most the [limit](Self::with_limit) for each request. Bodies that no
/// proof needs pass unread.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct ReadBodies {
    limit: usize,
    deadline: Duration,
}

impl ReadBodies {
    /// Makes the default bounds: bodies of up to 1 MiB, within 10 seconds.
    pub const fn new() -> Self {
        Self { limit: 1024 * 1024, deadline: Duration::from_secs(10) }
    }

    /// Sets the most bytes that are read of a body, even if a proof allows more. Default: 1 MiB. A request with a
    /// longer body is rejected as [`TooLarge`](Rejection::TooLarge).
    pub const fn with_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Lowers the limit for a proof that accepts at most `limit` bytes.
    pub(super) fn within(self, limit: usize) -> Self {
        Self { limit: limit.min(self.limit), ..self }
    }

    /// Sets the time within which a body must arrive. Default: 10 seconds. A request whose body takes longer is
    /// rejected as [`IncompleteBody`](Rejection::IncompleteBody). This includes endless streams, such as those of gRPC
    /// calls.
    ///
    /// The deadline applies only inside a tokio runtime, with the feature `tokio`, and on `wasm32-unknown-unknown`.
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

    fn pass(body: B, head: &mut request::Parts) -> GateBody<B> {
        let kind = match head.extensions.remove() {
            Some(promised) => GateBodyKind::Checked { body: CheckedBody::new(body, promised) },
            None => GateBodyKind::AsItCame { body },
        };
        GateBody { kind }
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

/// A body that is read into one buffer. A queue of small chunks would take many times the memory.
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
    /// The most frames of a small body. Only a flood of empty frames has more.
    const MAX_FRAMES: usize = 1 << 16;
    /// The body may have one more frame for each of this many bytes, because a large body arrives in many frames.
    const BYTES_A_FRAME: usize = 256;
    /// After this many frames without a pause, the read yields to other tasks and checks the deadline.
    const FRAMES_A_TURN: usize = 64;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(BodyDigest, GateBody<B>)> {
        let Some(body) = self.body.as_mut() else { return Poll::Pending };
        let (mut over, mut trailers, mut error) = (None, None, None);
        let mut turn = 0;
        let outcome = loop {
            let left = self.limit - self.bytes.len();
            // A body that announces too many bytes is not read at all.
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
    /// The request body that the inner service gets from a layer that [reads bodies](ReadBodies). It is the original
    /// body or, if a proof needed the body, rebuilt from the bytes that were read, trailers included. If the proof admitted
    /// the request by a digest that its head promised, the body is checked while it passes, and ends in the error
    /// [`OtherDigest`](crate::GateBodyError::OtherDigest) if it is another one.
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
        Checked { #[pin] body: CheckedBody<B> },
        Rebuilt {
            read: Option<Bytes>,
            // The chunk that exceeded the limit.
            over: Option<Bytes>,
            trailers: Option<HeaderMap>,
            error: Option<B::Error>,
            rest: Option<Pin<Box<B>>>,
        },
    }
}

impl<B: Body<Data = Bytes>> Body for GateBody<B> {
    type Data = Bytes;
    type Error = GateBodyError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GateBodyError<B::Error>>>> {
        match self.project().kind.project() {
            GateBodyKindProj::AsItCame { body } => body.poll_frame(cx).map_err(GateBodyError::Broken),
            GateBodyKindProj::Checked { body } => body.poll_frame(cx),
            GateBodyKindProj::Rebuilt { read, over, trailers, error, rest } => {
                if let Some(data) = read.take().or_else(|| over.take()) {
                    Poll::Ready(Some(Ok(Frame::data(data))))
                } else if let Some(trailers) = trailers.take() {
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                } else if let Some(error) = error.take() {
                    Poll::Ready(Some(Err(GateBodyError::Broken(error))))
                } else if let Some(rest) = rest {
                    rest.as_mut().poll_frame(cx).map_err(GateBodyError::Broken)
                } else {
                    Poll::Ready(None)
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            GateBodyKind::AsItCame { body } => body.is_end_stream(),
            GateBodyKind::Checked { body } => body.is_end_stream(),
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
            GateBodyKind::Checked { body } => body.size_hint(),
            GateBodyKind::Rebuilt { read, over, trailers, error, rest } => {
                let read: u64 = [read, over].into_iter().flatten().map(|bytes| bytes.len() as u64).sum();
                let rest = rest.as_ref().map_or_else(|| SizeHint::with_exact(0), |rest| rest.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(read));
                // With an exact length, a proxy would send only the bytes: it would drop the trailers, or hide the
                // error that follows.
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
    // Omits the bytes, which may hold the client's secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            GateBodyKind::AsItCame { .. } => f.write_str("AsItCame(..)"),
            GateBodyKind::Checked { .. } => f.write_str("Checked(..)"),
            GateBodyKind::Rebuilt { read, .. } => f
                .debug_struct("Rebuilt")
                .field("read", &read.as_ref().map_or(0, Bytes::len))
                .finish_non_exhaustive(),
        }
    }
}
