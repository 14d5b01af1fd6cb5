//! The handle.

use std::{fmt, sync::Arc, time::Duration};

use redis::{FromRedisValue, IntoConnectionInfo, RedisResult, aio::ConnectionLike};

use crate::{
    redis::{
        connection::{self, Commands, SharedConnection},
        failure::RedisFailure,
        health::{Access, RedisHealth},
    },
    runtime::{Elapsed, Instant, within},
};

/// One Redis or Valkey server for everything that replicas share: a [`RedisCache`](crate::cache::RedisCache), a
/// [`RedisReplayGuard`](crate::replay::RedisReplayGuard), and with the feature `split-key` a `RedisSplitKeyStore` and
/// a `RedisUsageLog`.
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
/// Clones share the connection and all that is known of the server's health. A clone that is changed by a `with_*`
/// method still does: make one handle for each server, and all others from it.
///
/// # When Redis fails
///
/// Once a command is not answered within the [deadline](Self::with_deadline), or the connection is lost, one command
/// in 100 ms tries whether Redis answers again. All others fail at once, from whatever was made from the handle.
///
/// An incident is logged once at level warn when it begins and once at level info when it is over, with the number of
/// failed commands between and the names of all that use the handle. It is over when everything that failed has worked
/// again and has not failed for a second.
///
/// # TLS, passwords, clusters
///
/// They are the `redis` crate's: `rediss://` addresses work when its feature `tokio-rustls-comp` is on, and
/// [`new`](Self::new) takes any of its asynchronous connections, those to clusters too. Needs Redis 6 or any Valkey.
#[derive(Clone)]
pub struct Redis {
    connection: Arc<dyn SharedConnection>,
    prefix: Arc<str>,
    deadline: Duration,
    health: Arc<RedisHealth>,
}

const DEFAULT_PREFIX: &str = "tower-devicecheck";

pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_millis(50);

/// How long operators wait.
#[cfg(feature = "split-key")]
const OPERATOR_DEADLINE: Duration = Duration::from_secs(5);

impl Redis {
    /// A connection of its own to the server at this address, such as `redis://:password@host/`.
    ///
    /// A server that cannot be reached now is logged and tried again for as long as it takes. Waits about a second for
    /// it at most.
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

    /// A connection that you have already. Clones of it must share one connection, as those of
    /// [`ConnectionManager`](redis::aio::ConnectionManager) do; one that does not reconnect by itself stays lost when
    /// it is lost.
    #[must_use]
    pub fn new(connection: impl ConnectionLike + Clone + Send + Sync + 'static) -> Self {
        Self {
            connection: Arc::new(connection),
            prefix: DEFAULT_PREFIX.into(),
            deadline: DEFAULT_DEADLINE,
            health: Arc::default(),
        }
    }

    /// What every key begins with, followed by a colon. No braces. Default: `tower-devicecheck`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long one command waits for Redis. Default: 50 ms.
    ///
    /// A request waits for a `RedisCache` for this long in all, before and after Apple is asked, and for each step of a
    /// `RedisReplayGuard` for this long, or a second if that is less.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Adds what the log of incidents names as affected.
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
    /// A caller's future that is dropped earlier takes the outcome with it. Use [`query_to_end`](Self::query_to_end) where
    /// the commands must arrive.
    pub(crate) async fn query<T: FromRedisValue>(
        &self,
        access: Access,
        commands: impl Into<Commands>,
    ) -> Result<T, RedisFailure> {
        self.measured(access, self.send(commands.into())).await
    }

    /// The same on a task of its own: the commands are sent once this was polled, and their outcome counts even if the
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

    /// Sends an operator's commands, whatever is known of Redis's health. The operator waits longer than a request, and
    /// gets the failure instead of the log.
    #[cfg(feature = "split-key")]
    pub(crate) async fn query_for_operator<T: FromRedisValue>(
        &self,
        commands: impl Into<Commands>,
    ) -> Result<T, RedisFailure> {
        answer_within(OPERATOR_DEADLINE, self.send(commands.into())).await
    }

    /// The failure that Redis answered with something that this crate has not written.
    pub(crate) fn rubbish(&self) -> RedisFailure {
        self.health.failed(Access::Read, &RedisFailure::Rubbish, Instant::now());
        RedisFailure::Rubbish
    }

    fn send<T: FromRedisValue>(&self, commands: Commands) -> impl Future<Output = RedisResult<T>> + use<T> {
        let answer = self.connection.send(commands);
        async { Ok(redis::from_redis_value(answer.await?)?) }
    }

    /// The only place where a deadline of requests runs, and where its outcome becomes known to all.
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
