//! CORS: the web views and web pages that may call the gateway.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method};
use reqwest::Url;
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
/// Returns an error for a text that no browser sends as an origin. `null` is none: every sandboxed page and every file has
/// it. The error names the entry by its number, and quotes nothing.
pub(crate) fn layer(origins: &str) -> Result<CorsLayer, BoxError> {
    let entries = (1..).zip(origins.split(','));
    let origins = entries.map(|(number, origin)| {
        parsed(origin.trim()).map_err(|error| format!("entry {number}: {error}; right are {EXAMPLES}"))
    });
    let origins: Vec<HeaderValue> = origins.collect::<Result<_, _>>()?;
    Ok(CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        // The gateway decides elsewhere, by name, which ones cross.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED.map(HeaderName::from_static))
        .max_age(Duration::from_secs(60 * 60)))
}

const EXAMPLES: &str = "https://app.example, http://localhost:8100 and capacitor://localhost";

/// An origin as browsers write it. It is compared as a text, so that another way to write it would match nothing.
fn parsed(origin: &str) -> Result<HeaderValue, &'static str> {
    if matches!(origin, "*" | "null") {
        return Err("`*` and `null` are none: each origin is written out");
    }
    let (_, host) = origin.split_once("://").ok_or("an origin begins with a scheme and `://`")?;
    if origin.contains(|letter: char| letter.is_ascii_uppercase()) {
        return Err("browsers write origins in lower case");
    }
    if host.contains(['/', '?', '#']) {
        return Err("nothing comes after the host and its port, not even a slash");
    }
    let wrong = "it is not written as browsers write it";
    let url: Url = origin.parse().map_err(|_| wrong)?;
    if written(&url).as_deref() == Some(origin) {
        return origin.parse().map_err(|_| wrong);
    }
    match host.rsplit_once(':') {
        Some((_, port)) if !port.contains(']') && !host.contains('@') => {
            Err("browsers leave a port away that the scheme has anyway, and the zeros before one")
        }
        _ => Err(wrong),
    }
}

/// The origin of a page with this URL; `None` for a page whose origin is `null`.
fn written(url: &Url) -> Option<String> {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = url.host_str().filter(|host| !host.is_empty() && !host.contains(['*', '%']))?;
    (url.scheme() != "file").then(|| format!("{}://{host}{port}", url.scheme()))
}
