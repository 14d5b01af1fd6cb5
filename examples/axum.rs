//! A protected server with axum: `cargo run --example axum --features axum,testing`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the verified device as JSON |
//! | `GET /bits` | the device's two bits, as Apple keeps them for the team |
//! | `PUT /bits` | sets them: `{"bit0": true, "bit1": false}` |
//! | `GET /health` | `ok`, for anybody |
//! | anything else | 404, and Apple is not asked: the layer is a `route_layer` |
//!
//! | variable | value |
//! |---|---|
//! | `APPLE_JWT_ISS`, `APPLE_JWT_KID`, `APPLE_JWT_PRIVATE_KEY` | team id, key id and `.p8` file; without them, a fake Apple in this process is asked |
//! | `DEVICECHECK_PRODUCTION_URL`, `DEVICECHECK_DEVELOPMENT_URL` | asked in the place of Apple's two servers |
//! | `LISTEN` | default `127.0.0.1:3000` |
//! | `ROUTING` | `production` (default), `development`, `fallback` (production, then development) or `header` (the client's `X-Apple-Device-Development` decides) |
//! | `ENFORCEMENT` | `enforce` (default) or `monitor` (every request reaches the handlers, which see the outcome) |
//! | `REDIS_URL` | Redis or Valkey, shared with other copies of this server (build with `--features redis`); default: this process remembers verdicts for itself |
//! | `SINGLE_USE` | `1`: a token admits one request |
//! | `FLEET_SINGLE_FLIGHT` | `1`: of all copies that share a Redis one asks Apple about a token |
//! | `REQUEST_HEAD_TIMEOUT` | seconds until the head of a request has come, default 30; also how long an HTTP/1.1 connection is kept for the next one |
//! | `SHUTDOWN_TIMEOUT` | seconds that requests get to end after SIGTERM or Ctrl-C, default 25 |
//! | `METRICS_LISTEN` | address of `/metrics` for Prometheus, such as `127.0.0.1:9464` (build with `--features _prometheus`); default: none |
//! | `RUST_LOG` | default `info` |
//!
//! When it ends, the server prints a roll-out report, by the client's header `X-App-Version`.

mod shared;

use std::{process::ExitCode, str::FromStr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Extension, State},
    http::request,
    routing::get,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{Apple, Server};
use tower_devicecheck::{
    AppleClient, BitsError, BoxError, DeviceCheckLayer, DeviceOutcome, Enforcement, Environment,
    EnvironmentHeader, RolloutReport, Route, RoutingPolicy, TracingObserver, VerifiedDevice,
};

fn main() -> ExitCode {
    shared::run(serve())
}

async fn serve() -> Result<(), BoxError> {
    let settings = Settings::from_env()?;
    shared::metrics::serve().await?;
    let apple = Apple::from_env().await?;
    apple.check(settings.routing.environment()).await?;
    let report = Arc::new(RolloutReport::by(|head| head.headers.get("x-app-version")?.to_str().ok()));
    let gate = shared::remembering(DeviceCheckLayer::new(apple.client.clone())).await?;
    let gate = gate.with_observer((TracingObserver, Arc::clone(&report)));
    let server = Server::from_env().await?;
    let address = server.address()?;
    shared::announce(address, &apple.curl_hints(address, settings.routing.environment()));
    // `axum::serve` would wait for slow clients for ever.
    server.run(app(gate, apple.client.clone(), settings)).await;
    // Not a route of this server: the report is for the operator, not for whoever asks.
    shared::print(&format!("\n{report}"));
    Ok(())
}

/// The whole server but for its socket. `gate` and the handlers ask the same Apple.
pub(crate) fn app(gate: DeviceCheckLayer, apple: AppleClient, settings: Settings) -> Router {
    let Settings { routing, enforcement } = settings;
    let gate = gate.with_routing(move |head: &request::Parts| match head.uri.path() {
        "/health" => Route::Exempt,
        _ => routing.route(head),
    });
    let root = match enforcement {
        Enforcement::Monitor => get(outcome),
        _ => get(device),
    };
    // There are no bits without a device, so this route is protected even while the others are not.
    let bits = Router::new().route("/bits", get(query_bits).put(update_bits)).route_layer(gate.clone());
    Router::new()
        .route("/", root)
        .route("/health", get(|| async { "ok" }))
        .route_layer(gate.with_enforcement(enforcement))
        .merge(bits)
        .with_state(apple)
}

/// The operator's choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) routing: Routing,
    pub(crate) enforcement: Enforcement,
}

impl Settings {
    fn from_env() -> Result<Self, BoxError> {
        Self::parse(shared::variable("ROUTING")?.as_deref(), shared::variable("ENFORCEMENT")?.as_deref())
    }

    /// A misspelt name must not quietly mean the default.
    pub(crate) fn parse(routing: Option<&str>, enforcement: Option<&str>) -> Result<Self, BoxError> {
        let routing = routing.map_or(Ok(Routing::default()), str::parse)?;
        let enforcement = match enforcement {
            None | Some("enforce") => Enforcement::Enforce,
            Some("monitor") => Enforcement::Monitor,
            Some(_) => return Err("ENFORCEMENT: it is neither \"enforce\" nor \"monitor\"".into()),
        };
        Ok(Self { routing, enforcement })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routing {
    /// The operator decides.
    Fixed(Route),
    /// The client decides; see the docs of [`EnvironmentHeader`] for the danger.
    Header,
}

impl Default for Routing {
    fn default() -> Self {
        Self::Fixed(Route::Production)
    }
}

impl FromStr for Routing {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "production" => Ok(Self::Fixed(Route::Production)),
            "development" => Ok(Self::Fixed(Route::Development)),
            "fallback" => Ok(Self::Fixed(Route::ProductionThenDevelopment)),
            "header" => Ok(Self::Header),
            _ => Err("ROUTING: it is none of \"production\", \"development\", \"fallback\" and \"header\""
                .to_owned()),
        }
    }
}

impl RoutingPolicy for Routing {
    fn route(&self, head: &request::Parts) -> Route {
        match self {
            Self::Fixed(route) => *route,
            Self::Header => EnvironmentHeader::default().route(head),
        }
    }
}

impl Routing {
    /// Where a token must be genuine to be admitted without further ado.
    fn environment(self) -> Environment {
        match self {
            Self::Fixed(Route::Development) => Environment::Development,
            _ => Environment::Production,
        }
    }
}

fn describe(device: &VerifiedDevice) -> Value {
    json!({
        "environment": device.environment().as_str(),
        "evidence": device.evidence().to_string(),
        "digest": device.digest().to_string(),
    })
}

async fn device(device: VerifiedDevice) -> Json<Value> {
    Json(describe(&device))
}

/// In the place of [`device`] while the layer only monitors.
async fn outcome(Extension(outcome): Extension<DeviceOutcome>) -> Json<Value> {
    let mut answer = match &outcome {
        DeviceOutcome::Verified(device) => describe(device),
        _ => json!({}),
    };
    answer["outcome"] = outcome.as_str().into();
    Json(answer)
}

async fn query_bits(
    State(apple): State<AppleClient>,
    device: VerifiedDevice,
) -> Result<Json<Value>, BitsError> {
    let bits = apple.query_bits(&device).await?;
    Ok(Json(json!({
        "bit0": bits.bit0(),
        "bit1": bits.bit1(),
        "last_update": bits.last_update().map(|month| month.to_string()),
    })))
}

#[derive(Deserialize, Serialize)]
struct TwoBits {
    bit0: bool,
    bit1: bool,
}

async fn update_bits(
    State(apple): State<AppleClient>,
    device: VerifiedDevice,
    Json(bits): Json<TwoBits>,
) -> Result<Json<TwoBits>, BitsError> {
    apple.update_bits(&device, bits.bit0, bits.bit1).await?;
    Ok(Json(bits))
}
