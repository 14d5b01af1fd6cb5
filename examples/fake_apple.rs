//! A fake Apple for back ends in any language: `cargo run --example fake_apple`.
//!
//! It does what Apple's DeviceCheck servers do (see `tower_devicecheck::testing`), on two ports of the loopback
//! interface, one for each environment, and takes orders on a third one. It prints the credentials and URLs
//! that a back end needs to ask it, tokens to try, and the orders that it takes.
//!
//! | variable | value |
//! |---|---|
//! | `LISTEN` | where it is Apple's production server; default `127.0.0.1:3000` |
//! | `LISTEN_DEVELOPMENT` | where it is the development server; default: `LISTEN` with the next port |
//! | `LISTEN_ORDERS` | where it takes orders; default: `LISTEN` with the port after that |
//! | `APPLE_JWT_ISS`, `APPLE_JWT_KID`, `APPLE_JWT_PRIVATE_KEY` or `APPLE_JWT_PRIVATE_KEY_FILE` | the key that it knows; without them, a new one |
//! | `RUST_LOG` | default `info` |

mod shared;

use std::{fs, net::SocketAddr, process::ExitCode, time::Duration};

use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::Deserialize;
use shared::variable;
use tokio::net::{TcpListener, lookup_host};
use tower_devicecheck::{
    BoxError, Credentials, Environment, UnknownEnvironment,
    testing::{FakeApple, Reply, keys::PrivateKey},
};

#[tokio::main]
async fn main() -> ExitCode {
    shared::run(serve()).await
}

async fn serve() -> Result<(), BoxError> {
    let own_key = shared::any_is_set(shared::CREDENTIALS)?;
    let apple = if own_key { with_own_key()? } else { FakeApple::new() };
    // The tokens that are printed are used by hand.
    apple.set_token_lifetime(Duration::from_secs(24 * 60 * 60));

    let production = address("LISTEN", SocketAddr::from(([127, 0, 0, 1], 3000))).await?;
    let development = address("LISTEN_DEVELOPMENT", next(production)).await?;
    let orders = address("LISTEN_ORDERS", next(next(production))).await?;
    let server = apple
        .serve_on(production, development)
        .await
        .map_err(|error| format!("cannot listen on {production} and {development}: {error}"))?;
    let orders = TcpListener::bind(orders)
        .await
        .map_err(|error| format!("LISTEN_ORDERS: cannot listen on {orders}: {error}"))?;

    let urls = Urls {
        production: shared::local_url(server.address(Environment::Production)),
        development: shared::local_url(server.address(Environment::Development)),
        orders: shared::local_url(orders.local_addr()?),
    };
    shared::announce(server.address(Environment::Production), &hints(&apple, &urls, own_key));
    axum::serve(orders, app(apple)).with_graceful_shutdown(shared::ctrl_c()).await?;
    server.shutdown().await;
    Ok(())
}

async fn address(name: &str, default: SocketAddr) -> Result<SocketAddr, BoxError> {
    let Some(text) = variable(name)? else {
        return Ok(default);
    };
    lookup_host(text.trim())
        .await
        .map_err(|error| format!("{name}: it is no address: {error}"))?
        .next()
        .ok_or_else(|| format!("{name}: it has no address").into())
}

/// The same address with the next port; a free port is followed by another one.
fn next(mut address: SocketAddr) -> SocketAddr {
    if address.port() != 0 {
        address.set_port(address.port().wrapping_add(1));
    }
    address
}

/// A fake Apple that knows the key of the back end's own configuration.
fn with_own_key() -> Result<FakeApple, BoxError> {
    // Says what is wrong with them better than anything below.
    let credentials = Credentials::from_env()?;
    let text = match (variable("APPLE_JWT_PRIVATE_KEY")?, variable("APPLE_JWT_PRIVATE_KEY_FILE")?) {
        (Some(text), _) => text,
        (None, Some(path)) => fs::read_to_string(path.trim())?,
        (None, None) => String::new(),
    };
    let text = text.trim().trim_matches(['"', '\'']).replace("\\n", "\n").replace('\r', "");
    let key = PrivateKey::from_pem(&text).map_err(|error| format!("APPLE_JWT_PRIVATE_KEY: {error}"))?;
    Ok(FakeApple::with_key(&key, credentials.team_id(), credentials.key_id()))
}

pub(crate) struct Urls {
    pub(crate) production: String,
    pub(crate) development: String,
    pub(crate) orders: String,
}

/// What a back end needs to ask this Apple. A key that the operator brought is not printed.
pub(crate) fn hints(apple: &FakeApple, urls: &Urls, own_key: bool) -> String {
    let Urls { production, development, orders } = urls;
    let credentials = if own_key {
        "# the APPLE_JWT_* variables that this process has, and:\n".to_owned()
    } else {
        format!(
            "export APPLE_JWT_ISS={}\nexport APPLE_JWT_KID={}\nexport APPLE_JWT_PRIVATE_KEY=\"{}\"\n",
            apple.team_id(),
            apple.key_id(),
            // One line, as .env files have it.
            apple.private_key_pem().trim_end().replace('\n', "\\n"),
        )
    };
    format!(
        "Set for the back end:\n\n\
         {credentials}\
         export DEVICECHECK_PRODUCTION_URL={production}\n\
         export DEVICECHECK_DEVELOPMENT_URL={development}\n\n\
         Device tokens for its clients:\n\n\
         # genuine in production:\n{}\n\n\
         # genuine in development:\n{}\n\n\
         # forged:\n{}\n\n\
         Orders:\n\n\
         # another genuine token; `device` is optional, tokens of one device share its bits\n\
         curl -X POST '{orders}/fake/token?environment=production&device=one'\n\
         # an outage, until further notice; instead of `status`: `fault=hang`, `fault=reset`\n\
         curl -X POST '{orders}/fake/outage?status=503'\n\
         curl -X DELETE '{orders}/fake/outage'\n\
         # slow, but well\n\
         curl -X POST '{orders}/fake/outage?delay_ms=500'\n\
         # how often it was asked\n\
         curl '{orders}/fake/calls'\n",
        apple.genuine_token(Environment::Production),
        apple.genuine_token(Environment::Development),
        apple.forged_token(),
    )
}

/// The interface for orders. Apple itself is served by [`FakeApple::serve_on`].
pub(crate) fn app(apple: FakeApple) -> Router {
    Router::new()
        .route("/fake/token", post(token))
        .route("/fake/outage", post(outage).delete(end_outage))
        .route("/fake/calls", get(calls))
        .with_state(apple)
}

type BadOrder = (StatusCode, String);

fn bad_order(reason: impl Into<String>) -> BadOrder {
    (StatusCode::BAD_REQUEST, reason.into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    environment: Option<String>,
    device: Option<String>,
}

async fn token(State(apple): State<FakeApple>, Query(order): Query<NewToken>) -> Result<String, BadOrder> {
    let environment = match order.environment {
        None => Environment::Production,
        Some(name) => name.parse().map_err(|error: UnknownEnvironment| bad_order(error.to_string()))?,
    };
    Ok(match order.device {
        None => apple.genuine_token(environment),
        Some(device) => apple.genuine_token_of(&device, environment),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outage {
    status: Option<u16>,
    fault: Option<String>,
    delay_ms: Option<u64>,
}

async fn outage(State(apple): State<FakeApple>, Query(order): Query<Outage>) -> Result<StatusCode, BadOrder> {
    let reply = match (order.status, order.fault.as_deref()) {
        (Some(status @ 200..=599), None) => Reply::status(status),
        (Some(status), None) => return Err(bad_order(format!("status {status} is not within 200 and 599"))),
        (None, Some("hang")) => Reply::hang(),
        (None, Some("reset")) => Reply::reset(),
        (None, Some(other)) => return Err(bad_order(format!("fault {other:?} is neither hang nor reset"))),
        (None, None) if order.delay_ms.is_some() => Reply::normal(),
        _ => return Err(bad_order("give one of status and fault, or delay_ms alone")),
    };
    apple.always(reply.delay(Duration::from_millis(order.delay_ms.unwrap_or(0))));
    Ok(StatusCode::NO_CONTENT)
}

async fn end_outage(State(apple): State<FakeApple>) -> StatusCode {
    apple.clear();
    StatusCode::NO_CONTENT
}

async fn calls(State(apple): State<FakeApple>) -> String {
    apple.calls().to_string()
}
