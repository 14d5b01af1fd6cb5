//! CORS: the web views and web pages that may call the gateway.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, Uri};
use tower_devicecheck::BoxError;
use tower_http::cors::{AllowHeaders, CorsLayer};

/// The response headers that SDKs and apps read, beside those that browsers always show.
const EXPOSED: [&str; 17] = [
    "request-id",
    "retry-after",
    "retry-after-ms",
    "x-devicecheck-code",
    "x-gateway-request-id",
    "x-request-id",
    "x-should-retry",
    "openai-processing-ms",
    "openai-version",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-tokens-remaining",
];

/// Answers preflights, and lets pages of these origins read all answers, refusals too. `origins` has commas in between.
///
/// # Errors
///
/// Returns an error for a text that is no origin. `null` is none: every sandboxed page and every file has it. The error
/// quotes nothing.
pub(crate) fn layer(origins: &str) -> Result<CorsLayer, BoxError> {
    let origins = origins.split(',').map(|origin| parsed(origin.trim()));
    let origins: Vec<HeaderValue> = origins.collect::<Option<_>>().ok_or(
        "an origin is a scheme and a host, such as https://app.example or capacitor://localhost; `*` and `null` are none",
    )?;
    Ok(CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        // The gateway decides elsewhere, by name, which ones cross.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED.map(HeaderName::from_static))
        .max_age(Duration::from_secs(60 * 60)))
}

/// As browsers write it, in lower case and without a path: they are compared as texts.
fn parsed(origin: &str) -> Option<HeaderValue> {
    let (scheme, host) = origin.split_once("://")?;
    let is_host = !host.is_empty() && !host.contains(['/', '?', '#', '@', '*']);
    let uri: Uri = format!("http://{host}/").parse().ok()?;
    let is_lower_case = !origin.contains(|letter: char| letter.is_ascii_uppercase());
    let is_origin = is_host && is_lower_case && !scheme.is_empty() && uri.host().is_some();
    is_origin.then(|| origin.parse().ok())?
}
