//! The seam to the HTTP client.

use std::{error::Error, future::poll_fn, io::ErrorKind};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Extensions, Request, Response};
use tower_service::Service;

use crate::{BoxError, gate::error::impl_error};

/// An error of a transport: a request got no answer.
///
/// Your own transport may return other errors. This one can say that another attempt may help; the client then sends
/// the request once more. Every request of the client is idempotent, so a repetition is safe.
///
/// The client also repeats a request that timed out. On a timeout the client drops the transport's future. A transport
/// that reuses connections should take such a drop as a sign that the connection is dead, and send the next request
/// over another one.
#[derive(Debug)]
pub struct TransportError {
    kind: TransportErrorKind,
    source: BoxError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TransportErrorKind {
    Connect,
    TurnedAway,
    Stale,
    #[cfg_attr(not(feature = "reqwest"), allow(dead_code))]
    NotSent,
    Other,
}

impl TransportError {
    /// There was no connection, so the request cannot have reached the server.
    pub fn connect(source: impl Into<BoxError>) -> Self {
        Self { kind: TransportErrorKind::Connect, source: source.into() }
    }

    /// The server said that it did not process the request, as an HTTP/2 server does when it shuts a connection down.
    pub fn turned_away(source: impl Into<BoxError>) -> Self {
        Self { kind: TransportErrorKind::TurnedAway, source: source.into() }
    }

    /// The connection had served other requests, then ended or broke before the answer to this one. Usual causes are
    /// the server's idle timeout, a restart, or a firewall that dropped the connection. Another connection may work.
    pub fn stale(source: impl Into<BoxError>) -> Self {
        Self { kind: TransportErrorKind::Stale, source: source.into() }
    }

    /// Any other failure. The client does not send the request again.
    pub fn other(source: impl Into<BoxError>) -> Self {
        Self { kind: TransportErrorKind::Other, source: source.into() }
    }

    /// The request was not sent, because all its callers had left. That says nothing about the server.
    #[cfg(feature = "reqwest")]
    pub(super) fn not_sent() -> Self {
        Self { kind: TransportErrorKind::NotSent, source: "the caller left before its turn".into() }
    }

    /// Whether there was no connection.
    #[cfg(feature = "reqwest")]
    pub(super) const fn is_connect(&self) -> bool {
        matches!(self.kind, TransportErrorKind::Connect)
    }

    /// Whether the server said that it did not process the request.
    #[cfg(all(test, feature = "reqwest"))]
    pub(super) const fn is_turned_away(&self) -> bool {
        matches!(self.kind, TransportErrorKind::TurnedAway)
    }

    /// Whether a reused connection ended or broke.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        matches!(self.kind, TransportErrorKind::Stale)
    }
}

impl_error!(
    TransportError,
    |error| Some(&*error.source),
    "{}",
    match error.kind {
        TransportErrorKind::Connect => "no connection to the server",
        TransportErrorKind::TurnedAway => "the server turned the request away unread",
        TransportErrorKind::Stale => "a kept connection to the server ended before the answer",
        TransportErrorKind::NotSent => "the request was not sent",
        TransportErrorKind::Other => "no answer from the server",
    }
);

/// Whether the error, or one of its causes, says that the same request may well succeed over another connection.
///
/// Only the transport knows whether a connection that was reset or closed had been reused.
pub(super) fn is_worth_repeating(error: &(dyn Error + 'static)) -> bool {
    for error in chain(error) {
        if let Some(error) = error.downcast_ref::<TransportError>() {
            return !matches!(error.kind, TransportErrorKind::NotSent | TransportErrorKind::Other);
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            let before_sending = matches!(
                error.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::NotConnected
                    | ErrorKind::AddrNotAvailable
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::NetworkDown
            );
            if before_sending {
                return true;
            }
        }
        if is_turned_away(error) {
            return true;
        }
    }
    false
}

/// Whether the error, or one of its causes, says that the request was not sent, because all its callers had left.
pub(super) fn is_not_sent(error: &(dyn Error + 'static)) -> bool {
    let mut ours = chain(error).filter_map(|error| error.downcast_ref::<TransportError>());
    ours.any(|error| error.kind == TransportErrorKind::NotSent)
}

/// The error and its causes.
pub(super) fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// Whether this very error, not one of its causes, says that an HTTP/2 server did not process a request. RFC 9113,
/// section 8.7, names two ways: the server shuts the connection down, or refuses the stream.
#[cfg(feature = "reqwest")]
pub(super) fn is_turned_away(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<h2::Error>().is_some_and(|error| {
        let by_shutdown = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        let by_refusal = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (by_shutdown || by_refusal)
    })
}

#[cfg(not(feature = "reqwest"))]
const fn is_turned_away(_: &(dyn Error + 'static)) -> bool {
    false
}

/// The longest answer to a request that is read, in bytes: an extension of the request.
#[derive(Clone, Copy)]
pub(super) struct LongestAnswer(pub(super) usize);

impl LongestAnswer {
    /// The bound for requests that name none. Apple's answers about device tokens are far shorter.
    pub(super) const DEFAULT: Self = Self(4 * 1024);
    /// The bound in place of a newer receipt: a receipt has at most 16 KiB, and base64 a third more.
    pub(super) const RECEIPT: Self = Self(32 * 1024);

    /// The bound that a request names, in bytes.
    pub(super) fn of(request: &Extensions) -> usize {
        request.get::<Self>().unwrap_or(&Self::DEFAULT).0
    }
}

/// A transport as a trait object.
pub(super) trait ErasedTransport: Send + Sync {
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'static, Result<Response<Bytes>, BoxError>>;
}

/// A tower service as a transport.
pub(super) struct ServiceTransport<S>(pub(super) S);

impl<S> ErasedTransport for ServiceTransport<S>
where
    S: Service<Request<Bytes>, Response = Response<Bytes>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'static, Result<Response<Bytes>, BoxError>> {
        let mut service = self.0.clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into)?;
            service.call(request).await.map_err(Into::into)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn which_errors_are_worth_another_attempt() {
        let io = |kind: ErrorKind| Box::new(io::Error::from(kind)) as BoxError;
        let cases: &[(&str, BoxError, bool)] = &[
            ("our own, connect", TransportError::connect("x").into(), true),
            ("our own, turned away", TransportError::turned_away("x").into(), true),
            ("our own, stale", TransportError::stale(io(ErrorKind::ConnectionReset)).into(), true),
            ("our own, other", TransportError::other("x").into(), false),
            #[cfg(feature = "reqwest")]
            ("our own, not sent", TransportError::not_sent().into(), false),
            ("our own over another", TransportError::other(io(ErrorKind::ConnectionRefused)).into(), false),
            ("refused", io(ErrorKind::ConnectionRefused), true),
            ("unreachable", io(ErrorKind::NetworkUnreachable), true),
            ("reset", io(ErrorKind::ConnectionReset), false),
            ("closed", io(ErrorKind::UnexpectedEof), false),
            ("timed out", io(ErrorKind::TimedOut), false),
            ("a text", "connection refused".into(), false),
            ("wrapped", crate::VerifyError::unavailable(io(ErrorKind::ConnectionRefused)).into(), true),
        ];
        for (name, error, expected) in cases {
            assert_eq!(is_worth_repeating(&**error), *expected, "{name}");
        }
    }
}
