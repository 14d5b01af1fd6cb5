//! The body of a provider's answer: it ends with its key, and a silent stream of events is kept alive.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::BoxError;
use crate::runtime::{Instant, Timer, boxed_timer};
use crate::split_key::gateway::rejection::GatewayRejection;
use crate::split_key::revocations::{KeyUse, Revoked};

/// The silence after which a comment is sent. Proxies and mobile networks drop connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A line that begins with a colon is a comment in `text/event-stream`: clients skip it.
const COMMENT: &[u8] = b": keep-alive\n\n";

pin_project! {
    /// The body of a provider's answer. It fails if its key is revoked or expires.
    pub struct AnswerBody<B> {
        #[pin]
        body: B,
        key_use: Option<KeyUse>,
        // Made when the body first has to wait: most answers come in one piece.
        revoked: Option<Revoked>,
        events: Option<Events>,
    }
}

impl<B> AnswerBody<B> {
    pub(super) fn new(body: B, key_use: Option<KeyUse>) -> Self {
        Self { body, key_use, revoked: None, events: None }
    }

    /// Sends comments between two events while the provider is silent.
    pub(super) fn with_comments(mut self) -> Self {
        self.events = Some(Events::new());
        self
    }
}

impl<B: Body<Data = Bytes, Error = BoxError>> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        if poll_revoked(this.revoked, cx).is_ready() {
            return Poll::Ready(Some(Err(GatewayRejection::KeyRevoked.into())));
        }
        if let Poll::Ready(frame) = this.body.poll_frame(cx) {
            if let (Some(events), Some(Ok(frame))) = (this.events, &frame) {
                events.passed(frame.data_ref().map_or(&[], |data| data));
            }
            return Poll::Ready(frame);
        }
        if let Some(key_use) = this.key_use.take() {
            *this.revoked = Some(key_use.revoked());
            if poll_revoked(this.revoked, cx).is_ready() {
                return Poll::Ready(Some(Err(GatewayRejection::KeyRevoked.into())));
            }
        }
        match this.events {
            Some(events) => events.poll(cx).map(|comment| Some(Ok(Frame::data(comment)))),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.events.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

/// Whether the body is a stream of events of unknown length, in plain text.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("text/event-stream")
        && !headers.contains_key(CONTENT_LENGTH)
        && headers.get(CONTENT_ENCODING).is_none_or(|coding| coding == "identity")
}

fn poll_revoked(revoked: &mut Option<Revoked>, cx: &mut Context<'_>) -> Poll<()> {
    revoked.as_mut().map_or(Poll::Pending, |revoked| revoked.poll_unpin(cx))
}

/// A stream of events, as it was passed on.
struct Events {
    /// The last bytes.
    end: [u8; 4],
    silent_since: Instant,
    timer: Option<Timer>,
}

impl Events {
    fn new() -> Self {
        // A stream begins between two events.
        Self { end: *b"\n\n\n\n", silent_since: Instant::now(), timer: None }
    }

    fn passed(&mut self, data: &[u8]) {
        for byte in &data[data.len().saturating_sub(self.end.len())..] {
            self.end.rotate_left(1);
            self.end[3] = *byte;
        }
        self.silent_since = Instant::now();
    }

    fn is_between_events(&self) -> bool {
        [&b"\n\n"[..], b"\r\r", b"\r\n\r\n"].iter().any(|end| self.end.ends_with(end))
    }

    /// Ends with a comment when one is due. One timer serves many events.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        loop {
            let left = KEEP_ALIVE.saturating_sub(self.silent_since.elapsed());
            if left.is_zero() && self.is_between_events() {
                self.silent_since = Instant::now();
                return Poll::Ready(Bytes::from_static(COMMENT));
            }
            if self.timer.is_none() {
                self.timer = boxed_timer(if left.is_zero() { KEEP_ALIVE } else { left });
            }
            let Some(timer) = &mut self.timer else { return Poll::Pending };
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
        }
    }
}

impl<B> std::fmt::Debug for AnswerBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerBody").finish_non_exhaustive()
    }
}
