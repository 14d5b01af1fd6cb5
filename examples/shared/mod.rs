//! Shared by the examples: the way they start, and the Apple that they ask.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "programs for a terminal")]
#![allow(dead_code, unused_imports, reason = "no example uses all of it")]

pub(crate) mod apple;
#[cfg(feature = "split-key")]
pub(crate) mod keys;
pub(crate) mod metrics;
pub(crate) mod orders;
pub(crate) mod serve;

pub(crate) use apple::Apple;

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

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use tokio::net::TcpListener;
use tower::Service;
use tower_devicecheck::{BoxError, DeviceCheckLayer, replay::MemoryReplayGuard};
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

/// The fewest characters of an admin token: nobody guesses that many.
const SHORTEST_ADMIN_TOKEN: usize = 16;

/// The `ADMIN_TOKEN`, which a header can carry and nobody guesses.
pub(crate) fn admin_token() -> Result<Option<String>, BoxError> {
    let Some(token) = variable("ADMIN_TOKEN")? else { return Ok(None) };
    let token = token.trim();
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("ADMIN_TOKEN: it may hold visible ASCII characters only".into());
    }
    if token.len() < SHORTEST_ADMIN_TOKEN {
        return Err(format!("ADMIN_TOKEN: it is shorter than {SHORTEST_ADMIN_TOKEN} characters").into());
    }
    Ok(Some(token.to_owned()))
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
