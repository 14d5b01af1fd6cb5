//! The decision table: every rejection, and its answer.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode, request};

use crate::gate::error::{VerifyError, VerifyErrorKind, impl_error};
use crate::gate::problem::{Row, row_accessors};
use crate::runtime::spread;

/// The reason why a request did not reach the inner service. The extensions of the response hold the rejection.
///
/// | rejection | code | HTTP | gRPC | `Retry-After` |
/// |---|---|---|---|---|
/// | [`MissingToken`](Self::MissingToken) | `missing_token` | 401 | 16 `UNAUTHENTICATED` | |
/// | [`MalformedToken`](Self::MalformedToken) | `malformed_token` | 401 | 16 `UNAUTHENTICATED` | |
/// | [`RefusedToken`](Self::RefusedToken) | `refused_token` | 401 | 16 `UNAUTHENTICATED` | |
/// | [`ReusedToken`](Self::ReusedToken) | `reused_token` | 401 | 16 `UNAUTHENTICATED` | |
/// | [`ExpiredSession`](Self::ExpiredSession) | `expired_session` | 401 | 16 `UNAUTHENTICATED` | |
/// | [`UnknownKey`](Self::UnknownKey) | `unknown_key` | 401 | 16 `UNAUTHENTICATED` | |
/// | [`Denied`](Self::Denied) | `denied` | 403 | 7 `PERMISSION_DENIED` | |
/// | [`Throttled`](Self::Throttled) | `throttled` | 503 | 14 `UNAVAILABLE` | 1 to 300 s |
/// | [`Unavailable`](Self::Unavailable) | `unavailable` | 503 | 14 `UNAVAILABLE` | 1 to 5 s |
/// | [`LimitExceeded`](Self::LimitExceeded) | `limit_exceeded` | 429 | 8 `RESOURCE_EXHAUSTED` | 1 s or more |
/// | [`TooLarge`](Self::TooLarge) | `too_large` | 413 | 8 `RESOURCE_EXHAUSTED` | |
/// | [`IncompleteBody`](Self::IncompleteBody) | `incomplete_body` | 408 | 4 `DEADLINE_EXCEEDED` | |
/// | [`Misconfigured`](Self::Misconfigured) | `misconfigured` | 500 | 13 `INTERNAL` | |
///
/// The `type` of the problem is
/// `https://docs.rs/tower-devicecheck/latest/tower_devicecheck/guide/clients/index.html#<code>`: see
/// [`guide::clients`](crate::guide::clients).
///
/// A 401 carries `WWW-Authenticate: DeviceCheck`. For [`MissingToken`](Self::MissingToken), the header names every
/// [proof](crate::Proof) of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// The request has no device token. Apple was not asked.
    MissingToken,
    /// The device token of the request is malformed. Apple was not asked.
    MalformedToken(MalformedToken),
    /// Apple says that the token is not genuine, or said so recently.
    RefusedToken,
    /// The token admits only one request, and another request has used it: see [`replay`](crate::replay). Apple was not
    /// asked, or the other request used the token while Apple was being asked.
    ReusedToken,
    /// The session of the request is genuine, but over. The client buys a new one with another proof; nothing is wrong
    /// with that proof. Apple was not asked.
    ExpiredSession,
    /// The server does not know the key of the request, because the app was installed anew or the server has lost its
    /// data. The client makes a new key and attests it. Apple was not asked.
    UnknownKey,
    /// The device, its key or the build of its app is genuine, but the operator's policy shuts it out. A retry does not
    /// help, nor does a new token.
    Denied,
    /// Apple throttles this server (status 429).
    #[non_exhaustive]
    Throttled {
        /// The time to wait before a retry.
        retry_after: Duration,
    },
    /// Apple gave no verdict, or was not asked because too many requests already wait for Apple.
    #[non_exhaustive]
    Unavailable {
        /// The time to wait before a retry.
        retry_after: Duration,
    },
    /// The operator's own [limit](crate::limit), or that of a proof, is used up. Apple was not asked. Made by
    /// [`limit_exceeded`](Self::limit_exceeded).
    #[non_exhaustive]
    LimitExceeded {
        /// When the client may come back.
        retry_after: Duration,
    },
    /// A proof needs the body, and the body is longer than the layer reads.
    TooLarge,
    /// A proof needs the body, and the body did not arrive whole within the time that the layer gives it.
    IncompleteBody,
    /// Apple does not accept this server's credentials, or the layer is set up incorrectly. The operator must act; the
    /// client is not at fault.
    Misconfigured,
}

/// The reason why a text is not a device token. The layer does not ask Apple about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MalformedToken {
    /// The text is empty.
    Empty,
    /// The text has more than 8,192 characters.
    TooLong,
    /// The text is not base64 in the one accepted spelling.
    NotCanonical,
    /// The request has the header of the token more than once.
    Repeated,
    /// Two token sources found different tokens.
    Disagreement,
    /// The request has only a part of the credential.
    Incomplete,
    /// The credential decodes to bytes that are not what it should be.
    Unreadable,
}

impl MalformedToken {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "the device token is empty",
            Self::TooLong => "the device token is too long",
            Self::NotCanonical => "the device token is not canonical base64",
            Self::Repeated => "the header of the device token came more than once",
            Self::Disagreement => "the request holds two different device tokens",
            Self::Incomplete => "a part of the credential is missing",
            Self::Unreadable => "the credential cannot be read",
        }
    }
}

impl_error!(MalformedToken, |error| None, "{}", error.as_str());

row_accessors!(Rejection);

impl Rejection {
    #[rustfmt::skip]
    const fn row(&self) -> Row {
        let (code, title, status, grpc_status) = match self {
            Self::MissingToken => ("missing_token", "No device token", StatusCode::UNAUTHORIZED, 16),
            Self::MalformedToken(_) => ("malformed_token", "Malformed device token", StatusCode::UNAUTHORIZED, 16),
            Self::RefusedToken => ("refused_token", "Device token refused", StatusCode::UNAUTHORIZED, 16),
            Self::ReusedToken => ("reused_token", "Device token used before", StatusCode::UNAUTHORIZED, 16),
            Self::ExpiredSession => ("expired_session", "Session expired", StatusCode::UNAUTHORIZED, 16),
            Self::UnknownKey => ("unknown_key", "Unknown key", StatusCode::UNAUTHORIZED, 16),
            Self::Denied => ("denied", "Device denied", StatusCode::FORBIDDEN, 7),
            Self::Throttled { .. } => ("throttled", "Too many device checks", StatusCode::SERVICE_UNAVAILABLE, 14),
            Self::Unavailable { .. } => ("unavailable", "Device check unavailable", StatusCode::SERVICE_UNAVAILABLE, 14),
            Self::LimitExceeded { .. } => ("limit_exceeded", "Too many new device tokens", StatusCode::TOO_MANY_REQUESTS, 8),
            Self::TooLarge => ("too_large", "Body too large", StatusCode::PAYLOAD_TOO_LARGE, 8),
            Self::IncompleteBody => ("incomplete_body", "Body incomplete", StatusCode::REQUEST_TIMEOUT, 4),
            Self::Misconfigured => ("misconfigured", "Device check misconfigured", StatusCode::INTERNAL_SERVER_ERROR, 13),
        };
        let detail = match self {
            Self::MalformedToken(reason) => Some(reason.as_str()),
            _ => None,
        };
        let retry_after = match self {
            Self::Throttled { retry_after }
            | Self::Unavailable { retry_after }
            | Self::LimitExceeded { retry_after } => Some(*retry_after),
            _ => None,
        };
        Row {
            code, title, detail, status, grpc_status,
            challenge: "DeviceCheck",
            retry_after,
        }
    }
}

impl Rejection {
    /// [`LimitExceeded`](Self::LimitExceeded), for a client that may come back after `wait`: in whole seconds, rounded
    /// up, and at least one.
    #[must_use]
    pub const fn limit_exceeded(wait: Duration) -> Self {
        let begun = if wait.subsec_nanos() > 0 || wait.is_zero() { 1 } else { 0 };
        Self::LimitExceeded { retry_after: Duration::from_secs(wait.as_secs().saturating_add(begun)) }
    }
}

#[cfg(feature = "axum")]
impl Rejection {
    /// The response of a handler that takes a device, to a request that the layer let through in monitor mode.
    pub(super) fn monitored(&self) -> Response<Bytes> {
        let detail =
            "in monitor mode the layer lets the request through, but the handler takes a verified device";
        Row { detail: Some(detail), ..self.row() }.problem()
    }
}

impl Error for Rejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::MalformedToken(reason) => Some(reason),
            _ => None,
        }
    }
}

impl From<MalformedToken> for Rejection {
    fn from(reason: MalformedToken) -> Self {
        Self::MalformedToken(reason)
    }
}

/// The rejection for a missing verdict. Its waiting time is random, so that clients do not all come back at the same
/// moment.
///
/// * [`Throttled`](Rejection::Throttled): from the time that the error names, at least 1 second, to half as much again,
///   but at most 300 seconds. If the error names no time, 5 to 7 seconds.
/// * [`Unavailable`](Rejection::Unavailable): from the time that the error names, at least 1 second, to 5 seconds. If
///   the error names no time, 1 to 5 seconds. If it names more than 5 seconds, 3 to 5 seconds; in a
///   [known outage](VerifyError::is_known_outage), at least the time that it names, as for `Throttled`.
impl From<&VerifyError> for Rejection {
    fn from(error: &VerifyError) -> Self {
        let rounded_up = |time: Duration| time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
        let asked = error.retry_after().map(rounded_up);
        let not_before = |seconds: u64| {
            let soonest = seconds.clamp(1, 300);
            Duration::from_secs(spread(soonest, (soonest + soonest / 2).min(300)))
        };
        match (error.kind(), asked) {
            (VerifyErrorKind::Throttled, _) => {
                Self::Throttled { retry_after: not_before(asked.unwrap_or(5)) }
            }
            (VerifyErrorKind::Unavailable, Some(asked)) if error.is_known_outage() => {
                Self::Unavailable { retry_after: not_before(asked) }
            }
            (VerifyErrorKind::Unavailable, _) => {
                let soonest = asked.map_or(1, |asked| if asked > 5 { 3 } else { asked.max(1) });
                Self::Unavailable { retry_after: Duration::from_secs(spread(soonest, 5)) }
            }
            (VerifyErrorKind::Misconfigured, _) => Self::Misconfigured,
        }
    }
}

/// Makes the response to a rejected request. Implemented by [`ProblemDetails`], [`HttpProblemDetails`] and closures:
///
/// ```
/// use bytes::Bytes;
/// use http::{Response, request};
/// use tower_devicecheck::Rejection;
/// # use tower_devicecheck::RejectionResponse;
/// # fn check(_: impl RejectionResponse) {}
///
/// # check(
/// |rejection: &Rejection, _: &request::Parts| {
///     let mut response = Response::new(Bytes::from(rejection.code()));
///     *response.status_mut() = rejection.status();
///     response
/// }
/// # );
/// ```
#[diagnostic::on_unimplemented(
    note = "use `ProblemDetails` or a closure `Fn(&Rejection, &request::Parts) -> Response<Bytes>`"
)]
pub trait RejectionResponse: Send + Sync + 'static {
    /// Makes the response to one request. `head` is the head of the request. It lacks the credentials that the layer
    /// took out, unless the layer forwards them.
    fn response(&self, rejection: &Rejection, head: &request::Parts) -> Response<Bytes>;
}

impl<F> RejectionResponse for F
where
    F: Fn(&Rejection, &request::Parts) -> Response<Bytes> + Send + Sync + 'static,
{
    fn response(&self, rejection: &Rejection, head: &request::Parts) -> Response<Bytes> {
        self(rejection, head)
    }
}

/// The default response, in the client's protocol.
///
/// * Problem details (RFC 9457) with the members `type`, `title`, `status`, `code` ([`Rejection::code`]) and, for
///   a malformed token, `detail`.
/// * A gRPC status for gRPC and gRPC-Web: a `POST` with exactly one content type, which is `application/grpc`,
///   `application/grpc-web` or `application/grpc-web-text`, alone or followed by `+` or `;`. The response is
///   "trailers-only": it has the status in a header, no body, HTTP status 200, and the content type of the request.
/// * A Connect error for unary Connect calls: a `POST` of `application/json` or `application/proto` with
///   `Connect-Protocol-Version: 1`, or a `GET` with `connect=v1` in its query. The HTTP status is the one that Connect
///   defines for the code; for some codes it differs from the table. Connect streams get problem details, and their
///   clients read the HTTP status.
///
/// All responses have the header `x-devicecheck-code` with the rejection's code; gRPC clients find it in the metadata.
/// A response reveals the kind of rejection, but nothing of Apple's answer.
///
/// A proxy that asks this server whether to admit a request, as nginx's `auth_request` does, takes a 200 for yes. Use
/// [`HttpProblemDetails`] there.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit struct, to be named as a value")]
pub struct ProblemDetails;

impl RejectionResponse for ProblemDetails {
    fn response(&self, rejection: &Rejection, head: &request::Parts) -> Response<Bytes> {
        rejection.row().response(head)
    }
}

/// Problem details like those of [`ProblemDetails`], but for every client: the HTTP status is always that of the table.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit struct, to be named as a value")]
pub struct HttpProblemDetails;

impl RejectionResponse for HttpProblemDetails {
    fn response(&self, rejection: &Rejection, _: &request::Parts) -> Response<Bytes> {
        rejection.row().problem()
    }
}

#[cfg(test)]
mod tests {
    use http::{
        Request,
        header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    };

    use super::*;

    fn head(content_type: &str) -> request::Parts {
        Request::post("/").header(CONTENT_TYPE, content_type).body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_table() {
        let seconds = Duration::from_secs;
        let error = |error: VerifyError| Rejection::from(&error);
        type Case = (Rejection, u16, u8, Option<(u64, u64)>, &'static str);
        let cases: &[Case] = &[
            (Rejection::MissingToken, 401, 16, None, "missing_token"),
            (MalformedToken::Empty.into(), 401, 16, None, "malformed_token"),
            (Rejection::RefusedToken, 401, 16, None, "refused_token"),
            (Rejection::ReusedToken, 401, 16, None, "reused_token"),
            (Rejection::ExpiredSession, 401, 16, None, "expired_session"),
            (Rejection::UnknownKey, 401, 16, None, "unknown_key"),
            (Rejection::Denied, 403, 7, None, "denied"),
            (error(VerifyError::throttled(None, "x")), 503, 14, Some((5, 7)), "throttled"),
            (error(VerifyError::throttled(Some(seconds(0)), "x")), 503, 14, Some((1, 1)), "throttled"),
            (error(VerifyError::throttled(Some(seconds(60)), "x")), 503, 14, Some((60, 90)), "throttled"),
            (error(VerifyError::throttled(Some(Duration::MAX), "x")), 503, 14, Some((300, 300)), "throttled"),
            (error(VerifyError::unavailable("x")), 503, 14, Some((1, 5)), "unavailable"),
            (
                error(VerifyError::unavailable("x").with_retry_after(Some(seconds(60)))),
                503,
                14,
                Some((3, 5)),
                "unavailable",
            ),
            (Rejection::limit_exceeded(seconds(0)), 429, 8, Some((1, 1)), "limit_exceeded"),
            (Rejection::limit_exceeded(Duration::from_nanos(1)), 429, 8, Some((1, 1)), "limit_exceeded"),
            (Rejection::limit_exceeded(seconds(7)), 429, 8, Some((7, 7)), "limit_exceeded"),
            (Rejection::limit_exceeded(Duration::from_millis(7_001)), 429, 8, Some((8, 8)), "limit_exceeded"),
            (Rejection::limit_exceeded(Duration::MAX), 429, 8, Some((u64::MAX, u64::MAX)), "limit_exceeded"),
            (Rejection::TooLarge, 413, 8, None, "too_large"),
            (Rejection::IncompleteBody, 408, 4, None, "incomplete_body"),
            (error(VerifyError::misconfigured("x")), 500, 13, None, "misconfigured"),
        ];
        for (rejection, status, grpc, retry_after, code) in cases {
            let name = format!("{rejection:?}");
            assert_eq!(rejection.code(), *code, "{name}");
            let seconds = rejection.retry_after().map(|time| time.as_secs());
            assert_eq!(seconds.is_some(), retry_after.is_some(), "{name}");
            assert!(seconds.zip(*retry_after).is_none_or(|(s, (low, high))| low <= s && s <= high), "{name}");

            let response = ProblemDetails.response(rejection, &head("application/json"));
            let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!(response.status().as_u16(), *status, "{name}");
            assert_eq!(header(WWW_AUTHENTICATE), (*status == 401).then_some("DeviceCheck"), "{name}");
            assert_eq!(header(RETRY_AFTER), seconds.map(|s| s.to_string()).as_deref(), "{name}");
            assert_eq!(header(CONTENT_TYPE), Some("application/problem+json"), "{name}");
            let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(problem["code"], *code, "{name}");
            assert_eq!(problem["status"], *status, "{name}");
            assert_eq!(problem["title"], rejection.to_string(), "{name}");
            let page = "https://docs.rs/tower-devicecheck/latest/tower_devicecheck/guide/clients/index.html";
            assert_eq!(problem["type"], format!("{page}#{code}"), "{name}");
            assert_eq!(problem.get("detail").is_some(), rejection.source().is_some(), "{name}");
            let http_only = HttpProblemDetails.response(rejection, &head("application/grpc"));
            assert_eq!(http_only.status(), response.status(), "{name}");
            assert_eq!(http_only.body(), response.body(), "{name}");

            for content_type in ["application/grpc", "application/grpc-web+proto", "Application/gRPC"] {
                let response = ProblemDetails.response(rejection, &head(content_type));
                assert_eq!(response.status(), StatusCode::OK, "{name}");
                assert_eq!(response.headers()[CONTENT_TYPE], content_type, "{name}");
                assert_eq!(response.headers()["grpc-status"], grpc.to_string(), "{name}");
                assert_eq!(response.headers()["grpc-message"], rejection.to_string(), "{name}");
                assert!(response.body().is_empty(), "{name}");
            }
        }
    }
}
