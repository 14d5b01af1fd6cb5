//! Answers that the gateway gives by itself, in the shape that the SDK of the request's provider reads.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tower_devicecheck::{Rejection, split_key::SplitKeyRejection};

const CODE: HeaderName = HeaderName::from_static("x-devicecheck-code");

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
        let mut response =
            (status, [(CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response();
        response.headers_mut().insert(CODE, HeaderValue::from_static(code));
        response.extensions_mut().insert(self);
        response
    }
}

/// Rewrites the rejections of the layers and of the gateway for the provider that the path names. The outermost layer.
pub(crate) async fn in_the_providers_shape(request: Request, next: Next) -> Response {
    let provider = request.uri().path().strip_prefix("/v1/").and_then(|path| path.split('/').next());
    let shape = match provider {
        Some("openai") => openai,
        Some("anthropic") => anthropic,
        Some("google") => google,
        _ => return next.run(request).await,
    };
    let mut response = next.run(request).await;
    let extensions = response.extensions();
    let (code, title) = if let Some(rejection) = extensions.get::<Rejection>() {
        (rejection.code(), rejection.to_string())
    } else if let Some(rejection) = extensions.get::<SplitKeyRejection>() {
        (rejection.code(), rejection.to_string())
    } else if let Some(problem) = extensions.get::<Problem>() {
        (problem.code, problem.title.to_owned())
    } else {
        return response;
    };
    let body = shape(response.status(), code, &title);
    *response.body_mut() = Body::from(body.to_string());
    let headers = response.headers_mut();
    headers.remove(axum::http::header::CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn openai(status: StatusCode, code: &str, title: &str) -> Value {
    let kind = match status.as_u16() {
        429 => "requests",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    json!({ "error": { "message": title, "type": kind, "param": null, "code": code } })
}

fn anthropic(status: StatusCode, code: &str, title: &str) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({ "type": "error", "error": { "type": kind, "message": title, "code": code } })
}

fn google(status: StatusCode, code: &str, title: &str) -> Value {
    let name = match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        502 | 503 => "UNAVAILABLE",
        504 | 408 => "DEADLINE_EXCEEDED",
        500.. => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    };
    let info = "type.googleapis.com/google.rpc.ErrorInfo";
    let details = json!([{ "@type": info, "reason": code, "domain": "tower-devicecheck" }]);
    json!({ "error": { "code": status.as_u16(), "message": title, "status": name, "details": details } })
}
