//! CORS preflights, which browsers send without credentials.

use http::{
    HeaderName, HeaderValue, Method, Version,
    header::{ACCESS_CONTROL_REQUEST_METHOD, CONTENT_LENGTH, ORIGIN},
    request,
};

/// The gate's mark on a preflight that it has let through. Inner layers trust the mark.
#[derive(Clone, Copy)]
pub(crate) struct ExemptPreflight;

/// Headers that no browser sends with a preflight. The same goes for headers that begin with `content-`, `connect-` or
/// `grpc-`.
const NEVER_SENT: [&str; 11] = [
    "authorization",
    "cookie",
    "expect",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// Whether a request is a true CORS preflight. Browsers send preflights without credentials, and only a true preflight
/// may pass without credentials.
///
/// A true preflight has no body (Fetch standard). A preflight with a body targets a handler that ignores the method.
/// Over HTTP/1 the head announces a body. Over HTTP/2 and HTTP/3 it need not, so no head proves that there is no body.
#[inline]
pub(crate) fn is_preflight(head: &request::Parts) -> bool {
    head.method == Method::OPTIONS && has_head_of_preflight(head)
}

#[cold]
fn has_head_of_preflight(head: &request::Parts) -> bool {
    let once = |name: HeaderName| head.headers.get_all(name).iter().count() == 1;
    let is_none = |value: &HeaderValue| value == "0";
    let is_odd = |name: &HeaderName| {
        let name = name.as_str();
        NEVER_SENT.contains(&name)
            || ["connect-", "content-", "grpc-"].iter().any(|start| name.starts_with(start))
                && name != CONTENT_LENGTH.as_str()
    };
    head.version <= Version::HTTP_11
        && once(ORIGIN)
        && once(ACCESS_CONTROL_REQUEST_METHOD)
        && !head.headers.keys().any(is_odd)
        && head.headers.get_all(CONTENT_LENGTH).iter().all(is_none)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn preflight() {
        let cases: &[(&str, &str, &[&str], bool)] = &[
            ("a true one", "OPTIONS", &["origin", "access-control-request-method"], true),
            ("plain OPTIONS", "OPTIONS", &[], false),
            ("no method asked for", "OPTIONS", &["origin"], false),
            ("no origin", "OPTIONS", &["access-control-request-method"], false),
            ("two origins", "OPTIONS", &["origin", "origin", "access-control-request-method"], false),
            ("another method", "GET", &["origin", "access-control-request-method"], false),
            ("of a type", "OPTIONS", &["origin", "access-control-request-method", "content-type"], false),
            ("of a length", "OPTIONS", &["origin", "access-control-request-method", "content-length"], false),
            (
                "in chunks",
                "OPTIONS",
                &["origin", "access-control-request-method", "transfer-encoding"],
                false,
            ),
        ];
        for (name, method, headers, expected) in cases {
            let mut request = Request::builder().method(*method);
            for header in *headers {
                request = request.header(*header, "x");
            }
            let mut head = request.body(()).unwrap().into_parts().0;
            assert_eq!(is_preflight(&head), *expected, "{name}");
            for version in [Version::HTTP_2, Version::HTTP_3] {
                head.version = version;
                assert!(!is_preflight(&head), "{name}, {version:?}");
            }
        }
    }
}
