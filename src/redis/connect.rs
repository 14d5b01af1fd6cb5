//! How a connection to Redis is made.

use std::time::Duration;

use redis::{
    Client, ErrorKind, IntoConnectionInfo, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};
use tracing::warn;

use crate::gate::observer::TARGET;

/// A connection that is made when it is first used, and made again for as long as it takes whenever it is
/// lost.
pub(crate) async fn connect(
    server: impl IntoConnectionInfo,
    what: &'static str,
) -> RedisResult<ConnectionManager> {
    let tcp = TcpSettings::default().set_nodelay(true);
    // A server that vanished without a word is given up after this, not after a quarter of an hour.
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
    // The manager tries for ever and does not say why it fails: that is found out beside it.
    let reachable = client.get_multiplexed_async_connection().await.map(drop);
    let mut manager = client.get_connection_manager_lazy(config)?;
    let reachable = match reachable {
        // Now, and not when the first requests are waiting.
        Ok(()) => redis::cmd("PING").query_async::<String>(&mut manager).await.map(drop),
        unreachable => unreachable,
    };
    if let Err(error) = reachable {
        warn!(target: TARGET, error = %error, "no connection to Redis for the {what} yet");
    }
    Ok(manager)
}
