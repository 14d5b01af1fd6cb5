//! Which headers cross the gateway.

use axum::http::{
    HeaderMap, HeaderName,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};

/// About one connection, not about the message (RFC 9110, section 7.6.1), besides those that `Connection`
/// names.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Those of the client are for the gateway, and those of the provider for nobody but the gateway.
const CREDENTIALS: [&str; 13] = [
    "authorization",
    "cookie",
    "set-cookie",
    "set-cookie2",
    "x-ai-key",
    "x-api-key",
    "x-apple-device-development",
    "x-apple-device-token",
    "x-debug-token",
    "x-device-token",
    "x-goog-api-key",
    "x-project-id",
    "x-proxed-test-key",
];

/// The HTTP client sets them anew, or they tell the provider where the user is.
const CLIENT_SIDE: [&str; 18] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-ipcountry",
    "content-length",
    "expect",
    "forwarded",
    "fly-client-ip",
    "host",
    "true-client-ip",
    "via",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
];

/// They are about the provider's host, and the client would take them to be about ours.
const PROVIDER_SIDE: [&str; 5] =
    ["alt-svc", "clear-site-data", "nel", "report-to", "strict-transport-security"];

/// The headers of a client's request that the provider gets.
pub(crate) fn to_provider(headers: &HeaderMap) -> HeaderMap {
    without(headers, &CLIENT_SIDE)
}

/// The headers of a provider's response that the client gets.
pub(crate) fn to_client(headers: &HeaderMap) -> HeaderMap {
    let mut kept = without(headers, &PROVIDER_SIDE);
    // Beside a transfer coding, the length is not the body's.
    if headers.contains_key(TRANSFER_ENCODING) {
        kept.remove(CONTENT_LENGTH);
    }
    kept
}

fn without(headers: &HeaderMap, names: &[&str]) -> HeaderMap {
    let mut kept = headers.clone();
    let listed = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in listed.flat_map(|value| value.split(',')) {
        if let Ok(name) = name.trim().parse::<HeaderName>() {
            kept.remove(name);
        }
    }
    for name in HOP_BY_HOP.iter().chain(&CREDENTIALS).chain(names) {
        kept.remove(*name);
    }
    kept
}
