//! A row of a table of rejections, written as HTTP problem details, as a gRPC status or as an error of Connect.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, request};

/// The answer to one kind of rejection. The texts are literals of this crate that need no escaping, neither
/// in JSON nor in headers.
pub(crate) struct Row {
    /// Also the fragment of the problem's `type`: the page `docs/clients.md` has a section for each code.
    pub(crate) code: &'static str,
    pub(crate) title: &'static str,
    pub(crate) detail: Option<&'static str>,
    pub(crate) status: StatusCode,
    pub(crate) grpc_status: u8,
    /// The scheme in the `WWW-Authenticate` header of a 401.
    pub(crate) challenge: &'static str,
    pub(crate) retry_after: Option<Duration>,
}

/// Gives a rejection with a `const fn row(&self) -> Row` its public accessors and `Display`.
macro_rules! row_accessors {
    ($rejection:ty) => {
        impl $rejection {
            /// The machine-readable code in the table.
            #[must_use]
            pub const fn code(&self) -> &'static str {
                self.row().code
            }

            /// The HTTP status in the table.
            #[must_use]
            pub const fn status(&self) -> http::StatusCode {
                self.row().status
            }

            /// The gRPC status code in the table.
            #[must_use]
            pub const fn grpc_status(&self) -> u8 {
                self.row().grpc_status
            }

            /// The time to wait before a retry, in whole seconds; `None` if waiting does not help.
            #[must_use]
            pub const fn retry_after(&self) -> Option<std::time::Duration> {
                self.row().retry_after
            }
        }

        impl std::fmt::Display for $rejection {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.row().title)
            }
        }
    };
}
pub(crate) use row_accessors;

/// The header with the code of a rejection. Every response has it; gRPC clients find it in the metadata.
const CODE: HeaderName = HeaderName::from_static("x-devicecheck-code");

impl Row {
    /// Makes the response in the protocol of the request.
    pub(crate) fn response(&self, request: &request::Parts) -> Response<Bytes> {
        match grpc_content_type(request) {
            Some(content_type) => self.finish(self.grpc(content_type.clone())),
            None if is_unary_connect(request) => self.finish(self.connect()),
            None => self.problem(),
        }
    }

    /// Makes problem details with the table's HTTP status, in any protocol.
    pub(crate) fn problem(&self) -> Response<Bytes> {
        let Self { code, title, .. } = self;
        let detail = match self.detail {
            Some(detail) => format!(r#","detail":"{detail}""#),
            None => String::new(),
        };
        // RFC 9457 has clients compare the `type` as a whole, so it never changes, and no name of a Rust type is in it.
        // `src/guide.rs` makes the page.
        let body = format!(
            r#"{{"type":"https://docs.rs/tower-devicecheck/latest/tower_devicecheck/guide/clients/index.html#{code}","title":"{title}","status":{status},"code":"{code}"{detail}}}"#,
            status = self.status.as_u16(),
        );
        self.finish(self.json(self.status, "application/problem+json", body))
    }

    /// Makes an error of the Connect protocol, which defines its own HTTP status for each code.
    fn connect(&self) -> Response<Bytes> {
        let (code, status) = match self.grpc_status {
            4 => ("deadline_exceeded", StatusCode::GATEWAY_TIMEOUT),
            7 => ("permission_denied", StatusCode::FORBIDDEN),
            8 => ("resource_exhausted", StatusCode::TOO_MANY_REQUESTS),
            13 => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
            14 => ("unavailable", StatusCode::SERVICE_UNAVAILABLE),
            16 => ("unauthenticated", StatusCode::UNAUTHORIZED),
            _ => ("unknown", StatusCode::INTERNAL_SERVER_ERROR),
        };
        let body = format!(r#"{{"code":"{code}","message":"{}"}}"#, self.title);
        self.json(status, "application/json", body)
    }

    fn json(&self, status: StatusCode, content_type: &'static str, body: String) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(self.challenge));
        }
        response
    }

    fn grpc(&self, content_type: HeaderValue) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(HeaderName::from_static("grpc-status"), u16::from(self.grpc_status).into());
        headers.insert(HeaderName::from_static("grpc-message"), HeaderValue::from_static(self.title));
        response
    }

    fn finish(&self, mut response: Response<Bytes>) -> Response<Bytes> {
        let headers = response.headers_mut();
        headers.insert(CODE, HeaderValue::from_static(self.code));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(retry_after) = self.retry_after {
            headers.insert(RETRY_AFTER, retry_after.as_secs().into());
        }
        response
    }
}

/// The content type of a gRPC call. The answer to such a call has HTTP status 200, so no other request may count as
/// one: a proxy that asks the gate about requests takes a 200 as permission.
fn grpc_content_type(request: &request::Parts) -> Option<&HeaderValue> {
    const TYPES: [&str; 3] = ["application/grpc", "application/grpc-web", "application/grpc-web-text"];
    let value = only_content_type(request).filter(|_| request.method == Method::POST)?;
    TYPES.iter().any(|name| is_media_type(value, name, b"+")).then_some(value)
}

/// Whether the request is a unary Connect call. Connect streams have another content type, and their clients read the
/// HTTP status.
fn is_unary_connect(request: &request::Parts) -> bool {
    let is_version_1 = |value: &HeaderValue| value == "1";
    match request.method {
        Method::POST => {
            request.headers.get("connect-protocol-version").is_some_and(is_version_1)
                && only_content_type(request).is_some_and(|value| {
                    ["application/proto", "application/json"]
                        .iter()
                        .any(|name| is_media_type(value, name, b""))
                })
        }
        Method::GET => {
            request.uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "connect=v1"))
        }
        _ => false,
    }
}

fn only_content_type(request: &request::Parts) -> Option<&HeaderValue> {
    let mut values = request.headers.get_all(CONTENT_TYPE).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether `value` is this media type, with or without parameters, or with a suffix after one of these characters.
fn is_media_type(value: &HeaderValue, name: &str, suffix: &[u8]) -> bool {
    value.as_bytes().split_at_checked(name.len()).is_some_and(|(start, rest)| {
        start.eq_ignore_ascii_case(name.as_bytes())
            && (rest.first().is_some_and(|next| suffix.contains(next))
                || matches!(rest.trim_ascii_start().first(), None | Some(b';')))
    })
}
