//! The whole server but for its socket and its settings from the environment.

pub(crate) mod body;
mod headers;
mod problem;
pub(crate) mod projects;
mod proxy;
mod query;
pub(crate) mod refusals;
pub(crate) mod target;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{OriginalUri, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE},
        request,
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodFilter, get, on},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tower_devicecheck::{
    BearerToken, BoxError, DebugTokens, DeviceCheckLayer, HeaderToken, HttpProblemDetails, TokenSource,
    split_key::{SplitKeyLayer, SplitKeyStore, TracingSplitKeyObserver, UsageLog},
};

use self::{
    problem::Problem,
    projects::Project,
    proxy::Proxy,
    refusals::Refusals,
    target::{Providers, Target},
};

/// The operator's choices.
pub(crate) struct Settings {
    pub(crate) providers: Providers,
    pub(crate) limits: Limits,
    /// Opens `GET /usage`, which without it does not exist.
    pub(crate) admin_token: Option<String>,
    /// Stand in for a device: for simulators.
    pub(crate) debug_tokens: DebugTokens,
}

/// How much, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of a request's body.
    pub(crate) body: usize,
    /// From the end of the checks to the head of the provider's response.
    pub(crate) head: Duration,
    /// Between two pieces of a body, either way. There is no limit to the whole.
    pub(crate) idle: Duration,
    /// Connections to one provider that are kept when nobody uses them.
    pub(crate) idle_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 32 * 1024 * 1024,
            head: Duration::from_secs(300),
            idle: Duration::from_secs(120),
            idle_connections: 0,
        }
    }
}

/// Those that no provider answers with the request itself, as `TRACE` would.
const METHODS: MethodFilter = MethodFilter::GET
    .or(MethodFilter::HEAD)
    .or(MethodFilter::POST)
    .or(MethodFilter::PUT)
    .or(MethodFilter::PATCH)
    .or(MethodFilter::DELETE);

/// The server for one team. `gate` has its defaults, or remembers something else.
pub(crate) fn app(
    gate: DeviceCheckLayer,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<Router, BoxError> {
    let gate = as_clients_send(gate, settings.debug_tokens.clone());
    behind(|routes| routes.route_layer(gate), keys, settings)
}

/// The server for these projects only, each with its own team and test key. The debug tokens of `settings` do not count.
pub(crate) fn app_of_projects(
    projects: Vec<Project>,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<Router, BoxError> {
    let tenants = projects::tenants(projects)?;
    behind(|routes| routes.route_layer(tenants), keys, settings)
}

/// A gate that finds the credentials where the clients put them.
fn as_clients_send(gate: DeviceCheckLayer, debug_tokens: DebugTokens) -> DeviceCheckLayer {
    gate.with_token_source(after_last_dot(HeaderName::from_static("x-api-key")))
        .add_token_source(after_last_dot(HeaderName::from_static("x-goog-api-key")))
        .add_token_source(HeaderToken::new(HeaderName::from_static("x-device-token")))
        .add_token_source(HeaderToken::default())
        .add_token_source(BearerToken::new())
        .with_debug_tokens(debug_tokens.with_header(HeaderName::from_static("x-proxed-test-key")))
        .with_rejection_response(HttpProblemDetails)
}

/// The server behind the gate that `guard` puts in front of the routes.
fn behind(
    guard: impl FnOnce(Router) -> Router,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<Router, BoxError> {
    let Settings { providers, limits, admin_token, .. } = settings;
    let usage = Arc::new(UsageLog::new());
    let refusals = Arc::new(Refusals::default());
    let split_keys = SplitKeyLayer::new(keys)
        .add_key_header(HeaderName::from_static("x-api-key"))
        .add_key_header(HeaderName::from_static("x-goog-api-key"))
        .with_project(|head: &request::Parts| head.extensions.get::<Target>()?.project.clone())
        .with_rejection_response(HttpProblemDetails)
        .with_observer((TracingSplitKeyObserver, Arc::clone(&usage)));
    let routes = Router::new()
        .route("/v1/{provider}/{*path}", on(METHODS, proxy::forward).fallback(|| async { Problem::METHOD }))
        .with_state(Proxy::new(limits, Arc::clone(&refusals))?)
        .route_layer(split_keys);
    let mut app = guard(routes)
        // Outside of the others: what cannot be forwarded costs no call to Apple.
        .route_layer(middleware::from_fn_with_state((providers, limits), resolve))
        .route_layer(middleware::from_fn(problem::in_the_providers_shape))
        .route("/health", get(|| async { "ok" }));
    if let Some(token) = admin_token {
        let admin = Admin { token: Sha256::digest(token).into(), usage, refusals };
        app = app.merge(Router::new().route("/usage", get(show_usage)).with_state(admin));
    }
    // Also where there is no route: a tunnel has no path.
    Ok(app.layer(middleware::from_fn(one_protocol)))
}

/// The device token of clients that have no other header to put it in than that of their provider:
/// `<client part>.<device token>`. The client part is left there, for the split keys.
fn after_last_dot(name: HeaderName) -> impl TokenSource {
    move |head: &mut request::Parts| {
        // Beside a device token in a header of its own, all of it is the client part.
        let elsewhere = ["x-device-token", "x-apple-device-token"];
        if elsewhere.iter().any(|name| head.headers.contains_key(*name)) {
            return None;
        }
        let mut values = head.headers.get_all(&name).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let dot = value.as_bytes().iter().rposition(|byte| *byte == b'.')?;
        let (client_part, token) = value.as_bytes().split_at(dot);
        let mut token = HeaderValue::from_bytes(&token[1..]).ok()?;
        let mut client_part = HeaderValue::from_bytes(client_part).ok()?;
        token.set_sensitive(true);
        client_part.set_sensitive(true);
        head.headers.insert(&name, client_part);
        Some(token)
    }
}

/// Refuses requests for WebSockets, tunnels and all that is to follow HTTP on the connection.
async fn one_protocol(request: Request, next: Next) -> Response {
    if request.method() == Method::CONNECT || headers::want_upgrade(request.headers()) {
        return Problem::UPGRADE.into_response();
    }
    next.run(request).await
}

/// Media types of bodies that hold requests, or parameters that servers read as if they were in the URL.
fn is_form_or_batch(media_type: &HeaderValue) -> bool {
    let text = String::from_utf8_lossy(media_type.as_bytes()).to_ascii_lowercase();
    let media_type = text.split([';', ',']).next().unwrap_or_default().trim();
    let listed =
        ["application/x-www-form-urlencoded", "application/http", "multipart/mixed", "multipart/batch"];
    listed.contains(&media_type) || media_type.starts_with("message/")
}

/// Finds out where a request goes, and gives its path the one spelling that the limits of keys know.
async fn resolve(
    State((providers, limits)): State<(Providers, Limits)>,
    mut request: Request,
    next: Next,
) -> Response {
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.and_then(|text| text.parse().ok()).is_some_and(|length: usize| length > limits.body) {
        return Problem::TOO_LARGE.into_response();
    }
    if request.headers().get_all(CONTENT_TYPE).iter().any(is_form_or_batch) {
        return Problem::BAD_MEDIA_TYPE.into_response();
    }
    match Target::of(request.uri(), request.headers(), &providers) {
        Ok(mut target) => {
            *request.uri_mut() = target.path.clone();
            request.extensions_mut().remove::<OriginalUri>();
            // From here on, it is in the header that Google's SDKs use. Beside another one there, it is refused.
            if let Some(credential) = target.credential.take().filter(|text| !text.is_empty()) {
                let name = HeaderName::from_static("x-goog-api-key");
                if request.headers().get(&name) != Some(&credential) {
                    request.headers_mut().append(name, credential);
                }
            }
            request.extensions_mut().insert(target);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

#[derive(Clone)]
struct Admin {
    token: [u8; 32],
    usage: Arc<UsageLog>,
    refusals: Arc<Refusals>,
}

async fn show_usage(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let sent = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let sent = sent.strip_prefix(b"Bearer ").unwrap_or_default();
    // Digests have all the same length, so that not even that can be measured.
    let digest: [u8; 32] = Sha256::digest(sent).into();
    if !bool::from(digest.ct_eq(&admin.token)) {
        return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")]).into_response();
    }
    let mut report: serde_json::Value = serde_json::from_str(&admin.usage.to_json()).unwrap_or_default();
    report["refused_by_provider"] = admin.refusals.to_json();
    ([(CONTENT_TYPE, "application/json")], report.to_string()).into_response()
}
