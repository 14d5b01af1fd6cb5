//! The JSON of errors, as the providers' SDKs read it.

use http::StatusCode;
use serde_json::{Value, json};

/// The JSON in which a provider's SDK expects an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorShape {
    /// `{"error": {"message", "type", "param", "code"}}`: OpenAI, and all that are compatible with it.
    OpenAi,
    /// `{"type": "error", "error": {"type", "message", "code"}}`.
    Anthropic,
    /// `{"error": {"code", "message", "status", "details"}}`, with our code as the reason in the details.
    Google,
}

impl ErrorShape {
    /// An error with one of this crate's codes.
    pub(super) fn error(self, status: StatusCode, code: &str, title: &str) -> Value {
        match self {
            Self::OpenAi => openai(status, code, title),
            Self::Anthropic => anthropic(status, code, title),
            Self::Google => google(status, code, title),
        }
    }
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
