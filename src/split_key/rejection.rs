//! The table of rejections of split keys.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode, request};

use crate::gate::problem::{Row, row_accessors};
use crate::gate::rejection::{HttpProblemDetails, ProblemDetails};
use crate::split_key::limits::Limit;

/// The reason why a request did not get its key. The extensions of the response hold the rejection.
///
/// | rejection | code | HTTP | gRPC | `Retry-After` |
/// |---|---|---|---|---|
/// | [`MissingKey`](Self::MissingKey) | `missing_key` | 401 | 16 `UNAUTHENTICATED` | |
/// | [`InvalidKey`](Self::InvalidKey) | `invalid_key` | 401 | 16 `UNAUTHENTICATED` | |
/// | [`LimitNotMet`](Self::LimitNotMet) | `limit_not_met` | 403 | 7 `PERMISSION_DENIED` | |
/// | [`Blocked`](Self::Blocked) | `key_blocked` | 429 | 8 `RESOURCE_EXHAUSTED` | until the release |
/// | [`Unavailable`](Self::Unavailable) | `keys_unavailable` | 503 | 14 `UNAVAILABLE` | 1 to 5 s |
/// | [`Unverified`](Self::Unverified) | `device_unverified` | 500 | 13 `INTERNAL` | |
///
/// A 401 carries `WWW-Authenticate: SplitKey`. The `type` of the problem is made as for a
/// [`Rejection`](crate::Rejection).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitKeyRejection {
    /// The request has no client part, or no project id.
    MissingKey,
    /// The client part opens no usable key: it is malformed, unknown, of another key or project, retired or revoked.
    /// Neither the response nor its timing reveals which. Only a malformed client part gets a faster answer, but its
    /// sender can tell without asking that it is malformed.
    InvalidKey,
    /// The client part is right, but the key may not be used for this request.
    LimitNotMet(Limit),
    /// The key is blocked for a while because its use is suspicious.
    #[non_exhaustive]
    Blocked {
        /// The time to wait before a retry.
        retry_after: Duration,
    },
    /// The key store failed.
    #[non_exhaustive]
    Unavailable {
        /// The time to wait before a retry.
        retry_after: Duration,
    },
    /// The request has no verified device: there is no [`DeviceCheckLayer`](crate::DeviceCheckLayer) outside this
    /// layer, the route is exempt, or that layer only monitors. The operator must act.
    Unverified,
}

row_accessors!(SplitKeyRejection);

impl SplitKeyRejection {
    #[rustfmt::skip]
    const fn row(&self) -> Row {
        let (code, title, status, grpc_status) = match self {
            Self::MissingKey => ("missing_key", "No key", StatusCode::UNAUTHORIZED, 16),
            Self::InvalidKey => ("invalid_key", "Invalid key", StatusCode::UNAUTHORIZED, 16),
            Self::LimitNotMet(_) => ("limit_not_met", "Key not allowed here", StatusCode::FORBIDDEN, 7),
            Self::Blocked { .. } => ("key_blocked", "Key blocked for a while", StatusCode::TOO_MANY_REQUESTS, 8),
            Self::Unavailable { .. } => ("keys_unavailable", "Keys unavailable", StatusCode::SERVICE_UNAVAILABLE, 14),
            Self::Unverified => ("device_unverified", "Device not verified", StatusCode::INTERNAL_SERVER_ERROR, 13),
        };
        let detail = match self {
            Self::LimitNotMet(limit) => Some(limit.as_str()),
            _ => None,
        };
        let retry_after = match self {
            Self::Blocked { retry_after } | Self::Unavailable { retry_after } => Some(*retry_after),
            _ => None,
        };
        Row {
            code, title, detail, status, grpc_status,
            challenge: "SplitKey",
            retry_after,
        }
    }
}

impl Error for SplitKeyRejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::LimitNotMet(limit) => Some(limit),
            _ => None,
        }
    }
}

/// Makes the response to a request that did not get its key. Implemented by [`ProblemDetails`],
/// [`HttpProblemDetails`] and closures `Fn(&SplitKeyRejection, &request::Parts) -> Response<Bytes>`.
#[diagnostic::on_unimplemented(
    note = "use `ProblemDetails` or a closure `Fn(&SplitKeyRejection, &request::Parts) -> Response<Bytes>`"
)]
pub trait SplitKeyRejectionResponse: Send + Sync + 'static {
    /// Makes the response to one request. `head` is the head of the request. It lacks the credentials that the layer
    /// took out, unless the layer forwards them.
    fn response(&self, rejection: &SplitKeyRejection, head: &request::Parts) -> Response<Bytes>;
}

impl<F> SplitKeyRejectionResponse for F
where
    F: Fn(&SplitKeyRejection, &request::Parts) -> Response<Bytes> + Send + Sync + 'static,
{
    fn response(&self, rejection: &SplitKeyRejection, head: &request::Parts) -> Response<Bytes> {
        self(rejection, head)
    }
}

/// Responds as for a [`Rejection`](crate::Rejection). The member `detail` names the limit that the request does not
/// meet.
impl SplitKeyRejectionResponse for ProblemDetails {
    fn response(&self, rejection: &SplitKeyRejection, head: &request::Parts) -> Response<Bytes> {
        rejection.row().response(head)
    }
}

impl SplitKeyRejectionResponse for HttpProblemDetails {
    fn response(&self, rejection: &SplitKeyRejection, _: &request::Parts) -> Response<Bytes> {
        rejection.row().problem()
    }
}

/// Feature `axum`. Responds with problem details, the layer's default answer to a client that speaks plain HTTP.
#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for SplitKeyRejection {
    fn into_response(self) -> axum_core::response::Response {
        crate::gate::extract::answer(self, |head| ProblemDetails.response(&self, head))
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, header::CONTENT_TYPE};

    use super::*;

    #[test]
    fn the_table() {
        let retry_after = Duration::from_secs(7);
        type Case = (SplitKeyRejection, u16, u8, Option<&'static str>, &'static str);
        let cases: &[Case] = &[
            (SplitKeyRejection::MissingKey, 401, 16, None, "missing_key"),
            (SplitKeyRejection::InvalidKey, 401, 16, None, "invalid_key"),
            (SplitKeyRejection::LimitNotMet(Limit::Path), 403, 7, None, "limit_not_met"),
            (SplitKeyRejection::Blocked { retry_after }, 429, 8, Some("7"), "key_blocked"),
            (SplitKeyRejection::Unavailable { retry_after }, 503, 14, Some("7"), "keys_unavailable"),
            (SplitKeyRejection::Unverified, 500, 13, None, "device_unverified"),
        ];
        for (rejection, status, grpc, retry_after, code) in cases {
            let head = |content_type| {
                let request = Request::post("/").header(CONTENT_TYPE, content_type);
                request.body(()).unwrap().into_parts().0
            };
            let response = ProblemDetails.response(rejection, &head("application/json"));
            assert_eq!(response.status(), *status, "{code}");
            let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!(header("retry-after"), *retry_after, "{code}");
            assert_eq!(header("www-authenticate"), (*status == 401).then_some("SplitKey"), "{code}");
            let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(problem["code"], *code);
            let page = "https://docs.rs/tower-devicecheck/latest/tower_devicecheck/guide/clients/index.html";
            assert_eq!(problem["type"], format!("{page}#{code}"));
            assert_eq!(problem["title"], rejection.to_string(), "{code}");
            assert_eq!(problem.get("detail").is_some(), rejection.source().is_some(), "{code}");

            let response = ProblemDetails.response(rejection, &head("application/grpc"));
            assert_eq!(response.status(), 200, "{code}");
            assert_eq!(response.headers()["grpc-status"], grpc.to_string(), "{code}");
        }
    }
}
