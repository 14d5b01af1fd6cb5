//! A fake Apple for back ends in any language: `cargo run --example fake_apple --features testing`.
//!
//! It does what Apple's DeviceCheck servers do (see `tower_devicecheck::testing`), on two ports of the loopback
//! interface, one for each environment, and takes orders on a third one. It prints the credentials and URLs
//! that a back end needs to ask it, and the orders that it takes: for tokens, expiry, revocation, outages and counts.
//! `--help` and `GET /fake` list them.
//!
//! | variable | value |
//! |---|---|
//! | `LISTEN` | where it is Apple's production server; default `127.0.0.1:3000` |
//! | `LISTEN_DEVELOPMENT` | where it is the development server; default: `LISTEN` with the next port |
//! | `LISTEN_ORDERS` | where it takes orders; default: `LISTEN` with the port after that |
//! | `APPLE_JWT_ISS`, `APPLE_JWT_KID`, `APPLE_JWT_PRIVATE_KEY` or `APPLE_JWT_PRIVATE_KEY_FILE` | the key that it knows; without them, a new one |
//! | `REQUEST_HEAD_TIMEOUT` | seconds until the head of an order has come, default 30; calls to the fake Apple have no limit |
//! | `SHUTDOWN_TIMEOUT` | seconds that requests get to end after SIGTERM or Ctrl-C, default 25 |
//! | `RUST_LOG` | default `info` |

mod shared;

use std::{fs, net::SocketAddr, process::ExitCode, time::Duration};

use shared::{Server, ctrl_c, orders, variable};
use tokio::{
    net::{TcpListener, lookup_host},
    time::timeout,
};
use tower_devicecheck::{
    BoxError, Credentials, Environment,
    testing::{FakeApple, PrivateKey},
};

fn main() -> ExitCode {
    if std::env::args().len() > 1 {
        shared::print(orders::HELP);
        return ExitCode::SUCCESS;
    }
    shared::run(serve())
}

async fn serve() -> Result<(), BoxError> {
    let own_key = shared::any_is_set(shared::apple::CREDENTIALS)?;
    let apple = if own_key { with_own_key()? } else { FakeApple::new() };
    // The tokens that are printed are used by hand.
    apple.set_token_lifetime(Duration::from_secs(24 * 60 * 60));

    let limits = shared::limits()?;
    let production = address("LISTEN", SocketAddr::from(([127, 0, 0, 1], 3000))).await?;
    let development = address("LISTEN_DEVELOPMENT", next(production)).await?;
    let orders = address("LISTEN_ORDERS", next(next(production))).await?;
    let mut server = apple
        .serve_on(production, development)
        .await
        .map_err(|error| format!("cannot listen on {production} and {development}: {error}"))?;
    let orders = TcpListener::bind(orders)
        .await
        .map_err(|error| format!("LISTEN_ORDERS: cannot listen on {orders}: {error}"))?;
    let orders = Server::with_listener(orders, limits);

    let urls = Urls {
        production: shared::local_url(server.address(Environment::Production)),
        development: shared::local_url(server.address(Environment::Development)),
        orders: shared::local_url(orders.address()?),
    };
    shared::announce(server.address(Environment::Production), &hints(&apple, &urls, own_key));
    let drained = async {
        ctrl_c().await;
        // Cuts the connections that take longer when it is dropped.
        let _ = timeout(limits.shutdown, server.drain()).await;
    };
    tokio::join!(orders.run(orders::app(apple)), drained);
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

/// The settings with which a back end asks this Apple. A key that the operator brought is not printed.
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
            apple.private_key().to_pem().trim_end().replace('\n', "\\n"),
        )
    };
    format!(
        "Set for the back end:\n\n\
         {credentials}\
         export DEVICECHECK_PRODUCTION_URL={production}\n\
         export DEVICECHECK_DEVELOPMENT_URL={development}\n\n\
         `AppleClient::from_env()` reads these. Set for the commands below:\n\n\
         export FAKE_APPLE={orders}\n\n\
         {}",
        orders::HELP
    )
}
