//! The whole server but for its socket and its settings from the environment.

mod client;
pub(crate) mod projects;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE},
        request,
    },
    response::{IntoResponse, Response},
    routing::{any_service, get},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tower::Layer;
use tower_devicecheck::{
    BearerToken, BoxError, DebugTokens, DeviceCheckLayer, HeaderToken,
    split_key::{
        Providers, SplitKeyLayer, SplitKeyStore, TracingSplitKeyObserver, UsageLog,
        gateway::{Forward, Gateway, GatewayLayer, ProviderErrors, ProviderHeaderToken, Refusals, Target},
    },
};

use self::{client::Client, projects::Project};

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
    pub(crate) body: u64,
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

/// The whole server, a tower service.
pub(crate) type App = Gateway<Router>;

/// The server for one team. `gate` has its defaults, or remembers something else.
pub(crate) fn app(
    gate: DeviceCheckLayer,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<App, BoxError> {
    let gate = as_clients_send(gate, settings.debug_tokens.clone());
    behind(|routes| routes.route_layer(gate), keys, settings)
}

/// The server for these projects only, each with its own team and test key. The debug tokens of `settings` do not count.
pub(crate) fn app_of_projects(
    projects: Vec<Project>,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<App, BoxError> {
    let tenants = projects::tenants(projects)?;
    behind(|routes| routes.route_layer(tenants), keys, settings)
}

/// A gate that finds the credentials where the clients put them.
fn as_clients_send(gate: DeviceCheckLayer, debug_tokens: DebugTokens) -> DeviceCheckLayer {
    gate.with_token_source(ProviderHeaderToken::new(HeaderName::from_static("x-api-key")))
        .add_token_source(ProviderHeaderToken::new(HeaderName::from_static("x-goog-api-key")))
        .add_token_source(HeaderToken::new(HeaderName::from_static("x-device-token")))
        .add_token_source(HeaderToken::default())
        .add_token_source(BearerToken::new())
        .with_debug_tokens(debug_tokens.with_header(HeaderName::from_static("x-proxed-test-key")))
        .with_rejection_response(ProviderErrors)
}

/// The server behind the gate that `guard` puts in front of the routes.
fn behind(
    guard: impl FnOnce(Router) -> Router,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<App, BoxError> {
    let Settings { providers, limits, admin_token, .. } = settings;
    let usage = Arc::new(UsageLog::new());
    let refusals = Arc::new(Refusals::new());
    let split_keys = SplitKeyLayer::new(keys)
        .add_key_header(HeaderName::from_static("x-api-key"))
        .add_key_header(HeaderName::from_static("x-goog-api-key"))
        .with_project(|head: &request::Parts| head.extensions.get::<Target>()?.project().map(str::to_owned))
        .with_rejection_response(ProviderErrors)
        .with_observer((TracingSplitKeyObserver, Arc::clone(&usage)));
    let forward = Forward::new(Client::new(limits.idle_connections)?)
        .with_body_limit(limits.body)
        .with_head_timeout(limits.head)
        .with_idle_timeout(limits.idle)
        .with_refusals(Arc::clone(&refusals));
    let routes = Router::new().route("/v1/{provider}/{*path}", any_service(forward)).route_layer(split_keys);
    let mut app = guard(routes).route("/health", get(|| async { "ok" }));
    if let Some(token) = admin_token {
        let admin = Admin { token: Sha256::digest(token).into(), usage, refusals };
        app = app.merge(Router::new().route("/usage", get(show_usage)).with_state(admin));
    }
    // Outside of the others: what cannot be forwarded costs no call to Apple. Outside of the router, which would keep the
    // URL as the client wrote it, credential included.
    Ok(GatewayLayer::new(providers).with_body_limit(limits.body).layer(app))
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
    report["refused_by_provider"] = serde_json::from_str(&admin.refusals.to_json()).unwrap_or_default();
    ([(CONTENT_TYPE, "application/json")], report.to_string()).into_response()
}
