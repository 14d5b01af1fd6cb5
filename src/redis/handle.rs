//! The handle to Redis.

use std::{fmt, sync::Arc, time::Duration};

use redis::{FromRedisValue, IntoConnectionInfo, RedisResult, aio::ConnectionLike};

use crate::redis::connection::{Commands, SharedConnection};
use crate::redis::failure::RedisFailure;
use crate::redis::health::{Access, RedisHealth};
use crate::redis::replaced_connection::{ReplacedConnection, Server};
use crate::runtime::{Elapsed, Instant, patiently, within};

/// A handle to one Redis or Valkey server, for everything that replicas share: a
/// [`RedisCache`](crate::cache::RedisCache), a [`RedisReplayGuard`](crate::replay::RedisReplayGuard), and with the
/// feature `split-key` a `RedisSplitKeyStore` and a `UsageLog`, with `app-attest` a
/// `RedisAttestKeyStore` and a `RedisReceiptStore`.
///
/// ```no_run
/// use tower_devicecheck::{
///     DeviceCheckLayer, Redis,
///     cache::{MemoryCache, RedisCache, Tiered},
///     replay::RedisReplayGuard,
/// };
///
/// # async fn layers(
/// #     apple: std::sync::Arc<tower_devicecheck::AppleClient>,
/// # ) -> redis::RedisResult<(DeviceCheckLayer, DeviceCheckLayer)> {
/// let redis = Redis::connect("redis://127.0.0.1/").await?.with_prefix("my-api");
/// let cache = Tiered::new(MemoryCache::new(), RedisCache::new(redis.clone()));
/// let most_routes = DeviceCheckLayer::new(apple.clone()).with_cache(cache);
/// let payments = DeviceCheckLayer::new(apple).with_single_use(RedisReplayGuard::new(redis));
/// # Ok((most_routes, payments))
/// # }
/// ```
///
/// # Clone
///
/// Clones share the connection and the state of the server's health, even after a `with_*` method has changed one of
/// them. Make one handle for each server, and clone it.
///
/// # When Redis fails
///
/// If a command gets no answer within its [deadline](Self::with_deadline), or the connection is lost, the handle lets
/// one command per 100 ms through as a probe. Other commands fail at once, no matter which type made from the handle
/// sends them. After a timeout of a server that has answered before, commands with a longer deadline are still sent.
///
/// A handle made by [`connect`](Self::connect) replaces its connection when it is lost, when the server answers no
/// command for a second, and when the server has become a read-only replica. The handle resends a command once if its
/// connection ended, unless the command must not take effect twice.
///
/// The handle logs an incident once at level warn when it begins, and once at level info when it is over. The lines
/// name the number of failed commands and the types that use the handle. An incident is over when each kind of command
/// that failed has succeeded again, at least a second after its last failure.
///
/// # Requirements
///
/// The handle needs a tokio runtime, and Redis 6 or later or any Valkey. `rediss://` addresses need the feature
/// `redis-tls`, and `connect_sentinel` needs `redis-sentinel`. [`new`](Self::new) takes any asynchronous connection of
/// the `redis` crate, including cluster connections.
///
/// The Redis user (ACL) needs these commands, on keys that begin with the [prefix](Self::with_prefix):
///
/// | for | commands |
/// |---|---|
/// | `RedisCache` | `GETRANGE`, `PTTL`, `SET`; with `with_fleet_single_flight` also `EVAL`, `GET`, `DEL` |
/// | `AppleClientBuilder::share_retry_after` | `PTTL`, `SET` |
/// | `RedisReplayGuard` | `EVAL`, `GET`, `SET`, `DEL`, `TIME` |
/// | `Sessions::share_revocations` | `EVAL`, `GET`, `SET`, `ZADD`, `ZRANGE`, `ZRANGEBYSCORE`, `ZREM`, `ZSCORE` |
/// | `RedisAttestKeyStore` | `EVAL`, `HGET`, `HMGET`, `HSET`, `PEXPIRE`, `SADD`; for operators also `SMEMBERS` |
/// | `RedisReceiptStore` | `EVAL`, `HGET`, `HMGET`, `HSET`, `PEXPIRE`, `DEL`, `ZADD`, `ZRANGEBYSCORE`, `ZREM` |
/// | `RedisSplitKeyStore` | `HGET`; for operators also `EVAL`, `HSET`, `HGETALL` |
/// | `UsageLog` | `EVAL`, `HGET`, `HSET`, `HINCRBY`, `EXPIRE`; to read it `HGETALL` |
///
/// When one of these types is made from a handle of `connect`, the handle tries the commands that requests need, and
/// logs those that are forbidden. It also reads `INFO memory`, if permitted, and warns if Redis may evict data that a
/// guard or a key store must keep.
#[derive(Clone)]
pub struct Redis {
    connection: Arc<dyn SharedConnection>,
    prefix: Arc<str>,
    /// `None` for the default, which depends on the command.
    deadline: Option<Duration>,
    pub(super) health: Arc<RedisHealth>,
    /// Whether the handle checks the permissions of its users. It does not on a connection that the caller supplied.
    pub(super) is_checked: bool,
}

const DEFAULT_PREFIX: &str = "tower-devicecheck";

/// The default deadline of commands that a request can do without.
pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

/// The default deadline of all other commands.
const PATIENT_DEADLINE: Duration = Duration::from_secs(1);

/// The deadline of operators' commands.
#[cfg(any(feature = "split-key", all(feature = "app-attest", feature = "_apple")))]
const OPERATOR_DEADLINE: Duration = Duration::from_secs(5);

impl Redis {
    /// Connects to the server at the given address, such as `redis://:password@host/`.
    ///
    /// If the server cannot be reached within about a second, this logs the failure and returns `Ok` anyway: the handle
    /// retries until it connects.
    ///
    /// # Errors
    ///
    /// Returns an error if the address cannot be parsed, or outside a tokio runtime.
    pub async fn connect(server: impl IntoConnectionInfo + Send) -> RedisResult<Self> {
        Self::connect_to(Server::at(server)?).await
    }

    /// Connects to the primary that sentinels name, and to its successor after a failover. Otherwise this is the same
    /// as [`connect`](Self::connect).
    ///
    /// ```no_run
    /// use redis::sentinel::{SentinelClient, SentinelServerType};
    /// use tower_devicecheck::Redis;
    ///
    /// # async fn handle() -> redis::RedisResult<Redis> {
    /// let sentinels = vec!["redis://sentinel-1:26379", "redis://sentinel-2:26379"];
    /// let client = SentinelClient::build(sentinels, "mymaster".to_owned(), None, SentinelServerType::Master)?;
    /// Redis::connect_sentinel(client).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error outside a tokio runtime.
    #[cfg(feature = "redis-sentinel")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis-sentinel")))]
    pub async fn connect_sentinel(sentinels: redis::sentinel::SentinelClient) -> RedisResult<Self> {
        Self::connect_to(Server::NamedBySentinels(Box::new(tokio::sync::Mutex::new(sentinels)))).await
    }

    async fn connect_to(server: Server) -> RedisResult<Self> {
        let sent = Instant::now();
        let (connection, reached) = ReplacedConnection::connect(server).await?;
        let redis = Self { is_checked: true, ..Self::with(Arc::new(connection)) };
        match reached {
            Ok(()) => redis.health.succeeded(Access::ReadVerdict, sent),
            Err(error) => redis.failed(Access::ReadVerdict, &RedisFailure::Redis(error), sent),
        }
        Ok(redis)
    }

    /// Makes a handle from an existing connection. Clones of the connection must share one connection, as those of
    /// [`MultiplexedConnection`](redis::aio::MultiplexedConnection) do. This crate does not reconnect it.
    #[must_use]
    pub fn new(connection: impl ConnectionLike + Clone + Send + Sync + 'static) -> Self {
        Self::with(Arc::new(connection))
    }

    fn with(connection: Arc<dyn SharedConnection>) -> Self {
        Self {
            connection,
            prefix: DEFAULT_PREFIX.into(),
            deadline: None,
            health: Arc::default(),
            is_checked: false,
        }
    }

    /// Sets the beginning of every key, before a colon. The prefix must not contain braces. Default:
    /// `tower-devicecheck`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the deadline of one command. Default: 50 ms for a cache, which a request can do without; 1 second for a
    /// guard and a key store, which a request needs, and for a usage log, which no request waits for.
    ///
    /// A request waits for a `RedisCache` for this time at most, before and after the call to Apple together. It waits
    /// for each step of a `RedisReplayGuard` for this time, but at most 1 second; time in which the process was too
    /// busy to read the answer does not count.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The deadline of a cache's commands.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline.unwrap_or(DEFAULT_DEADLINE)
    }

    pub(super) fn failed(&self, access: Access, failure: &RedisFailure, sent: Instant) {
        self.health.failed(access, failure, sent);
    }

    /// Sends commands and waits for their answer within the deadline, unless Redis is known not to answer.
    ///
    /// If the caller's future is dropped earlier, the outcome is lost and the commands may not be sent. For commands
    /// that must arrive, use [`query_to_end`](Self::query_to_end).
    pub(crate) async fn query<T: FromRedisValue>(
        &self,
        access: Access,
        commands: impl Into<Commands>,
    ) -> Result<T, RedisFailure> {
        self.measured(access, self.send(commands.into())).await
    }

    /// Spawns the commands on the first poll, so that they are sent, and their outcome is recorded, even if the
    /// caller's future is dropped.
    pub(crate) async fn query_to_end<T: FromRedisValue + Send + 'static>(
        &self,
        access: Access,
        commands: impl Into<Commands>,
    ) -> Result<T, RedisFailure> {
        let (redis, commands) = (self.clone(), commands.into());
        let query = async move { redis.query(access, commands).await };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.spawn(query).await.unwrap_or(Err(RedisFailure::Interrupted)),
            Err(_) => query.await,
        }
    }

    /// Sends an operator's commands, without regard to the health of Redis. The operator waits longer than a
    /// request, and gets the failure instead of the log.
    #[cfg(any(feature = "split-key", all(feature = "app-attest", feature = "_apple")))]
    pub(crate) async fn query_for_operator<T: FromRedisValue>(
        &self,
        commands: impl Into<Commands>,
    ) -> Result<T, RedisFailure> {
        self.query_within(OPERATOR_DEADLINE, commands).await
    }

    pub(super) async fn query_within<T: FromRedisValue>(
        &self,
        deadline: Duration,
        commands: impl Into<Commands>,
    ) -> Result<T, RedisFailure> {
        answer_of(deadline, within(deadline, self.send(commands.into())).await)
    }

    /// Reports that Redis holds a value that this crate has not written.
    pub(crate) fn rubbish(&self) -> RedisFailure {
        self.failed(Access::ReadVerdict, &RedisFailure::Rubbish, Instant::now());
        RedisFailure::Rubbish
    }

    fn send<T: FromRedisValue>(&self, commands: Commands) -> impl Future<Output = RedisResult<T>> + use<T> {
        let answer = self.connection.send(commands);
        async { Ok(redis::from_redis_value(answer.await?)?) }
    }

    /// Waits for an answer within the deadline, and records the outcome in the health. Every command for a request goes
    /// through here.
    pub(super) async fn measured<T>(
        &self,
        access: Access,
        answer: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, RedisFailure> {
        let deadline = match self.deadline {
            Some(deadline) => deadline,
            None if access.is_needed() => PATIENT_DEADLINE,
            None => DEFAULT_DEADLINE,
        };
        // A withdrawal must arrive, even in an outage. Then only requests whose probe was sent have anything to
        // withdraw. Old marks must be forgotten, and change rarely.
        if !matches!(access, Access::Undo | Access::Forget) && !self.health.may_send(deadline) {
            return Err(RedisFailure::Down);
        }
        let sent = Instant::now();
        let answer = if access.is_needed() {
            patiently(deadline, answer).await
        } else {
            within(deadline, answer).await
        };
        let answer = answer_of(deadline, answer);
        match &answer {
            Ok(_) => self.health.succeeded(access, sent),
            Err(failure) => self.failed(access, failure, sent),
        }
        answer
    }
}

fn answer_of<T>(deadline: Duration, answer: Result<RedisResult<T>, Elapsed>) -> Result<T, RedisFailure> {
    match answer {
        Ok(answer) => answer.map_err(RedisFailure::Redis),
        Err(Elapsed) => Err(RedisFailure::Late(deadline)),
    }
}

/// A time to live in milliseconds for Redis: at least one, and at most what Redis can add to its clock.
pub(crate) fn expiry(time_to_live: Duration) -> String {
    time_to_live.as_millis().clamp(1, 1 << 48).to_string()
}

impl fmt::Debug for Redis {
    // Omits the connection, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("prefix", &self.prefix)
            .field("deadline", &self.deadline())
            .finish_non_exhaustive()
    }
}
