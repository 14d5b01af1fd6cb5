//! A row of a table of rejections, written as HTTP problem details or as a gRPC status.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

/// The answer to one kind of rejection. The texts are literals of this crate that need no escaping, neither
/// in JSON nor in headers.
pub(crate) struct Row {
    /// The page of this crate's documentation that lists the variants.
    pub(crate) page: &'static str,
    /// The variant's name, to which the problem's `type` points.
    pub(crate) variant: &'static str,
    pub(crate) code: &'static str,
    pub(crate) title: &'static str,
    pub(crate) detail: Option<&'static str>,
    pub(crate) status: StatusCode,
    pub(crate) grpc_status: u8,
    /// The scheme that a 401 names in `WWW-Authenticate`.
    pub(crate) challenge: &'static str,
    pub(crate) retry_after: Option<Duration>,
}

/// Gives a rejection with a `const fn row(&self) -> Row` its public accessors and `Display`.
macro_rules! row_accessors {
    ($rejection:ty) => {
        impl $rejection {
            /// A name for machines: the code in the table.
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

            /// When the client may come back, in whole seconds; `None` where waiting does not help.
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

impl Row {
    /// The response to a request with these headers: their content type tells gRPC from the rest.
    pub(crate) fn response(&self, request: &HeaderMap) -> Response<Bytes> {
        let mut response = match grpc_content_type(request) {
            Some(content_type) => self.grpc(content_type.clone()),
            None => self.json(),
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(retry_after) = self.retry_after {
            headers.insert(RETRY_AFTER, retry_after.as_secs().into());
        }
        response
    }

    fn json(&self) -> Response<Bytes> {
        let Self { page, variant, code, title, .. } = self;
        let detail = match self.detail {
            Some(detail) => format!(r#","detail":"{detail}""#),
            None => String::new(),
        };
        let body = format!(
            r#"{{"type":"https://docs.rs/tower-devicecheck/latest/tower_devicecheck/{page}#variant.{variant}","title":"{title}","status":{status},"code":"{code}"{detail}}}"#,
            status = self.status.as_u16(),
        );
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
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
}

fn grpc_content_type(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(CONTENT_TYPE).filter(|value| {
        let prefix = b"application/grpc";
        value.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    })
}
