//! The whole server but for its socket and its settings from the environment.

mod admin;
mod client;
pub(crate) mod cors;
pub(crate) mod hidden_keys;
pub(crate) mod models;
pub(crate) mod projects;
pub(crate) mod providers;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Response, StatusCode, header::AUTHORIZATION, request},
    middleware,
    routing::{any_service, get},
};
use tower::{
    Layer,
    util::{Either, MapResponseLayer, option_layer},
};
use tower_devicecheck::{
    BearerToken, BoxError, DebugTokens, DeviceCheckLayer, HeaderToken,
    split_key::{
        Providers, SplitKeyLayer, SplitKeyStore, TracingSplitKeyObserver, UsageLog,
        gateway::{
            AccessLog, AccessLogLayer, Forward, Gateway, GatewayLayer, ProviderErrors, ProviderHeaderToken,
            Refusals, Target,
        },
    },
    tenant::Tenants,
};
use tower_http::cors::{Cors, CorsLayer};

use self::{client::Client, models::Models, projects::Project};

/// The operator's choices.
pub(crate) struct Settings {
    pub(crate) providers: Providers,
    /// The models that anybody may ask for, by provider.
    pub(crate) models: Models,
    /// A file of certificates of authorities, in PEM: trusted besides those of the platform.
    pub(crate) roots: Option<PathBuf>,
    pub(crate) limits: Limits,
    /// Counts the uses of keys.
    pub(crate) usage: UsageLog,
    /// Opens `GET /usage`, which without it does not exist. At least 16 characters.
    pub(crate) admin_token: Option<String>,
    /// Stand in for a device: for simulators.
    pub(crate) debug_tokens: DebugTokens,
    /// The pages that may call the gateway, if any may.
    pub(crate) cors: Option<CorsLayer>,
    /// Whether a device token admits one request only.
    pub(crate) single_use: bool,
}

/// How much, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of a request's body.
    pub(crate) body: u64,
    /// The client's silence within its body. There is no limit to the whole.
    pub(crate) upload: Duration,
    /// From the client's last piece to the head of the provider's response.
    pub(crate) head: Duration,
    /// The provider's silence within its response. There is no limit to the whole.
    pub(crate) idle: Duration,
    /// Connections to one provider that are kept when nobody uses them.
    pub(crate) idle_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 32 * 1024 * 1024,
            upload: Duration::from_secs(120),
            head: Duration::from_secs(600),
            idle: Duration::from_secs(600),
            idle_connections: 64,
        }
    }
}

/// The whole server, a tower service.
pub(crate) type App = AccessLog<Either<Cors<Gateway<Router>>, Gateway<Router>>>;

/// The server for one team. `gate` has its defaults, or remembers something else.
pub(crate) fn app(
    gate: DeviceCheckLayer,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<App, BoxError> {
    let gate = as_clients_send(gate, settings.debug_tokens.clone(), &key_headers(&settings.providers));
    behind(Guard::Team(gate), keys, settings)
}

/// The server for these projects only, each with its own team and test key. The debug tokens of `settings` do not count.
pub(crate) fn app_of_projects(
    projects: Vec<Project>,
    keys: impl SplitKeyStore,
    settings: Settings,
) -> Result<App, BoxError> {
    let tenants = projects::tenants(projects, &key_headers(&settings.providers))?;
    behind(Guard::Projects(tenants), keys, settings)
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
        // As Proxed does: its clients in simulators may send another credential beside it.
        .with_debug_tokens(debug_tokens.with_header(HeaderName::from_static("x-proxed-test-key")).first())
        .with_rejection_response(ProviderErrors)
}

/// Stands in front of the providers.
enum Guard {
    Team(DeviceCheckLayer),
    Projects(Tenants),
}

fn behind(guard: Guard, keys: impl SplitKeyStore, settings: Settings) -> Result<App, BoxError> {
    let Settings { providers, models, roots, limits, usage, admin_token, cors, single_use, .. } = settings;
    let keys = Arc::new(keys);
    let checked_keys = Arc::clone(&keys);
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
        .with_upload_timeout(limits.upload)
        .with_head_timeout(limits.head)
        .with_idle_timeout(limits.idle)
        .with_refusals(Arc::clone(&refusals))
        .with_usage(usage.clone());
    let forward = option_layer(single_use.then(|| MapResponseLayer::new(without_retry))).layer(forward);
    let keyed = split_keys.layer(forward);
    // One service, and not a layer of the router for each, which would box each request.
    let provided = match guard {
        Guard::Team(gate) => any_service(gate.layer(keyed)),
        Guard::Projects(tenants) => any_service(tenants.layer(keyed)),
    };
    let models = (models, Arc::from(key_headers(&providers)));
    let models = provided.clone().layer(middleware::from_fn_with_state(models, models::public));
    let health = get(async move || match checked_keys.check().await {
        Ok(()) => (StatusCode::OK, "ok"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the key store failed: see the log"),
    });
    let mut app = Router::new()
        .route("/v1/{provider}/{*path}", provided)
        .route("/v1/{provider}/models", models)
        .route("/health", health)
        .route("/live", get(|| async { "ok" }));
    if let Some(token) = admin_token {
        app = app.merge(admin::routes(&token, usage, refusals)?);
    }
    // Outside of the others: what cannot be forwarded costs no call to Apple. Outside of the router, which would keep the
    // URL as the client wrote it, credential included.
    let app = GatewayLayer::new(providers).with_body_limit(limits.body).layer(app);
    // Outside of all that refuses: a preflight has no credentials, and a refusal must be readable.
    Ok(AccessLogLayer::new().layer(option_layer(cors).layer(app)))
}

/// Tells SDKs to show an error rather than to repeat the request: its device token is spent, so that they would get 401 and
/// show that. Releasing the token instead would let anybody who saw it use it until the provider is content.
fn without_retry<B>(mut response: Response<B>) -> Response<B> {
    let status = response.status();
    if status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 429) {
        let name = HeaderName::from_static("x-should-retry");
        response.headers_mut().insert(name, HeaderValue::from_static("false"));
    }
    response
}
