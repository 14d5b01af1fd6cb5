//! The whole server but for its socket and its settings from the environment.

mod admin;
mod client;
pub(crate) mod hidden_keys;
pub(crate) mod projects;
pub(crate) mod providers;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderName, header::AUTHORIZATION, request},
    routing::{any_service, get},
};
use tower::Layer;
use tower_devicecheck::{
    BearerToken, BoxError, DebugTokens, DeviceCheckLayer, HeaderToken,
    split_key::{
        Providers, SplitKeyLayer, SplitKeyStore, TracingSplitKeyObserver, UsageLog,
        gateway::{
            AccessLog, AccessLogLayer, Forward, Gateway, GatewayLayer, ProviderErrors, ProviderHeaderToken,
            Refusals, Target,
        },
    },
};

use self::{client::Client, projects::Project};

/// The operator's choices.
pub(crate) struct Settings {
    pub(crate) providers: Providers,
    /// A file of certificates of authorities, in PEM: trusted besides those of the platform.
    pub(crate) roots: Option<PathBuf>,
    pub(crate) limits: Limits,
    /// Counts the uses of keys.
    pub(crate) usage: UsageLog,
    /// Opens `GET /usage`, which without it does not exist. At least 16 characters.
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
            idle_connections: 64,
        }
    }
}

/// The whole server, a tower service.
pub(crate) type App = AccessLog<Gateway<Router>>;

/// The server for one team. `gate` has its defaults, or remembers something else.
pub(crate) fn app(
    gate: DeviceCheckLayer,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<App, BoxError> {
    let gate = as_clients_send(gate, settings.debug_tokens.clone(), &key_headers(&settings.providers));
    behind(|routes| routes.route_layer(gate), keys, settings)
}

/// The server for these projects only, each with its own team and test key. The debug tokens of `settings` do not count.
pub(crate) fn app_of_projects(
    projects: Vec<Project>,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<App, BoxError> {
    let tenants = projects::tenants(projects, &key_headers(&settings.providers))?;
    behind(|routes| routes.route_layer(tenants), keys, settings)
}

/// The headers in which clients of the providers send their credential, besides `Authorization`.
fn key_headers(providers: &Providers) -> Vec<HeaderName> {
    // Proxed's clients use these for any provider.
    let mut names = ["x-api-key", "x-goog-api-key"].map(HeaderName::from_static).to_vec();
    for provider in providers.iter() {
        let name = provider.key_header();
        if *name != AUTHORIZATION && !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// A gate that finds the credentials where the clients put them.
fn as_clients_send(
    gate: DeviceCheckLayer,
    debug_tokens: DebugTokens,
    key_headers: &[HeaderName],
) -> DeviceCheckLayer {
    // Before the headers of device tokens: beside those, all of a key header is the client part.
    let [first, others @ ..] = key_headers else { return gate };
    let mut gate = gate.with_token_source(ProviderHeaderToken::new(first.clone()));
    for name in others {
        gate = gate.add_token_source(ProviderHeaderToken::new(name.clone()));
    }
    gate.add_token_source(HeaderToken::new(HeaderName::from_static("x-device-token")))
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
    let Settings { providers, roots, limits, usage, admin_token, .. } = settings;
    let refusals = Arc::new(Refusals::new());
    let mut split_keys = SplitKeyLayer::new(keys).with_providers(providers.clone());
    for name in key_headers(&providers) {
        split_keys = split_keys.add_key_header(name);
    }
    let split_keys = split_keys
        .with_project(|head: &request::Parts| head.extensions.get::<Target>()?.project().map(str::to_owned))
        .with_rejection_response(ProviderErrors)
        .with_observer((TracingSplitKeyObserver, usage.clone()));
    let client = Client::new(limits.idle_connections, roots.as_deref());
    let client = client.map_err(|error| format!("PROVIDER_CA_FILE: {error}"))?;
    let forward = Forward::new(client)
        .with_body_limit(limits.body)
        .with_head_timeout(limits.head)
        .with_idle_timeout(limits.idle)
        .with_refusals(Arc::clone(&refusals))
        .with_usage(usage.clone());
    let routes = Router::new().route("/v1/{provider}/{*path}", any_service(forward)).route_layer(split_keys);
    let mut app = guard(routes).route("/health", get(|| async { "ok" }));
    if let Some(token) = admin_token {
        app = app.merge(admin::routes(&token, usage, refusals)?);
    }
    // Outside of the others: what cannot be forwarded costs no call to Apple. Outside of the router, which would keep the
    // URL as the client wrote it, credential included.
    let app = GatewayLayer::new(providers).with_body_limit(limits.body).layer(app);
    Ok(AccessLogLayer::new().layer(app))
}
