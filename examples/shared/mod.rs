//! Shared by the examples: the way they start, and the Apple that they ask.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "programs for a terminal")]
#![allow(dead_code, reason = "no example uses all of it")]

#[cfg(feature = "split-key")]
pub(crate) mod keys;
pub(crate) mod metrics;
pub(crate) mod orders;
pub(crate) mod serve;

use std::{
    env::{self, VarError},
    error::Error,
    fmt,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use tokio::net::TcpListener;
use tower::Service;
use tower_devicecheck::{
    AppleClient, BoxError, Credentials, DeviceCheckLayer, Environment, VerifyErrorKind,
    replay::MemoryReplayGuard,
    testing::{FakeApple, FakeAppleServer},
};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// The `main` of every example: logs to stderr as `RUST_LOG` says (default `info`), runs, and tells
/// what went wrong.
pub(crate) fn run(example: impl Future<Output = Result<(), BoxError>>) -> ExitCode {
    match start_logging().and_then(|()| block_on(example)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", Chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Runs on the runtime of `#[tokio::main]`, which at its end, however, waits for every name that is being looked up.
pub(crate) fn block_on<T>(example: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    // On one processor, threads would only take turns.
    let mut runtime = match std::thread::available_parallelism() {
        Ok(processors) if processors.get() == 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let outcome = runtime.block_on(example);
    runtime.shutdown_background();
    outcome
}

fn start_logging() -> Result<(), BoxError> {
    let filter = match variable("RUST_LOG")? {
        Some(text) => text.trim().parse::<Targets>().map_err(|error| format!("RUST_LOG: {error}"))?,
        None => Targets::new().with_default(tracing::Level::INFO),
    };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(io::stderr);
    tracing_subscriber::registry().with(lines).with(filter).try_init()?;
    Ok(())
}

/// An error and what caused it, in one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// An environment variable. One with nothing but white space in it counts as not set.
pub(crate) fn variable(name: &str) -> Result<Option<String>, BoxError> {
    match env::var(name) {
        Ok(value) if value.trim().is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(format!("{name}: it is not UTF-8 text").into()),
    }
}

/// The harmless parts of a URL that the operator gave: scheme, host, port and path. No value of a setting is printed
/// but in this way, because it may be a secret, or one that belongs to another setting.
pub(crate) fn shown_url(text: &str) -> String {
    let Ok(url) = text.trim().parse::<reqwest::Url>() else { return "a text that is no URL".to_owned() };
    // Where the `@` is not the parser's, a part of a password may be anywhere.
    let readable = !text.contains('@') || !url.username().is_empty() || url.password().is_some();
    match url.host_str() {
        Some(host) if readable && !url.path().contains('@') => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{host}{port}{}", url.scheme(), url.path())
        }
        _ => "a URL that cannot be shown".to_owned(),
    }
}

pub(crate) fn any_is_set<const N: usize>(names: [&str; N]) -> Result<bool, BoxError> {
    for name in names {
        if variable(name)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An environment variable that is on (`1` or `true`) or off (`0`, `false` or not set).
pub(crate) fn switch(name: &str) -> Result<bool, BoxError> {
    match variable(name)?.as_deref().map(str::trim) {
        None | Some("0" | "false") => Ok(false),
        Some("1" | "true") => Ok(true),
        Some(_) => Err(format!("{name}: it is neither \"1\" nor \"0\"").into()),
    }
}

/// Gives layers the memory of this server. All of them share it, but for the memory that each layer has by default.
pub(crate) type Memory = Box<dyn Fn(DeviceCheckLayer) -> DeviceCheckLayer>;

/// Lets the layer remember what `REDIS_URL`, `SINGLE_USE` and `FLEET_SINGLE_FLIGHT` say. By default it
/// remembers verdicts in the memory of this process.
pub(crate) async fn remembering(layer: DeviceCheckLayer) -> Result<DeviceCheckLayer, BoxError> {
    Ok(memory().await?(layer))
}

/// The same for several layers, with one connection to Redis.
pub(crate) async fn memory() -> Result<Memory, BoxError> {
    let (single_use, fleet) = (switch("SINGLE_USE")?, switch("FLEET_SINGLE_FLIGHT")?);
    match variable("REDIS_URL")? {
        Some(url) => memory_in_redis(url.trim(), single_use, fleet).await,
        None if fleet => Err("FLEET_SINGLE_FLIGHT needs REDIS_URL".into()),
        None if single_use => {
            let guard = Arc::new(MemoryReplayGuard::new());
            Ok(Box::new(move |layer| layer.with_single_use(Arc::clone(&guard))))
        }
        None => Ok(Box::new(|layer| layer)),
    }
}

/// The Redis that `REDIS_URL` names.
#[cfg(feature = "redis")]
async fn memory_in_redis(url: &str, single_use: bool, fleet: bool) -> Result<Memory, BoxError> {
    use tower_devicecheck::{
        cache::{MemoryCache, RedisCache, Tiered},
        replay::RedisReplayGuard,
    };

    let redis = redis(url).await?;
    if single_use {
        // One request with a token reaches Apple, so that there is nothing to share.
        let guard = Arc::new(RedisReplayGuard::new(redis));
        return Ok(Box::new(move |layer| layer.with_single_use(Arc::clone(&guard))));
    }
    let mut cache = RedisCache::new(redis);
    if fleet {
        cache = cache.with_fleet_single_flight(Duration::from_secs(2));
    }
    let cache = Arc::new(Tiered::new(MemoryCache::new(), cache));
    Ok(Box::new(move |layer| layer.with_cache(Arc::clone(&cache))))
}

/// The server at `REDIS_URL`.
#[cfg(feature = "redis")]
pub(crate) async fn redis(url: &str) -> Result<tower_devicecheck::Redis, BoxError> {
    // The errors of the client quote no URL, but the next version's may.
    tower_devicecheck::Redis::connect(url).await.map_err(|error| {
        let why = error.to_string();
        let quoted = url.len() > 3 && why.contains(url);
        format!("REDIS_URL: {}", if quoted { "it is not a URL of Redis" } else { &*why }).into()
    })
}

#[cfg(not(feature = "redis"))]
async fn memory_in_redis(_: &str, _: bool, _: bool) -> Result<Memory, BoxError> {
    Err("REDIS_URL: build the example with --features redis".into())
}

/// A server that listens, and serves until Ctrl-C or SIGTERM.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    limits: serve::Limits,
}

impl Server {
    /// Listens where `LISTEN` says, by default at `127.0.0.1:3000`.
    pub(crate) async fn from_env() -> Result<Self, BoxError> {
        let limits = limits()?;
        let address = variable("LISTEN")?.unwrap_or_else(|| "127.0.0.1:3000".to_owned());
        let listener = TcpListener::bind(address.trim())
            .await
            .map_err(|error| format!("LISTEN: cannot listen there: {error}"))?;
        Ok(Self { listener, limits })
    }

    pub(crate) const fn with_listener(listener: TcpListener, limits: serve::Limits) -> Self {
        Self { listener, limits }
    }

    pub(crate) fn address(&self) -> Result<SocketAddr, BoxError> {
        Ok(self.listener.local_addr()?)
    }

    pub(crate) async fn run<S, B>(self, app: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        serve::serve(self.listener, app, self.limits, ctrl_c()).await;
    }
}

/// The limits that `REQUEST_HEAD_TIMEOUT`, `WRITE_TIMEOUT` and `SHUTDOWN_TIMEOUT` ask for.
pub(crate) fn limits() -> Result<serve::Limits, BoxError> {
    let defaults = serve::Limits::default();
    Ok(serve::Limits {
        head: seconds("REQUEST_HEAD_TIMEOUT", 1)?.unwrap_or(defaults.head),
        write: seconds("WRITE_TIMEOUT", 1)?.unwrap_or(defaults.write),
        shutdown: seconds("SHUTDOWN_TIMEOUT", 0)?.unwrap_or(defaults.shutdown),
    })
}

/// An environment variable with a time: whole seconds, at least `least`, an hour at most.
pub(crate) fn seconds(name: &str, least: u64) -> Result<Option<Duration>, BoxError> {
    let Some(text) = variable(name)? else { return Ok(None) };
    match text.trim().parse() {
        Ok(seconds) if (least..=3600).contains(&seconds) => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(format!("{name}: it is not a number of seconds from {least} to 3600").into()),
    }
}

/// Prints the address, the first line on stdout, and then `hints` about how to try the server.
pub(crate) fn announce(address: SocketAddr, hints: &str) {
    print(&format!("listening on http://{address}"));
    if !hints.is_empty() {
        print(&format!("\n{}", hints.trim_end()));
    }
}

/// Prints to stdout. Not to a pipe that is closed: whoever started the server may read its first line only.
pub(crate) fn print(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// The URL at which a client on this machine finds the server.
pub(crate) fn local_url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    format!("http://{address}")
}

/// Ends when the user presses Ctrl-C.
///
/// Where there are signals, by SIGTERM too: that is how service managers and containers say it.
pub(crate) async fn ctrl_c() {
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::error!("cannot listen for Ctrl-C: {error}");
            std::future::pending().await
        }
    };
    tokio::select! {
        () = interrupted => {}
        () = terminated() => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(error) => {
            tracing::error!("cannot listen for SIGTERM: {error}");
            std::future::pending().await
        }
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}

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
