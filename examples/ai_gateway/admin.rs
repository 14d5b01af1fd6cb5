//! The operator's pages, behind the admin token.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
            WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tower_devicecheck::{
    BoxError,
    split_key::{UsageLog, gateway::Refusals},
};

/// The page for people. It holds no counts: its script asks for them with the token that the person types.
const PAGE: &str = include_str!("usage.html");

#[derive(Clone)]
struct Admin {
    token: [u8; 32],
    usage: UsageLog,
    refusals: Arc<Refusals>,
}

/// `GET /usage` as JSON, and `GET /usage.html`.
///
/// # Errors
///
/// Returns an error if no header can carry the policy of the page.
pub(crate) fn routes(token: &str, usage: UsageLog, refusals: Arc<Refusals>) -> Result<Router, BoxError> {
    let policy = content_security_policy()?;
    let admin = Admin { token: Sha256::digest(token).into(), usage, refusals };
    let page = async move || {
        ([(CONTENT_SECURITY_POLICY, policy), header(CONTENT_TYPE, "text/html; charset=utf-8")], PAGE)
    };
    let routes =
        Router::new().route("/usage", get(show_usage)).with_state(admin).route("/usage.html", get(page));
    Ok(routes.layer(axum::middleware::map_response(kept_by_nobody)))
}

const fn header(name: HeaderName, value: &'static str) -> (HeaderName, HeaderValue) {
    (name, HeaderValue::from_static(value))
}

async fn kept_by_nobody(mut response: Response) -> Response {
    let headers = [
        header(CACHE_CONTROL, "no-store"),
        header(REFERRER_POLICY, "no-referrer"),
        header(X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    response.headers_mut().extend(headers);
    response
}

/// Lets the page's own script and style run and nothing else, and lets the script ask this server only.
fn content_security_policy() -> Result<HeaderValue, BoxError> {
    let hash = |name: &str| {
        let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
        let text = PAGE.split_once(&*begin).and_then(|(_, rest)| rest.split_once(&*end));
        let text = text.map(|(text, _)| text).unwrap_or_default();
        format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)))
    };
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        hash("script"),
        hash("style")
    );
    Ok(policy.try_into()?)
}

/// The token of a request that has one `Authorization`, and names the scheme in any case (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

async fn show_usage(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    // Digests have all the same length, so that not even that can be measured.
    let digest: [u8; 32] = Sha256::digest(bearer(&headers).unwrap_or_default()).into();
    if !bool::from(digest.ct_eq(&admin.token)) {
        return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")]).into_response();
    }
    let report = match admin.usage.report().await {
        Ok(report) => report.to_json(),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "no usage is shown");
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
    };
    let mut report: serde_json::Value = serde_json::from_str(&report).unwrap_or_default();
    report["refused_by_provider"] = serde_json::from_str(&admin.refusals.to_json()).unwrap_or_default();
    ([header(CONTENT_TYPE, "application/json")], report.to_string()).into_response()
}
