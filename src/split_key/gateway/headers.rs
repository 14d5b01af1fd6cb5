//! The headers that cross the gateway, by name. All others stay here: those of tomorrow, too.

use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::split_key::api_key::ApiKey;

/// From the client to the provider: what the content is, and what the providers' SDKs say about themselves and
/// the call. No header here names another method, path, host, credential, organization or place.
const REQUEST: [&str; 23] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "anthropic-beta",
    "anthropic-user-profile-id",
    "anthropic-version",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "idempotency-key",
    "openai-beta",
    "range",
    "user-agent",
    "x-client-request-id",
    "x-goog-api-client",
    "x-goog-upload-command",
    "x-goog-upload-file-name",
    "x-goog-upload-header-content-length",
    "x-goog-upload-header-content-type",
    "x-goog-upload-offset",
    "x-goog-upload-protocol",
    "x-server-timeout",
];
const REQUEST_PREFIXES: [&str; 1] = ["x-stainless-"];

/// From the provider to the client: what the content is, and what the SDKs read.
const RESPONSE: [&str; 25] = [
    "accept-ranges",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "last-modified",
    "openai-model",
    "openai-poll-after-ms",
    "openai-processing-ms",
    "openai-version",
    "request-id",
    "retry-after",
    "retry-after-ms",
    "vary",
    "x-goog-upload-chunk-granularity",
    "x-goog-upload-size-received",
    "x-goog-upload-status",
    "x-request-id",
    "x-should-retry",
    "x-stainless-retry-count",
];
const RESPONSE_PREFIXES: [&str; 2] = ["anthropic-ratelimit-", "x-ratelimit-"];

/// The headers of a client's request that the provider gets.
pub(super) fn to_provider(headers: &HeaderMap) -> HeaderMap {
    let mut kept = listed(headers, &REQUEST, &REQUEST_PREFIXES);
    if kept.contains_key(ACCEPT_ENCODING) {
        // In a compressed error, nobody could find the key.
        kept.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    kept
}

/// The headers of a provider's response that the client gets.
pub(super) fn to_client(headers: &HeaderMap, key: &ApiKey) -> HeaderMap {
    let mut kept = listed(headers, &RESPONSE, &RESPONSE_PREFIXES);
    // Beside a transfer coding, the length is not the body's.
    if headers.contains_key(TRANSFER_ENCODING) {
        kept.remove(CONTENT_LENGTH);
    }
    let quoting = kept.iter().filter(|(_, value)| quotes(value.as_bytes(), key));
    let quoting: Vec<_> = quoting.map(|(name, _)| name.clone()).collect();
    for name in quoting {
        kept.remove(name);
    }
    kept
}

/// Whether the client wants another protocol on its connection.
pub(super) fn want_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        || connection_options(headers).any(|name| name == UPGRADE)
        || headers.keys().any(|name| name.as_str().starts_with("sec-websocket-"))
}

/// Whether the text holds the key, or so much of it that the rest is no secret any more.
pub(super) fn quotes(text: &[u8], key: &ApiKey) -> bool {
    let key = key.expose().as_bytes();
    let enough = key.len().min(20);
    // That many characters of the key have one of these blocks whole among them.
    let block = (enough / 2).max(1);
    let common = |pairs: &mut dyn Iterator<Item = (&u8, &u8)>| pairs.take_while(|(a, b)| a == b).count();
    key.chunks_exact(block).enumerate().any(|(index, piece)| {
        let (before, after) = key.split_at(index * block);
        text.windows(block).enumerate().filter(|(_, found)| *found == piece).any(|(at, _)| {
            let (text_before, text_after) = text.split_at(at);
            common(&mut before.iter().rev().zip(text_before.iter().rev()))
                + common(&mut after.iter().zip(text_after))
                >= enough
        })
    })
}

fn listed(headers: &HeaderMap, names: &[&str], prefixes: &[&str]) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        if names.contains(&text) || prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            kept.append(name, value.clone());
        }
    }
    // About one connection, not about the message (RFC 9110, section 7.6.1).
    for name in connection_options(headers) {
        kept.remove(name);
    }
    kept
}

/// The names in `Connection`.
fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let listed = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    listed.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok())
}
