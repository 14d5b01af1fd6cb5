//! A Cloudflare Worker that lets only requests from genuine Apple devices through.
//!
//! The README has the steps. Your own part begins at `routes`.

mod apple;
mod kv;
mod log;

use std::sync::OnceLock;

use axum::{Router, body::Body, http::Response, routing::get};
use tower::{ServiceExt, service_fn};
use tower_devicecheck::{
    AppleClient, BoxError, Credentials, DeviceCheckLayer, Environment, EnvironmentHeader, HttpTransport,
    VerifiedDevice,
    cache::{MemoryCache, Tiered},
};
use worker::{Context, Env, HttpRequest, event};

fn routes(gate: DeviceCheckLayer) -> Router {
    let protected = Router::new().route("/", get(hello)).route_layer(gate);
    protected.route("/health", get(|| async { "ok" })) // after the layer: not protected
}

async fn hello(device: VerifiedDevice) -> String {
    format!("hello, device verified by {}\n", device.evidence())
}

/// One router for all requests of the isolate, so that they share the verdicts in its memory.
static ROUTER: OnceLock<Router> = OnceLock::new();

#[event(start)]
fn start() {
    log::to_console();
}

#[event(fetch)]
async fn fetch(request: HttpRequest, env: Env, _: Context) -> worker::Result<Response<Body>> {
    let router = match ROUTER.get() {
        Some(router) => router.clone(),
        // Nothing waits here, so no other request comes between.
        None => {
            let gate = gate(&env).map_err(|error| worker::Error::RustError(error.to_string()))?;
            ROUTER.get_or_init(|| routes(gate)).clone()
        }
    };
    match router.oneshot(request).await {
        Ok(response) => Ok(response),
        Err(never) => match never {},
    }
}

/// The gate, from the bindings of the Worker.
fn gate(env: &Env) -> Result<DeviceCheckLayer, BoxError> {
    let secret = |name: &str| {
        let value =
            env.secret(name).map_err(|_| format!("{name} is missing: `wrangler secret put {name}`"))?;
        Ok::<_, BoxError>(value.to_string())
    };
    let credentials = Credentials::from_pem(
        &secret("APPLE_JWT_ISS")?,
        &secret("APPLE_JWT_KID")?,
        &secret("APPLE_JWT_PRIVATE_KEY")?,
    )?;
    let variable =
        |name: &str| env.var(name).map(|value| value.to_string()).ok().filter(|value| !value.is_empty());
    let mut apple = AppleClient::builder(credentials).transport(HttpTransport::new(service_fn(apple::send)));
    // Another server in Apple's place, for tests.
    for (environment, name) in [
        (Environment::Production, "DEVICECHECK_PRODUCTION_URL"),
        (Environment::Development, "DEVICECHECK_DEVELOPMENT_URL"),
    ] {
        if let Some(url) = variable(name) {
            apple = apple.base_url(environment, url);
        }
    }
    if let Some(limit) = variable("IN_FLIGHT_LIMIT") {
        apple = apple.in_flight_limit(limit.parse().map_err(|_| "IN_FLIGHT_LIMIT is no number")?);
    }
    let verdicts = kv::KvCache::new(env.kv("VERDICTS").map_err(|_| "the KV namespace VERDICTS is missing")?);
    let gate = DeviceCheckLayer::new(apple.build()?)
        .with_cache(Tiered::new(MemoryCache::with_capacity(10_000, 1_000), verdicts));
    // The client chooses the environment, as with Bearologics' Worker: see `EnvironmentHeader` for the danger.
    Ok(match variable("DEVELOPMENT_HEADER").as_deref() {
        Some("true") => gate.with_routing(EnvironmentHeader::default()),
        _ => gate,
    })
}
