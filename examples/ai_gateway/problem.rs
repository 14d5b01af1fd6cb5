//! Answers that the gateway gives by itself: problem details (RFC 9457), as the layers do.

use axum::{
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// Why a request was not forwarded, or has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
}

impl Problem {
    pub(crate) const UNKNOWN_PROVIDER: Self =
        Self::new(StatusCode::NOT_FOUND, "unknown_provider", "No such provider");
    pub(crate) const BAD_PATH: Self =
        Self::new(StatusCode::BAD_REQUEST, "bad_path", "A path that can be read in two ways");
    pub(crate) const BAD_QUERY: Self = Self::new(
        StatusCode::BAD_REQUEST,
        "bad_query",
        "A query parameter that does not cross the gateway, or `key` twice",
    );
    pub(crate) const CREDENTIAL_IN_URL: Self = Self::new(
        StatusCode::BAD_REQUEST,
        "credential_in_url",
        "A client part in the path, the query or the project, where only `key` may hold one",
    );
    pub(crate) const BAD_MEDIA_TYPE: Self = Self::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "bad_media_type",
        "A form or a batch, which does not cross the gateway",
    );
    pub(crate) const UPGRADE: Self = Self::new(
        StatusCode::NOT_IMPLEMENTED,
        "upgrade_not_supported",
        "No WebSockets, nor any other protocol on this connection",
    );
    pub(crate) const NO_PROJECT: Self =
        Self::new(StatusCode::BAD_REQUEST, "no_project", "No project in the header or the path");
    pub(crate) const WRONG_PROVIDER: Self =
        Self::new(StatusCode::FORBIDDEN, "wrong_provider", "The key is of another provider");
    pub(crate) const METHOD: Self =
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed");
    pub(crate) const SILENT_CLIENT: Self =
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The request took too long");
    pub(crate) const TOO_LARGE: Self =
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large");
    pub(crate) const UNREACHABLE: Self =
        Self::new(StatusCode::BAD_GATEWAY, "provider_unreachable", "The provider cannot be reached");
    pub(crate) const KEY_REFUSED: Self = Self::new(
        StatusCode::BAD_GATEWAY,
        "key_refused_by_provider",
        "The provider refuses the server's API key",
    );
    pub(crate) const SILENT_PROVIDER: Self =
        Self::new(StatusCode::GATEWAY_TIMEOUT, "provider_timeout", "The provider did not answer in time");

    /// In the place of an error of the provider's that cannot be shown.
    pub(crate) const fn unreadable(status: StatusCode) -> Self {
        Self::new(
            status,
            "provider_error",
            "An error of the provider's that quotes the API key or cannot be read",
        )
    }

    const fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self { status, code, title }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, code, title } = self;
        let body = json!({ "title": title, "status": status.as_u16(), "code": code });
        (status, [(CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}
