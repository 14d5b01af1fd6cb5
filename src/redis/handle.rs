//! The handle to Redis.

use std::{fmt, sync::Arc, time::Duration};

use redis::{FromRedisValue, IntoConnectionInfo, RedisResult, aio::ConnectionLike};

use crate::redis::connection::{self, Commands, SharedConnection};
use crate::redis::failure::RedisFailure;
use crate::redis::health::{Access, RedisHealth};
use crate::runtime::{Elapsed, Instant, within};

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
/// Once a command is not answered within the [deadline](Self::with_deadline), or the connection is lost, one
/// command in 100 ms tries whether Redis answers again. All others fail at once, whichever type made from the
/// handle sends them.
///
/// An incident is logged once at level warn when it begins and once at level info when it is over, with the
/// number of failed commands between and the names of all that use the handle. The incident is over when each
/// kind of command that failed has succeeded again, at least a second after its last failure.
///
/// # Requirements
///
/// A tokio runtime, and Redis 6 or any Valkey. TLS, passwords and clusters come from the `redis` crate:
/// `rediss://` addresses work with its feature `tokio-rustls-comp`, and [`new`](Self::new) takes any of its
/// asynchronous connections, including those to clusters.
#[derive(Clone)]
pub struct Redis {
    connection: Arc<dyn SharedConnection>,
    prefix: Arc<str>,
    deadline: Duration,
    health: Arc<RedisHealth>,
}

const DEFAULT_PREFIX: &str = "tower-devicecheck";

pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

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
    /// If the address cannot be understood, or outside of a tokio runtime.
    pub async fn connect(server: impl IntoConnectionInfo + Send) -> RedisResult<Self> {
        let sent = Instant::now();
        let (manager, reached) = connection::connect(server).await?;
        let redis = Self::new(manager);
        if let Err(error) = reached {
            redis.health.failed(Access::Read, &RedisFailure::Redis(error), sent);
        }
        Ok(redis)
    }

    /// Uses a connection that you have already. Clones of it must share one connection, as those of
    /// [`ConnectionManager`](redis::aio::ConnectionManager) do. This crate does not reconnect it.
    #[must_use]
    pub fn new(connection: impl ConnectionLike + Clone + Send + Sync + 'static) -> Self {
        Self {
            connection: Arc::new(connection),
            prefix: DEFAULT_PREFIX.into(),
            deadline: DEFAULT_DEADLINE,
            health: Arc::default(),
        }
    }

    /// The beginning of every key, before a colon. It must hold no braces. Default: `tower-devicecheck`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The time that one command has. Default: 50 ms.
    ///
    /// A request waits for a `RedisCache` for this long in all, before and after Apple is asked. It waits for
    /// each step of a `RedisReplayGuard` for this long, and for a second at most.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Adds a name to those that the log of incidents calls affected.
    pub(crate) fn add_user(&self, user: &'static str) {
        self.health.add_user(user);
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) const fn deadline(&self) -> Duration {
        self.deadline
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
        answer_within(OPERATOR_DEADLINE, self.send(commands.into())).await
    }

    /// Reports that Redis holds a value that this crate has not written.
    pub(crate) fn rubbish(&self) -> RedisFailure {
        self.health.failed(Access::Read, &RedisFailure::Rubbish, Instant::now());
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
        if !self.health.may_send() {
            return Err(RedisFailure::Down);
        }
        let sent = Instant::now();
        let answer = answer_within(self.deadline, answer).await;
        match &answer {
            Ok(_) => self.health.succeeded(access),
            Err(failure) => self.health.failed(access, failure, sent),
        }
        answer
    }
}

async fn answer_within<T>(
    deadline: Duration,
    answer: impl Future<Output = RedisResult<T>>,
) -> Result<T, RedisFailure> {
    match within(deadline, answer).await {
        Ok(answer) => answer.map_err(RedisFailure::Redis),
        Err(Elapsed) => Err(RedisFailure::Late(deadline)),
    }
}

impl fmt::Debug for Redis {
    // Without the connection, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("prefix", &self.prefix)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
