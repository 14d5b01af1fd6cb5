//! A guard that replicas share.

use std::time::Duration;

use crate::redis::{Access, Redis, RedisFailure, RedisUser, expiry};
use crate::replay::claim::{Claim, Claimed, ReplayKey};
use crate::replay::guard::{DEFAULT_LEASE, DEFAULT_RETENTION, GuardError, ReplayGuard};

/// A guard in Redis or Valkey, for all replicas that use the same server and prefix.
///
/// ```no_run
/// use tower_devicecheck::{DeviceCheckLayer, Redis, replay::RedisReplayGuard};
///
/// # async fn layer(apple: impl tower_devicecheck::DeviceVerifier) -> redis::RedisResult<DeviceCheckLayer> {
/// let guard = RedisReplayGuard::new(Redis::connect("redis://127.0.0.1/").await?);
/// let layer = DeviceCheckLayer::new(apple).with_single_use(guard);
/// # Ok(layer)
/// # }
/// ```
///
/// Each step is one script in Redis and therefore atomic for all replicas. The key holds the prefix, the scope and the
/// token's SHA-256. Redis therefore reveals no token to its readers. If a value was not written by this crate, the
/// guard treats the token as taken.
///
/// # When Redis fails
///
/// The layer rejects requests as [`Unavailable`](crate::Rejection::Unavailable), unless the operator chose
/// [otherwise](Self::dangerously_admit_without_redis). It does so within the [deadline](Redis::with_deadline) of the
/// failed step, 1 second by default. If the first step fails, the layer does not ask Apple. The layer gives back the
/// reservation of such a request, and retries this until the lease is over. [`Redis`] documents outages and their log
/// lines.
///
/// # Danger
///
/// A token that Redis forgets can be used again for as long as Apple accepts it. Let Redis evict nothing
/// (`maxmemory-policy noeviction`). Redis forgets tokens in a restart without persistence, and in a failover to a
/// replica that lags. Anyone who can write to Redis can delete tokens.
#[derive(Clone, Debug)]
pub struct RedisReplayGuard {
    redis: Redis,
    lease: Duration,
    retention: Duration,
    admit_without_redis: bool,
}

const USER: RedisUser = RedisUser {
    name: "replay guard",
    commands: &["EVAL", "GET", "SET", "DEL", "TIME"],
    must_keep: true,
    access: Access::Guard,
};

impl RedisReplayGuard {
    /// Makes a guard on this server.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        redis.add_user(&USER);
        Self { redis, lease: DEFAULT_LEASE, retention: DEFAULT_RETENTION, admit_without_redis: false }
    }

    /// Sets the time after which a reservation lapses if it is neither confirmed nor released. Default: 30 seconds.
    ///
    /// It must be longer than the deadline for Apple's answer.
    #[must_use]
    pub const fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets the time for which the guard remembers a spent token. Default: 1 hour.
    ///
    /// # Danger
    ///
    /// After this time, a captured token can be used again if Apple still accepts it. Apple does not document for how
    /// long it accepts a token. Developers have seen half a minute.
    #[must_use]
    pub const fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Sets whether a request with a genuine token is admitted even if Redis does not answer or returns an error.
    /// Default: `false`, the layer rejects it as [`Unavailable`](crate::Rejection::Unavailable).
    ///
    /// # Danger
    ///
    /// With `true`, an attacker who makes Redis fail, or waits until it fails, can use a captured token for as long as
    /// Apple accepts it.
    #[must_use]
    pub const fn dangerously_admit_without_redis(mut self, admit: bool) -> Self {
        self.admit_without_redis = admit;
        self
    }

    /// Runs a script on a token. Returns whether the token belongs to this claim.
    async fn run(
        &self,
        access: Access,
        key: &ReplayKey<'_>,
        script: &str,
        arguments: &[&str],
    ) -> Result<bool, RedisFailure> {
        let mut command = redis::cmd("EVAL");
        // A cluster chooses the node by the text in braces, the digest.
        let name = format!("{}:use1:{}:{{{}}}", self.redis.prefix(), key.scope(), key.digest());
        command.arg(script).arg(1).arg(name).arg(arguments);
        self.redis.query(access, command).await
    }

    fn judge(&self, answer: Result<bool, RedisFailure>) -> Result<Claimed, GuardError> {
        match answer {
            Ok(true) => Ok(Claimed::Yours),
            Ok(false) => Ok(Claimed::Taken),
            Err(_) if self.admit_without_redis => Ok(Claimed::Yours),
            Err(failure) => {
                let is_untouched = matches!(failure, RedisFailure::Down);
                Err(GuardError::new(failure).untouched(is_untouched))
            }
        }
    }
}

// The value of a token begins with a letter and its owner:
// - `r:<owner>`: reserved.
// - `s:<owner>:<end>:<key>`: spent, with the end of the retry window (milliseconds since the Unix epoch by
//   Redis's clock) and the digest of the idempotency key or `-`. The owner `00` has withdrawn from the retry.
// - `u:<owner>:<end>:<key>`: spent, and used by the one retry.
// - `f:<owner>`: free. This owner has withdrawn, and a command of it that arrives later counts for nothing.

/// Arguments: owner, retry key or `-`, lease in milliseconds.
const RESERVE: &str = r"
local value = redis.pcall('GET', KEYS[1])
if value and type(value) ~= 'string' then return 0 end
local kind, owner, rest = string.match(value or '', '^([rsuf]):(%x+)(.*)$')
if owner == ARGV[1] then return (kind == 'r' or kind == 'u') and 1 or 0 end
if not value or kind == 'f' then
  redis.call('SET', KEYS[1], 'r:' .. ARGV[1], 'PX', ARGV[3])
  return 1
end
local last, retry = string.match(rest or '', '^:(%d+):(%x+)$')
if kind == 's' and last and retry == ARGV[2] then
  local now = redis.call('TIME')
  if now[1] * 1000 + math.floor(now[2] / 1000) < tonumber(last) then
    redis.call('SET', KEYS[1], 'u:' .. ARGV[1] .. rest, 'KEEPTTL')
    return 1
  end
end
return 0";

/// Arguments: owner, retry key or `-`, retry window in milliseconds, retention in milliseconds.
const CONFIRM: &str = r"
local value = redis.pcall('GET', KEYS[1])
if value and type(value) ~= 'string' then return 0 end
local kind, owner = string.match(value or '', '^([rsuf]):(%x+)')
if owner == ARGV[1] and kind ~= 'r' then return kind == 'f' and 0 or 1 end
if value and owner ~= ARGV[1] and kind ~= 'f' then return 0 end
local now = redis.call('TIME')
local last = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[3])
redis.call('SET', KEYS[1], 's:' .. ARGV[1] .. ':' .. last .. ':' .. ARGV[2], 'PX', ARGV[4])
return 1";

/// Argument: owner.
const RELEASE: &str = r"
if redis.pcall('GET', KEYS[1]) == 'r:' .. ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1";

/// Arguments: owner, lease in milliseconds.
const WITHDRAW: &str = r"
local value = redis.pcall('GET', KEYS[1])
if value and type(value) ~= 'string' then return 1 end
local kind, owner, rest = string.match(value or '', '^([rsuf]):(%x+)(.*)$')
if value and owner ~= ARGV[1] then return 1 end
if kind == 'u' then
  redis.call('SET', KEYS[1], 's:00' .. rest, 'KEEPTTL')
else
  redis.call('DEL', KEYS[1])
  redis.pcall('SET', KEYS[1], 'f:' .. ARGV[1], 'PX', ARGV[2])
end
return 1";

impl ReplayGuard for RedisReplayGuard {
    async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        let arguments = [&*claim.owner().to_string(), &retry_key(claim), &expiry(self.lease)];
        self.judge(self.run(Access::Guard, key, RESERVE, &arguments).await)
    }

    async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        let arguments = [
            &*claim.owner().to_string(),
            &retry_key(claim),
            &expiry(claim.retry_window()),
            &expiry(self.retention),
        ];
        self.judge(self.run(Access::Guard, key, CONFIRM, &arguments).await)
    }

    async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        let answer = self.run(Access::Guard, key, RELEASE, &[&claim.owner().to_string()]).await;
        answer.map(drop).map_err(GuardError::new)
    }

    async fn withdraw(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        let arguments = [&*claim.owner().to_string(), &expiry(self.lease)];
        let answer = self.run(Access::Undo, key, WITHDRAW, &arguments).await;
        answer.map(drop).map_err(GuardError::new)
    }

    fn lease(&self) -> Duration {
        self.lease
    }
}

fn retry_key(claim: &Claim) -> String {
    claim.retry_digest().map_or_else(|| "-".to_owned(), |digest| digest.to_string())
}
