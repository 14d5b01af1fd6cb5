//! The handle to Redis.

use std::{fmt, sync::Arc, time::Duration};

use redis::{FromRedisValue, IntoConnectionInfo, RedisResult, aio::ConnectionLike};

use crate::redis::connection::{Commands, SharedConnection};
use crate::redis::failure::RedisFailure;
use crate::redis::health::{Access, RedisHealth};
use crate::redis::link::{Link, Server};
use crate::runtime::{Elapsed, Instant, patiently, within};

/// One Redis or Valkey server for everything that replicas share: a [`RedisCache`](crate::cache::RedisCache),
/// a [`RedisReplayGuard`](crate::replay::RedisReplayGuard), and with the feature `split-key` a
/// `RedisSplitKeyStore` and a `RedisUsageLog`.
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
/// Clones share the connection and the knowledge of the server's health, also after a `with_*` method has
/// changed one. Make one handle for each server, and all others from it.
///
/// # When Redis fails
///
/// Once a command is not answered within its [deadline](Self::with_deadline), or the connection is lost, one
/// command in 100 ms tries whether Redis answers again. All others that can wait no longer fail at once,
/// whichever type made from the handle sends them.
///
/// A handle made by [`connect`](Self::connect) replaces its connection when it is lost, when nothing is answered
/// for a second, and when its server has become a read-only replica. A command whose connection ended is sent
/// once more.
///
/// An incident is logged once at level warn when it begins and once at level info when it is over, with the
/// number of failed commands between and the names of all that use the handle. The incident is over when each
/// kind of command that failed has succeeded again, at least a second after its last failure.
///
/// # Requirements
///
/// A tokio runtime, and Redis 6 or any Valkey. With the feature `redis-tls`, `rediss://` addresses work; with
/// `redis-sentinel`, `connect_sentinel`. [`new`](Self::new) takes any asynchronous connection of the `redis`
/// crate, including those to clusters.
///
/// The user of Redis needs these commands, on keys that begin with the [prefix](Self::with_prefix):
///
/// | for | commands |
/// |---|---|
/// | `RedisCache` | `GETRANGE`, `PTTL`, `SET`; with `with_fleet_single_flight` also `EVAL`, `GET`, `DEL` |
/// | `RedisReplayGuard` | `EVAL`, `GET`, `SET`, `DEL`, `TIME` |
/// | `RedisSplitKeyStore` | `HGET`; for operators also `EVAL`, `HSET`, `HGETALL` |
/// | `RedisUsageLog` | `HINCRBY`, `EXPIRE`; to read it `HGETALL` |
///
/// A handle made by `connect` tries those that requests need as soon as one of these types is made from it, and
/// logs what is forbidden. It also reads `INFO memory`, where it may, and warns if Redis may evict what a guard
/// or a key store must keep.
#[derive(Clone)]
pub struct Redis {
    connection: Arc<dyn SharedConnection>,
    prefix: Arc<str>,
    /// `None` for the default, which depends on the command.
    deadline: Option<Duration>,
    pub(super) health: Arc<RedisHealth>,
    /// Whether users of the handle are checked: not on a connection that is somebody else's.
    pub(super) is_checked: bool,
}

const DEFAULT_PREFIX: &str = "tower-devicecheck";

/// For what a request can do without.
pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

/// For what a request fails without.
const PATIENT_DEADLINE: Duration = Duration::from_secs(1);

/// The deadline for operators.
#[cfg(feature = "split-key")]
const OPERATOR_DEADLINE: Duration = Duration::from_secs(5);

impl Redis {
    /// Connects to the server at this address, such as `redis://:password@host/`.
    ///
    /// If the server cannot be reached within about a second, this logs it and succeeds all the same: the
    /// connection is tried again for as long as it takes.
    ///
    /// # Errors
    ///
    /// Returns an error if the address cannot be understood, or outside a tokio runtime.
    pub async fn connect(server: impl IntoConnectionInfo + Send) -> RedisResult<Self> {
        Self::connect_to(Server::at(server)?).await
    }

    /// Connects to the primary that sentinels name, and to its successor after a failover. Otherwise this is
    /// [`connect`](Self::connect).
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
        let (link, reached) = Link::connect(server).await?;
        let redis = Self { is_checked: true, ..Self::with(Arc::new(link)) };
        match reached {
            Ok(()) => redis.health.succeeded(Access::ReadVerdict, sent),
            Err(error) => redis.failed(Access::ReadVerdict, &RedisFailure::Redis(error), sent),
        }
        Ok(redis)
    }

    /// Uses a connection that you have already. Clones of it must share one connection, as those of
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

    /// The beginning of every key, before a colon. It must hold no braces. Default: `tower-devicecheck`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The time that one command has. Default: 50 ms for a cache, which a request can do without; a second for
    /// a guard and for a key store, without which it fails.
    ///
    /// A request waits for a `RedisCache` for this long in all, before and after Apple is asked. It waits for
    /// each step of a `RedisReplayGuard` for this long, and for a second at most; time in which the process was
    /// too busy to look at the answer does not count there.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The deadline of a cache.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline.unwrap_or(DEFAULT_DEADLINE)
    }

    pub(super) fn failed(&self, access: Access, failure: &RedisFailure, sent: Instant) {
        self.health.failed(access, failure, sent);
    }

    /// Sends commands and waits for their answer within the deadline, unless Redis is known not to answer.
    ///
    /// If the caller's future is dropped earlier, the outcome is lost and the commands may not be sent. Where
    /// they must arrive, use [`query_to_end`](Self::query_to_end).
    pub(crate) async fn query<T: FromRedisValue>(
        &self,
        access: Access,
        commands: impl Into<Commands>,
    ) -> Result<T, RedisFailure> {
        self.measured(access, self.send(commands.into())).await
    }

    /// Spawns the commands on the first poll, so that they are sent and their outcome counts even if the
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
    #[cfg(feature = "split-key")]
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

    /// Waits for an answer within the deadline, and adds the outcome to the health. Every request's command
    /// comes through here.
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
        // A withdrawal must arrive. In an outage, only the probes have something to withdraw.
        if access != Access::Undo && !self.health.may_send(deadline) {
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

/// A time to live in milliseconds, as Redis takes it: at least one, and no more than it can add to its clock.
pub(crate) fn expiry(time_to_live: Duration) -> String {
    time_to_live.as_millis().clamp(1, 1 << 48).to_string()
}

impl fmt::Debug for Redis {
    // Without the connection, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("prefix", &self.prefix)
            .field("deadline", &self.deadline())
            .finish_non_exhaustive()
    }
}
