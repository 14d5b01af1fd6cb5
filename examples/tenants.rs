//! Two tenants on one server with axum: `cargo run --example tenants --features axum,session,testing`.
//!
//! The *shop* enforces, has marks, and sells sessions. The *club* has just begun its roll-out: it is in shadow mode.
//! The host of a request chooses the tenant.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the tenant, and how the device was verified, as JSON; in the club, anybody gets an answer |
//! | `POST /session` | shop only: sells a session to a device token, for `GET /` |
//! | `POST /block` | shop only: marks the device whose token it is, so that it gets 403 from then on. In a server of your own, a moderator decides this |
//! | `GET /health` | `ok`, for anybody and every host |
//! | any of them but `/health` for another host | 401, and no Apple is asked |
//!
//! | variable | value |
//! |---|---|
//! | `SHOP_HOST`, `CLUB_HOST` | default `shop.localhost` and `club.localhost` |
//! | `SHOP_APPLE_JWT_ISS`, `SHOP_APPLE_JWT_KID`, `SHOP_APPLE_JWT_PRIVATE_KEY` or `SHOP_APPLE_JWT_PRIVATE_KEY_FILE` | team id, key id and `.p8` file of the shop; without them, it has a fake Apple of its own in this process |
//! | `CLUB_APPLE_JWT_ISS` and so on | the same for the club |
//! | `SHOP_APP_ID` | the name that the keys of sessions are derived with; default `TEAM123456.com.example.shop` |
//! | `SESSION_KEYS` | the key ring; see `tower_devicecheck::session::KeyRing`. Without it, a new key |
//! | `DEVICECHECK_PRODUCTION_URL`, `DEVICECHECK_DEVELOPMENT_URL` | asked in the place of Apple's two servers, for both tenants |
//! | `REDIS_URL`, `SINGLE_USE`, `FLEET_SINGLE_FLIGHT` | as for the example `axum`; both tenants share one Redis, and none of its entries |
//! | `LISTEN` | default `127.0.0.1:3000` |
//! | `REQUEST_HEAD_TIMEOUT`, `SHUTDOWN_TIMEOUT`, `METRICS_LISTEN`, `RUST_LOG` | as for the example `axum` |
//!
//! When it ends, the server prints a roll-out report of each tenant.

mod shared;

use std::{collections::HashMap, process::ExitCode, sync::Arc, time::SystemTime};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use shared::{Apple, Server};
use tower::ServiceExt;
use tower_devicecheck::{
    AppleClient, Bits, BitsError, BoxError, DeviceCheckLayer, Enforcement, Environment, MarkDecision,
    MarkWriter, RolloutReport, TracingObserver, VerifiedDevice,
    session::{Exchange, KeyRing, MasterKey, SessionProof, Sessions},
    tenant::{HostTenants, TenantName, Tenants},
};

const SHOP: &str = "shop";
const CLUB: &str = "club";

fn main() -> ExitCode {
    shared::run(serve())
}

async fn serve() -> Result<(), BoxError> {
    shared::metrics::serve().await?;
    let (shop, club) = (Apple::of_team("SHOP_").await?, Apple::of_team("CLUB_").await?);
    for (name, apple) in [(SHOP, &shop), (CLUB, &club)] {
        apple.check(Environment::Production).await.map_err(|error| format!("{name}: {error}"))?;
    }
    let memory = shared::memory().await?;
    let reports = [SHOP, CLUB].map(|name| (name, Arc::new(RolloutReport::new())));
    let layer = |apple: &Apple, (_, report): &(&str, Arc<RolloutReport>)| {
        let layer = memory(DeviceCheckLayer::new(apple.client.clone()));
        layer.with_observer((TracingObserver, Arc::clone(report)))
    };
    let [of_shop, of_club] = &reports;
    let names = Names {
        shop: shared::variable("SHOP_HOST")?.unwrap_or_else(|| "shop.localhost".to_owned()),
        club: shared::variable("CLUB_HOST")?.unwrap_or_else(|| "club.localhost".to_owned()),
    };
    let shop_settings =
        Shop { layer: layer(&shop, of_shop), apple: shop.client.clone(), sessions: sessions()? };
    let app = app(&names.hosts()?, shop_settings, layer(&club, of_club))?;
    let server = Server::from_env().await?;
    let address = server.address()?;
    shared::announce(address, &hints(&shop, &club, &names, &shared::local_url(address)));
    server.run(app).await;
    for (name, report) in reports {
        shared::print(&format!("\n{name}:\n{report}"));
    }
    Ok(())
}

/// The hosts.
pub(crate) struct Names {
    pub(crate) shop: String,
    pub(crate) club: String,
}

impl Names {
    /// The error quotes no host, because it may be a secret that belongs to another variable.
    pub(crate) fn hosts(&self) -> Result<HostTenants, BoxError> {
        let hosts = HostTenants::new();
        for (variable, host, tenant) in [("SHOP_HOST", &self.shop, SHOP), ("CLUB_HOST", &self.club, CLUB)] {
            hosts.insert(host.trim(), tenant).map_err(|error| format!("{variable}: {error}"))?;
        }
        Ok(hosts)
    }
}

fn sessions() -> Result<Sessions, BoxError> {
    let ring = match shared::variable("SESSION_KEYS")? {
        Some(_) => KeyRing::from_env()?,
        None => KeyRing::new(MasterKey::random()?),
    };
    let app_id = shared::variable("SHOP_APP_ID")?.unwrap_or_else(|| "TEAM123456.com.example.shop".to_owned());
    Ok(Sessions::new(SHOP, app_id.trim(), &ring)?)
}

/// Everything that only the shop has.
pub(crate) struct Shop {
    pub(crate) layer: DeviceCheckLayer,
    /// The client that `layer` asks.
    pub(crate) apple: AppleClient,
    /// Named after the tenant. Others would be refused.
    pub(crate) sessions: Sessions,
}

/// The whole server but for its socket.
pub(crate) fn app(hosts: &HostTenants, shop: Shop, club: DeviceCheckLayer) -> Result<Router, BoxError> {
    // The tenant comes before the handle, so that both forget the same marks.
    let by_token = shop.layer.with_tenant(SHOP)?.with_marks(policy);
    let club = club.with_enforcement(Enforcement::Shadow);
    let only_shop = |name: TenantName| Handlers {
        exchanges: Arc::new([(name.clone(), Exchange::new(shop.sessions.clone()))].into()),
        writers: Arc::new([(name, by_token.mark_writer(shop.apple))].into()),
    };
    let handlers = only_shop(SHOP.parse()?);
    let by_session = by_token.clone().with_sessions(SessionProof::new(shop.sessions.clone()));
    let tenants = |shop: DeviceCheckLayer| {
        Tenants::new(hosts.clone()).with(SHOP, shop).and_then(|tenants| tenants.with(CLUB, club.clone()))
    };
    // A session buys no session and has no bits, so these routes take device tokens only.
    let tokens_only = Router::new()
        .route("/session", post(sell_session))
        .route("/block", post(block))
        .route_layer(tenants(by_token)?)
        .with_state(handlers);
    Ok(Router::new()
        .route("/", get(show))
        .route_layer(tenants(by_session)?)
        .merge(tokens_only)
        .route("/health", get(|| async { "ok" })))
}

/// The second bit means "blocked", for half a year.
fn policy(bits: Bits, now: SystemTime) -> MarkDecision {
    match (bits.bit1(), bits.months_since_update(now)) {
        (true, Some(0..=6)) => MarkDecision::Deny,
        _ => MarkDecision::Admit,
    }
}

/// The tenants that have the service in question.
#[derive(Clone)]
struct Handlers {
    exchanges: Arc<HashMap<TenantName, Exchange>>,
    writers: Arc<HashMap<TenantName, MarkWriter>>,
}

/// In shadow mode there is no device, and no tenant.
async fn show(device: Option<VerifiedDevice>) -> Json<Value> {
    Json(match device {
        Some(device) => json!({
            "tenant": device.tenant().map(TenantName::as_str),
            "environment": device.environment().as_str(),
            "evidence": device.evidence().to_string(),
        }),
        None => json!({ "tenant": null }),
    })
}

/// The tenant whose gate has admitted the request chooses the exchange. No header does.
async fn sell_session(State(handlers): State<Handlers>, request: Request) -> Response {
    let device = request.extensions().get::<VerifiedDevice>();
    let tenant = device.and_then(VerifiedDevice::tenant);
    let Some(exchange) = tenant.and_then(|tenant| handlers.exchanges.get(tenant)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    exchange.clone().oneshot(request).await.into_response()
}

async fn block(
    State(handlers): State<Handlers>,
    device: Option<VerifiedDevice>,
) -> Result<StatusCode, BitsError> {
    let Some(device) = device else { return Ok(StatusCode::NOT_FOUND) };
    let Some(writer) = device.tenant().and_then(|tenant| handlers.writers.get(tenant)) else {
        return Ok(StatusCode::NOT_FOUND);
    };
    writer.update(&device, None, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How to try it. Empty unless both Apples are fakes.
fn hints(shop: &Apple, club: &Apple, names: &Names, url: &str) -> String {
    let (Some(shop), Some(club)) = (shop.orders(), club.orders()) else { return String::new() };
    let to = |host: &str| format!("curl -i -H \"Host: {host}\"");
    let token = |orders: &str| format!("-H \"X-Apple-Device-Token: $(curl -s {orders})\"");
    let (to_shop, of_shop) = (to(names.shop.trim()), token(&format!("{shop}/fake/token")));
    let of_phone = token(&format!("{shop}/fake/token?device=phone"));
    let (to_club, of_club) = (to(names.club.trim()), token(&format!("{club}/fake/token")));
    let to_nobody = to("nobody.localhost");
    format!(
        "No SHOP_APPLE_JWT_* and CLUB_APPLE_JWT_* variables are set, so two fake Apples in this process are asked. \
         Try, in another terminal:\n\n\
         # a device of the shop:\n{to_shop} {of_shop} {url}/\n\n\
         # a device of the club, in the shop:\n{to_shop} {of_club} {url}/\n\n\
         # no device, in the club, which only watches:\n{to_club} {url}/\n\n\
         # a host of nobody:\n{to_nobody} {of_shop} {url}/\n\n\
         # buy a session:\n{to_shop} -X POST {of_shop} {url}/session\n\n\
         # block a device, and come back with it:\n{to_shop} -X POST {of_phone} {url}/block\n{to_shop} {of_phone} {url}/\n"
    )
}
