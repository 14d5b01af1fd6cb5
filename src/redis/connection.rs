//! Connections to Redis, of any type.

use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, ErrorKind, IntoConnectionInfo, Pipeline, RedisResult, Value, io::tcp::TcpSettings};

/// Any connection to Redis that can be shared, without its type.
pub(super) trait SharedConnection: Send + Sync {
    fn send(&self, commands: Commands) -> BoxFuture<'static, RedisResult<Value>>;
}

/// One command, or several that are sent together.
pub(crate) enum Commands {
    One(Cmd),
    Several(Pipeline),
}

impl From<Cmd> for Commands {
    fn from(command: Cmd) -> Self {
        Self::One(command)
    }
}

impl From<Pipeline> for Commands {
    fn from(commands: Pipeline) -> Self {
        Self::Several(commands)
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> SharedConnection for C {
    fn send(&self, commands: Commands) -> BoxFuture<'static, RedisResult<Value>> {
        let mut connection = self.clone();
        Box::pin(async move {
            match commands {
                Commands::One(command) => command.query_async(&mut connection).await,
                Commands::Several(commands) => commands.query_async(&mut connection).await,
            }
        })
    }
}

/// Returns a connection that reconnects for as long as it takes, and the error if the server cannot be
/// reached now.
///
/// # Errors
///
/// If the address cannot be understood, or outside of a tokio runtime.
pub(super) async fn connect(
    server: impl IntoConnectionInfo,
) -> RedisResult<(ConnectionManager, RedisResult<()>)> {
    let tcp = TcpSettings::default().set_nodelay(true);
    // The kernel gives up a server that vanished without a word after this time, not after a quarter of an
    // hour.
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let tcp = tcp.set_user_timeout(Duration::from_secs(2));
    let client = Client::open(server.into_connection_info()?.set_tcp_settings(tcp))?;
    if tokio::runtime::Handle::try_current().is_err() {
        return Err((ErrorKind::Client, "must be called in a tokio runtime").into());
    }
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(usize::MAX)
        .set_min_delay(Duration::from_millis(50))
        .set_max_delay(Duration::from_millis(200));
    // `ConnectionManager` retries for ever and hides the error. Another connection beside it shows the cause.
    let reached = client.get_multiplexed_async_connection().await.map(drop);
    let mut manager = client.get_connection_manager_lazy(config)?;
    let reached = match reached {
        // The manager connects now, and not when the first requests wait.
        Ok(()) => redis::cmd("PING").query_async::<String>(&mut manager).await.map(drop),
        unreachable => unreachable,
    };
    Ok((manager, reached))
}
