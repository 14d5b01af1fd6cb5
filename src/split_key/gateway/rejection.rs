//! The table of rejections of the gateway.

use std::error::Error;

use http::StatusCode;

use crate::gate::problem::{Row, row_accessors};

/// The reason why the gateway did not forward a request, or has no response of the provider's to it. The extensions of
/// the response hold the rejection.
///
/// | rejection | code | HTTP |
/// |---|---|---|
/// | [`UnknownProvider`](Self::UnknownProvider) | `unknown_provider` | 404 |
/// | [`NoProject`](Self::NoProject) | `no_project` | 400 |
/// | [`BadPath`](Self::BadPath) | `bad_path` | 400 |
/// | [`EmptySegment`](Self::EmptySegment) | `empty_segment` | 400 |
/// | [`BadQuery`](Self::BadQuery) | `bad_query` | 400 |
/// | [`CredentialPath`](Self::CredentialPath) | `credential_path` | 403 |
/// | [`CredentialInUrl`](Self::CredentialInUrl) | `credential_in_url` | 400 |
/// | [`BadMediaType`](Self::BadMediaType) | `bad_media_type` | 415 |
/// | [`UpgradeNotSupported`](Self::UpgradeNotSupported) | `upgrade_not_supported` | 501 |
/// | [`ResumableUpload`](Self::ResumableUpload) | `resumable_upload_not_supported` | 501 |
/// | [`MethodNotAllowed`](Self::MethodNotAllowed) | `method_not_allowed` | 405 |
/// | [`WrongProvider`](Self::WrongProvider) | `wrong_provider` | 403 |
/// | [`BodyTooLarge`](Self::BodyTooLarge) | `body_too_large` | 413 |
/// | [`RequestTimeout`](Self::RequestTimeout) | `request_timeout` | 408 |
/// | [`BrokenBody`](Self::BrokenBody) | `broken_body` | 400 |
/// | [`KeyRevoked`](Self::KeyRevoked) | `invalid_key` | 401 |
/// | [`ProviderUnreachable`](Self::ProviderUnreachable) | `provider_unreachable` | 502 |
/// | [`KeyRefused`](Self::KeyRefused) | `key_refused_by_provider` | 502 |
/// | [`ProviderTimeout`](Self::ProviderTimeout) | `provider_timeout` | 504 |
/// | [`ProviderError`](Self::ProviderError) | `provider_error` | the provider's |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GatewayRejection {
    /// The path names no provider with a base URL.
    UnknownProvider,
    /// Neither the header nor the path names a project, or the path ends with the provider or the project.
    NoProject,
    /// Servers may read the path in two ways.
    BadPath,
    /// The path has two slashes in a row, or one at its end.
    EmptySegment,
    /// A query parameter that does not cross the gateway, or `key` twice.
    BadQuery,
    /// A path below which the provider makes credentials, which would lead around the gateway.
    CredentialPath,
    /// A client part in the path, the query or the project, where only `key` may hold one.
    CredentialInUrl,
    /// A form or a batch, whose body holds requests or parameters of its own; or several media types for one body.
    BadMediaType,
    /// A WebSocket, a tunnel or another protocol on the connection.
    UpgradeNotSupported,
    /// One of Google's resumable uploads: its further requests go to a URL that leads around the gateway.
    ResumableUpload,
    /// A method that no provider needs, or a request without a key.
    MethodNotAllowed,
    /// The key is of another provider than the one in the path.
    WrongProvider,
    /// The body is longer than the gateway allows.
    BodyTooLarge,
    /// The client was silent for too long within the body.
    RequestTimeout,
    /// The client's body is malformed, or broke off before its end. The provider got no whole request.
    BrokenBody,
    /// The key was revoked, or expired, while the provider worked. A response that has begun ends with this error.
    KeyRevoked,
    /// No connection to the provider, or none that lasted until its response.
    ProviderUnreachable,
    /// The provider refuses the API key. Only the operator can mend that.
    KeyRefused,
    /// The provider's response did not begin in time, or stopped.
    ProviderTimeout,
    /// An error of the provider's that quotes the API key, or that the gateway cannot read.
    #[non_exhaustive]
    ProviderError {
        /// The status of the provider's response.
        status: StatusCode,
    },
}

row_accessors!(GatewayRejection);

impl GatewayRejection {
    #[rustfmt::skip]
    pub(super) const fn row(&self) -> Row {
        let (code, title, status, grpc_status) = match self {
            Self::UnknownProvider => ("unknown_provider", "No such provider", StatusCode::NOT_FOUND, 5),
            Self::NoProject => ("no_project", "No project in the header or the path, or no path after it", StatusCode::BAD_REQUEST, 3),
            Self::BadPath => ("bad_path", "A path that can be read in two ways", StatusCode::BAD_REQUEST, 3),
            Self::EmptySegment => ("empty_segment", "Two slashes in a row in the path, or a slash at its end: one of them is too many", StatusCode::BAD_REQUEST, 3),
            Self::BadQuery => ("bad_query", "A query parameter that does not cross the gateway, or `key` twice", StatusCode::BAD_REQUEST, 3),
            Self::CredentialPath => ("credential_path", "A path that makes credentials, which would lead around the gateway", StatusCode::FORBIDDEN, 7),
            Self::CredentialInUrl => ("credential_in_url", "A client part in the path, the query or the project, where only `key` may hold one", StatusCode::BAD_REQUEST, 3),
            Self::BadMediaType => ("bad_media_type", "A form, a batch, or several media types for one body, which do not cross the gateway", StatusCode::UNSUPPORTED_MEDIA_TYPE, 3),
            Self::UpgradeNotSupported => ("upgrade_not_supported", "No WebSockets, nor any other protocol on this connection", StatusCode::NOT_IMPLEMENTED, 12),
            Self::ResumableUpload => ("resumable_upload_not_supported", "No resumable uploads: send the file in one request", StatusCode::NOT_IMPLEMENTED, 12),
            Self::MethodNotAllowed => ("method_not_allowed", "Method not allowed", StatusCode::METHOD_NOT_ALLOWED, 12),
            Self::WrongProvider => ("wrong_provider", "The key is of another provider", StatusCode::FORBIDDEN, 7),
            Self::BodyTooLarge => ("body_too_large", "The body is too large", StatusCode::PAYLOAD_TOO_LARGE, 8),
            Self::RequestTimeout => ("request_timeout", "The request took too long", StatusCode::REQUEST_TIMEOUT, 4),
            Self::BrokenBody => ("broken_body", "The body is malformed or broke off", StatusCode::BAD_REQUEST, 3),
            Self::KeyRevoked => ("invalid_key", "The key was revoked, or has expired", StatusCode::UNAUTHORIZED, 16),
            Self::ProviderUnreachable => ("provider_unreachable", "The provider cannot be reached", StatusCode::BAD_GATEWAY, 14),
            Self::KeyRefused => ("key_refused_by_provider", "The provider refuses the server's API key", StatusCode::BAD_GATEWAY, 13),
            Self::ProviderTimeout => ("provider_timeout", "The provider did not answer in time", StatusCode::GATEWAY_TIMEOUT, 4),
            Self::ProviderError { status } => ("provider_error", "An error of the provider's that quotes the API key or cannot be read", *status, 2),
        };
        Row { code, title, detail: None, status, grpc_status, challenge: "SplitKey", retry_after: None }
    }
}

impl Error for GatewayRejection {}
