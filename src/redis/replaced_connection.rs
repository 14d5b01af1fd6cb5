//! A self-replacing connection: it is replaced when it is lost or silent, or when its server is no longer a primary.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisError, RedisResult, Value,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::{runtime::Handle, sync::watch};

use crate::redis::connection::{Commands, SharedConnection};
use crate::runtime::{Instant, lock, pause, within};

/// The time limit of one attempt to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The time after which a connection without an answer, while commands wait, is abandoned.
const SILENCE: Duration = Duration::from_secs(1);

/// The minimum age at which a connection to a read-only server is replaced.
const READ_ONLY_KEPT: Duration = Duration::from_millis(250);

/// The longest pause between two attempts to connect.
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// The number of commands that may wait to be written. With a smaller queue, the requests of a burst would wait for
/// each other.
const WRITE_QUEUE: usize = 4_096;

/// One connection to Redis at a time.
#[derive(Clone)]
pub(super) struct ReplacedConnection(Arc<State>);

struct State {
    server: Server,
    runtime: Handle,
    current: watch::Sender<Connected>,
}

/// The server, or the sentinels to ask for it.
pub(super) enum Server {
    At(Box<Client>),
    #[cfg(feature = "redis-sentinel")]
    NamedBySentinels(Box<tokio::sync::Mutex<redis::sentinel::SentinelClient>>),
}

#[derive(Clone)]
enum Connected {
    /// The first attempt since the last connection ended is in progress.
    Connecting,
    /// The last attempt failed, and the attempts continue.
    Failing(RedisError),
    Up(Arc<Line>),
}

struct Line {
    connection: MultiplexedConnection,
    since: Instant,
    /// The time since which commands have waited without any answer.
    silent_since: Mutex<Option<Instant>>,
}

impl Server {
    /// # Errors
    ///
    /// Returns an error if the address cannot be parsed, or needs a feature that is off.
    pub(super) fn at(address: impl IntoConnectionInfo) -> RedisResult<Self> {
        let tcp = TcpSettings::default().set_nodelay(true);
        // With this setting, the kernel gives up a server that vanished silently after 2 seconds instead of 15 minutes.
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        let tcp = tcp.set_user_timeout(Duration::from_secs(2));
        let address = address.into_connection_info().map_err(name_the_feature)?;
        let client = Client::open(address.set_tcp_settings(tcp)).map_err(name_the_feature)?;
        Ok(Self::At(Box::new(client)))
    }

    async fn connect(&self) -> RedisResult<Arc<Line>> {
        #[cfg(feature = "redis-tls")]
        choose_crypto();
        // The handle sets the deadline of each command, so the connection sets none.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_LIMIT))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(WRITE_QUEUE);
        let connect = async {
            match self {
                Self::At(client) => client.get_multiplexed_async_connection_with_config(&config).await,
                #[cfg(feature = "redis-sentinel")]
                Self::NamedBySentinels(sentinels) => {
                    sentinels.lock().await.get_async_connection_with_config(&config).await
                }
            }
        };
        let connection = within(CONNECT_LIMIT, connect).await.unwrap_or_else(|_elapsed| {
            Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection within a second").into())
        })?;
        Ok(Arc::new(Line { connection, since: Instant::now(), silent_since: Mutex::default() }))
    }
}

/// Names the missing feature for addresses that this build cannot use.
fn name_the_feature(error: RedisError) -> RedisError {
    if cfg!(feature = "redis-tls") || !error.to_string().contains("TLS") {
        return error;
    }
    (ErrorKind::InvalidClientConfig, "TLS needs the feature `redis-tls` of tower-devicecheck").into()
}

/// Installs a crypto provider, because rustls panics if it has several and the process has chosen none.
#[cfg(feature = "redis-tls")]
fn choose_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread has just installed one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

impl ReplacedConnection {
    /// Connects. If the server cannot be reached now, returns the connection with that error and keeps trying.
    ///
    /// # Errors
    ///
    /// Returns an error outside a tokio runtime.
    pub(super) async fn connect(server: Server) -> RedisResult<(Self, RedisResult<()>)> {
        let Ok(runtime) = Handle::try_current() else {
            return Err((ErrorKind::Client, "must be called in a tokio runtime").into());
        };
        let (connected, reached) = match server.connect().await {
            Ok(line) => (Connected::Up(line), Ok(())),
            Err(error) => (Connected::Failing(error.clone()), Err(error)),
        };
        let connection = Self(Arc::new(State { server, runtime, current: watch::Sender::new(connected) }));
        if reached.is_err() {
            connection.0.runtime.spawn(connect_again(Arc::downgrade(&connection.0)));
        }
        Ok((connection, reached))
    }

    /// Returns the connection, as soon as the current attempt to connect has ended.
    async fn line(&self) -> RedisResult<Arc<Line>> {
        let mut current = self.0.current.subscribe();
        let ended = current.wait_for(|connected| !matches!(connected, Connected::Connecting)).await;
        match ended.as_deref() {
            Ok(Connected::Up(line)) => Ok(Arc::clone(line)),
            Ok(Connected::Failing(error)) => Err(error.clone()),
            Ok(Connected::Connecting) | Err(_) => Err((ErrorKind::Io, "no connection").into()),
        }
    }

    fn replace(&self, line: &Arc<Line>) {
        let is_replaced = self.0.current.send_if_modified(|connected| {
            let is_current = matches!(connected, Connected::Up(up) if Arc::ptr_eq(up, line));
            if is_current {
                *connected = Connected::Connecting;
            }
            is_current
        });
        if is_replaced {
            self.0.runtime.spawn(connect_again(Arc::downgrade(&self.0)));
        }
    }

    async fn send_on(&self, line: &Arc<Line>, commands: &Commands) -> RedisResult<Value> {
        lock(&line.silent_since).get_or_insert_with(Instant::now);
        let mut waiting = Waiting { connection: self, line, is_answered: false };
        let answer = commands.on(line.connection.clone()).await;
        waiting.is_answered = true;
        answer
    }
}

/// Retries until it succeeds or the connection is no longer used.
async fn connect_again(connection: Weak<State>) {
    let mut time = Duration::from_millis(25);
    while let Some(state) = connection.upgrade() {
        match state.server.connect().await {
            Ok(line) => {
                state.current.send_replace(Connected::Up(line));
                return;
            }
            Err(error) => state.current.send_replace(Connected::Failing(error)),
        };
        drop(state);
        pause(time).await;
        time = (time * 2).min(MAX_PAUSE);
    }
}

/// A command without an answer.
struct Waiting<'a> {
    connection: &'a ReplacedConnection,
    line: &'a Arc<Line>,
    is_answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut silent_since = lock(&self.line.silent_since);
        if self.is_answered {
            *silent_since = None;
        } else if silent_since.is_some_and(|since| since.elapsed() >= SILENCE) {
            self.connection.replace(self.line);
        }
    }
}

impl SharedConnection for ReplacedConnection {
    fn send(&self, commands: Commands) -> BoxFuture<'static, RedisResult<Value>> {
        let connection = self.clone();
        Box::pin(async move {
            let line = connection.line().await?;
            let answer = connection.send_on(&line, &commands).await;
            let Err(error) = &answer else { return answer };
            let is_lost = error.is_unrecoverable_error();
            let is_demoted = is_read_only(error) && line.since.elapsed() >= READ_ONLY_KEPT;
            if is_lost || is_demoted {
                connection.replace(&line);
            }
            // A read-only server has not executed the command, so it is safe to resend.
            if is_demoted || is_lost && commands.may_repeat {
                let line = connection.line().await?;
                return connection.send_on(&line, &commands).await;
            }
            answer
        })
    }
}

/// Whether the error is a replica's answer to a write. Redis 6 hides it in the error text of a script.
fn is_read_only(error: &RedisError) -> bool {
    error.code() == Some("READONLY") || error.to_string().contains("READONLY")
}
