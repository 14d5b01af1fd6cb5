//! A guard that replicas share.

use std::{fmt, sync::Arc, time::Duration};

use redis::{
    IntoConnectionInfo, RedisResult,
    aio::{ConnectionLike, ConnectionManager},
};

use crate::{
    redis::{self as redis_link, Kind, Link, LinkError},
    replay::{
        claim::{Claim, ReplayKey, Reservation},
        guard::{DEFAULT_LEASE, DEFAULT_RETENTION, GuardError, ReplayGuard},
    },
};

/// Remembers tokens in Redis or Valkey, for all replicas that use the same server and prefix.
///
/// ```no_run
/// use tower_devicecheck::{DeviceCheckLayer, replay::RedisReplayGuard};
///
/// # async fn layer(apple: impl tower_devicecheck::DeviceVerifier) -> redis::RedisResult<DeviceCheckLayer> {
/// let guard = RedisReplayGuard::connect("redis://127.0.0.1/").await?;
/// let layer = DeviceCheckLayer::new(apple).with_single_use(guard);
/// # Ok(layer)
/// # }
/// ```
///
/// Each step is one script in Redis, so that replicas cannot come between. The key holds prefix, scope and the
/// token's SHA-256: who reads Redis learns no token. A value that this crate has not written withholds the
/// token.
///
/// # When Redis fails
///
/// Requests are answered with [`Unavailable`](crate::Rejection::Unavailable), after no longer than the
/// [deadline](Self::with_deadline) and without asking Apple, unless the operator chose
/// [otherwise](Self::dangerously_admit_without_redis). While Redis does not answer, one request in 100 ms tries
/// whether it does again.
///
/// # What Redis must keep
///
/// A token that Redis forgets can be used again for as long as Apple accepts it. Let it evict nothing
/// (`maxmemory-policy noeviction`); a restart without persistence, or a failover to a replica that lags,
/// forgets as well. Who can write to Redis can delete what it knows.
///
/// TLS, passwords and clusters are the `redis` crate's, as for
/// [`RedisCache`](crate::cache::RedisCache). Needs Redis 6 or any Valkey.
#[derive(Clone)]
pub struct RedisReplayGuard<C = ConnectionManager> {
    link: Link<C>,
    prefix: Arc<str>,
    lease: Duration,
    retention: Duration,
    admit_without_redis: bool,
}

impl RedisReplayGuard {
    /// A guard on a connection of its own to the server at this address, such as `redis://:password@host/`.
    ///
    /// A server that cannot be reached now is logged and tried again for as long as it takes. Waits about a
    /// second for it at most.
    ///
    /// # Errors
    ///
    /// If the address cannot be understood, or outside of a tokio runtime.
    pub async fn connect(server: impl IntoConnectionInfo + Send) -> RedisResult<Self> {
        Ok(Self::new(redis_link::connect(server, WHAT).await?))
    }
}

const WHAT: &str = "replay guard";

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisReplayGuard<C> {
    /// A guard on a connection that you have already. Clones of it must share one connection, as those of
    /// [`ConnectionManager`] do; one that does not reconnect by itself stays lost when it is lost.
    #[must_use]
    pub fn new(connection: C) -> Self {
        Self {
            link: Link::new(connection, WHAT),
            prefix: redis_link::DEFAULT_PREFIX.into(),
            lease: DEFAULT_LEASE,
            retention: DEFAULT_RETENTION,
            admit_without_redis: false,
        }
    }

    /// What every key begins with, followed by a colon. No braces. Default: `tower-devicecheck`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long each step of a request waits for Redis. Default: 50 ms.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.link.set_deadline(deadline);
        self
    }

    /// For how long a token stays reserved that is neither confirmed nor released. Default: 30 seconds.
    ///
    /// Keep it longer than the deadline for Apple's answer.
    #[must_use]
    pub const fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// For how long a spent token is remembered. Default: 1 hour.
    ///
    /// It should be longer than Apple accepts a token. Apple does not say how long that is; developers have
    /// seen half a minute.
    #[must_use]
    pub const fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Admits requests whose token Apple finds genuine while Redis does not answer or declines. Default:
    /// `false`, they are answered with [`Unavailable`](crate::Rejection::Unavailable).
    ///
    /// # Danger
    ///
    /// With this, whoever can make Redis fail, or waits until it does, can use a captured token as often as
    /// Apple accepts it.
    #[must_use]
    pub const fn dangerously_admit_without_redis(mut self, admit: bool) -> Self {
        self.admit_without_redis = admit;
        self
    }

    /// Runs a script on a token. Its answer is whether the token is this claim's.
    async fn run(&self, key: &ReplayKey<'_>, script: &str, arguments: &[&str]) -> Result<bool, LinkError> {
        let mut command = redis::cmd("EVAL");
        // The digest in braces is what a cluster chooses the node by.
        let name = format!("{}:use1:{}:{{{}}}", self.prefix, key.scope(), key.digest());
        command.arg(script).arg(1).arg(name).arg(arguments);
        self.link.run(Kind::Write, self.link.query(command)).await
    }

    fn judge(&self, answer: Result<bool, LinkError>) -> Result<Reservation, GuardError> {
        match answer {
            Ok(true) => Ok(Reservation::Reserved),
            Ok(false) => Ok(Reservation::Reused),
            Err(_) if self.admit_without_redis => Ok(Reservation::Reserved),
            Err(error) => Err(GuardError::new(error)),
        }
    }
}

// A value is `r:` and the owner while the token is reserved. Once it is spent it is `s:`, the owner, until when
// one repetition is let through (milliseconds since the Unix epoch by Redis's clock), and by what that is
// known or `-`.

/// Arguments: owner, retry key or `-`, lease in milliseconds.
const RESERVE: &str = r"
local value = redis.pcall('GET', KEYS[1])
if not value then
  redis.call('SET', KEYS[1], 'r:' .. ARGV[1], 'PX', ARGV[3])
  return 1
end
if type(value) ~= 'string' then return 0 end
local last, retry = string.match(value, '^s:%x+:(%d+):(%x+)$')
if last and retry == ARGV[2] then
  local now = redis.call('TIME')
  if now[1] * 1000 + math.floor(now[2] / 1000) < tonumber(last) then
    redis.call('SET', KEYS[1], 's:' .. ARGV[1] .. ':0:-', 'KEEPTTL')
    return 1
  end
end
return 0";

/// Arguments: owner, retry key or `-`, retry window in milliseconds, retention in milliseconds.
const CONFIRM: &str = r"
local value = redis.pcall('GET', KEYS[1])
if value and value ~= 'r:' .. ARGV[1] then
  if type(value) ~= 'string' then return 0 end
  local mine = 's:' .. ARGV[1] .. ':'
  return string.sub(value, 1, #mine) == mine and 1 or 0
end
local now = redis.call('TIME')
local last = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[3])
redis.call('SET', KEYS[1], 's:' .. ARGV[1] .. ':' .. last .. ':' .. ARGV[2], 'PX', ARGV[4])
return 1";

/// Argument: owner.
const RELEASE: &str = r"
if redis.pcall('GET', KEYS[1]) == 'r:' .. ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1";

impl<C: ConnectionLike + Clone + Send + Sync + 'static> ReplayGuard for RedisReplayGuard<C> {
    async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Reservation, GuardError> {
        let arguments = [&*claim.owner().to_string(), &retry_key(claim), &millis(self.lease)];
        self.judge(self.run(key, RESERVE, &arguments).await)
    }

    async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Reservation, GuardError> {
        let arguments = [
            &*claim.owner().to_string(),
            &retry_key(claim),
            &millis(claim.retry_window()),
            &millis(self.retention),
        ];
        self.judge(self.run(key, CONFIRM, &arguments).await)
    }

    async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        let answer = self.run(key, RELEASE, &[&claim.owner().to_string()]).await;
        answer.map(drop).map_err(GuardError::new)
    }

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        // Without a runtime, as when the process ends, the reservation lapses by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (guard, scope, digest) = (self.clone(), key.scope().to_owned(), key.digest());
        let claim = Claim::new(claim.owner());
        runtime.spawn(async move {
            let _ = guard.release(&ReplayKey::new(&scope, digest), &claim).await;
        });
    }
}

impl<C> fmt::Debug for RedisReplayGuard<C> {
    // Without the connection, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisReplayGuard")
            .field("prefix", &self.prefix)
            .field("lease", &self.lease)
            .field("retention", &self.retention)
            .field("admit_without_redis", &self.admit_without_redis)
            .finish_non_exhaustive()
    }
}

fn retry_key(claim: &Claim) -> String {
    claim.retry_digest().map_or_else(|| "-".to_owned(), |digest| digest.to_string())
}

/// At least one, which Redis demands, and no more than it can add to its clock.
fn millis(duration: Duration) -> String {
    duration.as_millis().clamp(1, 1 << 48).to_string()
}
