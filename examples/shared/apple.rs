//! The Apple that an example asks.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::Router;
use tokio::net::TcpListener;
use tower_devicecheck::{
    AppleClient, BoxError, Credentials, Environment, VerifyErrorKind,
    testing::{FakeApple, FakeAppleServer},
};

use super::{Chain, any_is_set, local_url, orders, variable};

/// The client, and the fake Apple where it asks that.
pub(crate) struct Apple {
    pub(crate) client: AppleClient,
    fake: Option<Fake>,
}

/// A fake Apple in this process. Its server stops when it is dropped.
struct Fake {
    server: FakeAppleServer,
    /// The base URL of the interface for orders, where tokens come from.
    orders: String,
}

/// Our identity at Apple, and the servers that are asked.
const SETTINGS: [&str; 6] = [
    "APPLE_JWT_ISS",
    "APPLE_JWT_KID",
    "APPLE_JWT_PRIVATE_KEY",
    "APPLE_JWT_PRIVATE_KEY_FILE",
    "DEVICECHECK_PRODUCTION_URL",
    "DEVICECHECK_DEVELOPMENT_URL",
];
/// Our identity at Apple.
pub(crate) const CREDENTIALS: [&str; 4] = [SETTINGS[0], SETTINGS[1], SETTINGS[2], SETTINGS[3]];

const URLS: [(Environment, &str); 2] =
    [(Environment::Production, SETTINGS[4]), (Environment::Development, SETTINGS[5])];

impl Apple {
    /// Whether the environment names an Apple. If not, [`from_env`](Self::from_env) makes a fake one.
    pub(crate) fn is_configured() -> Result<bool, BoxError> {
        any_is_set(SETTINGS)
    }

    /// The client of [`AppleClient::from_env`]; where none of its variables is set, a fake Apple on the loopback interface.
    pub(crate) async fn from_env() -> Result<Self, BoxError> {
        Self::from_env_with(|_| Router::new()).await
    }

    /// The same. A fake Apple takes the orders of these routes, too.
    pub(crate) async fn from_env_with(more: impl FnOnce(&FakeApple) -> Router) -> Result<Self, BoxError> {
        if Self::is_configured()? {
            // Where some are missing, this says which.
            Ok(Self { client: AppleClient::from_env()?, fake: None })
        } else {
            Self::fake_with(more).await
        }
    }

    /// The same for one of several teams: the variables of the credentials begin with `prefix`.
    pub(crate) async fn of_team(prefix: &str) -> Result<Self, BoxError> {
        let names = CREDENTIALS.map(|name| format!("{prefix}{name}"));
        let mut values = Vec::new();
        for name in &names {
            values.push(variable(name)?);
        }
        let [team, key, pem, file] = &*values else { return Err("four variables".into()) };
        let credentials = match (team, key, pem, file) {
            (None, None, None, None) if !any_is_set(URLS.map(|(_, name)| name))? => {
                return Self::fake().await;
            }
            (Some(team), Some(key), Some(pem), None) => Credentials::from_pem(team, key, pem),
            (Some(team), Some(key), None, Some(file)) => Credentials::from_pem_file(team, key, file.trim()),
            _ => {
                let [team, key, pem, file] = names;
                return Err(format!("set {team} and {key}, and either {pem} or {file}").into());
            }
        };
        Self::of_credentials(credentials.map_err(|error| format!("{prefix}APPLE_JWT_*: {}", Chain(&error)))?)
    }

    /// A client with these credentials. It asks the servers that the environment names in Apple's place.
    pub(crate) fn of_credentials(credentials: Credentials) -> Result<Self, BoxError> {
        let mut builder = AppleClient::builder(credentials);
        for (environment, name) in URLS {
            if let Some(url) = variable(name)? {
                builder = builder.base_url(environment, url.trim());
            }
        }
        let client = builder.build();
        let names = URLS.map(|(_, name)| name).join(", ");
        Ok(Self { client: client.map_err(|error| format!("{names}: {}", Chain(&error)))?, fake: None })
    }

    pub(crate) async fn fake() -> Result<Self, BoxError> {
        Self::fake_with(|_| Router::new()).await
    }

    pub(crate) async fn fake_with(more: impl FnOnce(&FakeApple) -> Router) -> Result<Self, BoxError> {
        let apple = FakeApple::new();
        // The tokens that are printed are used by hand.
        apple.set_token_lifetime(Duration::from_secs(24 * 60 * 60));
        let server = apple.serve().await?;
        let client = AppleClient::builder(apple.credentials())
            .base_url(Environment::Production, server.url(Environment::Production))
            .base_url(Environment::Development, server.url(Environment::Development))
            .build()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let orders = local_url(listener.local_addr()?);
        let app = more(&apple).merge(orders::app(apple));
        tokio::spawn(axum::serve(listener, app).into_future());
        Ok(Self { client, fake: Some(Fake { server, orders }) })
    }

    /// Lets wrong credentials stop the server, and an outage of Apple's not.
    pub(crate) async fn check(&self, environment: Environment) -> Result<(), BoxError> {
        match self.client.check_credentials(environment).await {
            Err(error) if error.kind() == VerifyErrorKind::Misconfigured => {
                Err(format!("{environment}: {}", Chain(&error)).into())
            }
            Err(error) => {
                tracing::warn!(%environment, "credentials not checked: {}", Chain(&error));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The fake Apple, if that is the one that is asked.
    pub(crate) fn as_fake(&self) -> Option<&FakeApple> {
        self.fake.as_ref().map(|fake| fake.server.apple())
    }

    /// The base URL at which the fake Apple takes orders, if that is the one that is asked.
    pub(crate) fn orders(&self) -> Option<&str> {
        self.fake.as_ref().map(|fake| &*fake.orders)
    }

    /// How to try a server whose clients speak plain HTTP: one request that is admitted, and one that is
    /// not. Empty where Apple is the real one, which nobody can fake a token for.
    pub(crate) fn curl_hints(&self, address: SocketAddr, environment: Environment) -> String {
        let Some(orders) = self.orders() else {
            return String::new();
        };
        let url = local_url(address);
        let genuine = match environment {
            Environment::Development => "token?environment=development",
            _ => "token",
        };
        let curl = |token: &str| {
            format!("curl -i -H \"X-Apple-Device-Token: $(curl -s {orders}/fake/{token})\" {url}/")
        };
        format!(
            "{NO_CREDENTIALS}\n\n# with a new genuine token:\n{}\n\n# with a forged one:\n{}\n\n\
             # an outage of Apple's, an expired token, and more:\ncurl {orders}/fake\n",
            curl(genuine),
            curl("forged"),
        )
    }
}

pub(crate) const NO_CREDENTIALS: &str =
    "No APPLE_JWT_* variables are set, so a fake Apple in this process is asked. Try, in another terminal:";
