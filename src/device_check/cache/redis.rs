//! A cache that replicas share.

use std::{fmt, time::Duration};

use crate::apple::token::Verdict;
use crate::device_check::cache::stored_verdict::{Seal, StoredVerdict};
use crate::device_check::cache::verdict_cache::{MayAsk, VerdictCache};
use crate::device_check::cache::{cached_verdict::CachedVerdict, verdict_key::VerdictKey};
use crate::gate::observer::CacheError;
use crate::meter::{CACHE_LOOKUPS, label};
use crate::redis::{Access, Redis, RedisFailure, RedisUser, expiry};
use crate::replay::owner::Owner;
use crate::runtime::{Instant, SystemTime, millis, since_epoch};

/// A cache in Redis or Valkey, shared by all replicas that use the same server and prefix.
///
/// Put a `MemoryCache` in front of it, so that a token known to this process costs no round trip:
///
/// ```no_run
/// use tower_devicecheck::{
///     DeviceCheckLayer, Redis,
///     cache::{MemoryCache, RedisCache, Tiered},
/// };
///
/// # async fn layer(apple: impl tower_devicecheck::DeviceVerifier) -> redis::RedisResult<DeviceCheckLayer> {
/// let shared = RedisCache::new(Redis::connect("redis://127.0.0.1/").await?.with_prefix("my-api"));
/// let layer = DeviceCheckLayer::new(apple).with_cache(Tiered::new(MemoryCache::new(), shared));
/// # Ok(layer)
/// # }
/// ```
///
/// # When Redis fails
///
/// A Redis that is slow, down, restarting, read-only or out of memory, or that returns garbage, counts as an empty
/// cache: the layer asks Apple. A request waits for Redis for the [deadline](Redis::with_deadline) at most, before and
/// after the call to Apple together. The cache writes the verdict even if no time is left. [`Redis`] documents outages
/// and their log lines; [`Observer::cache_error`](crate::Observer::cache_error) receives every failure.
///
/// # Contents
///
/// A key holds the prefix, the scope, the environment, whether the verdict is one with marks, and the token's SHA-256. A
/// value holds the verdict, its times and the bits of the device, in 54 bytes. Redis therefore reveals no token to its readers. The cache accepts only values that this version wrote
/// under the same key.
///
/// Times come from the replicas' wall clocks. A replica whose clock is ahead expires verdicts early. A clock that is
/// behind does not extend a time to live.
///
/// # Marks
///
/// With [marks](crate::DeviceCheckLayer::with_marks), the cache also sends `EVAL`, `EXISTS` and `DEL`.
///
/// # Danger
///
/// Anyone who can write to Redis and knows this crate can admit any token as genuine, unless values are
/// authenticated [with a secret](Self::with_secret).
#[derive(Clone)]
pub struct RedisCache {
    redis: Redis,
    seal: Seal,
    lease: Option<Duration>,
}

const USER: RedisUser = RedisUser {
    name: "verdict cache",
    commands: &["GETRANGE", "PTTL", "SET"],
    must_keep: false,
    access: Access::ReadVerdict,
};

const LEASES: RedisUser = RedisUser {
    name: "verdict cache",
    commands: &["EVAL", "GET", "DEL"],
    must_keep: false,
    access: Access::Lease,
};

impl RedisCache {
    /// Makes a cache on this server.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        redis.add_user(&USER);
        Self { redis, seal: Seal::new(&[]), lease: None }
    }

    /// Authenticates values with HMAC-SHA-256, so that an attacker who can write to Redis but lacks the secret cannot
    /// forge a verdict. All replicas need the same secret, such as 32 random bytes. Default: no secret.
    ///
    /// Such an attacker can still delete verdicts, and restore an old one within its time to live.
    #[must_use]
    pub fn with_secret(mut self, secret: &[u8]) -> Self {
        self.seal = Seal::new(secret);
        self
    }

    /// Lets one replica at a time ask about a token. A token that arrives at all replicas at once then causes one call
    /// to Apple. Default: each replica asks for itself.
    ///
    /// The replica that asks holds a lease for the time `lease`. Choose about twice Apple's usual response time, such
    /// as 2 seconds. The other replicas look for the verdict every 10 to 50 ms. If the holder dies, the lease expires
    /// and another replica gets it. A replica that has waited for `lease` in total asks Apple in any case.
    #[must_use]
    pub fn with_fleet_single_flight(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self.redis.add_user(&LEASES);
        self
    }

    // A cluster chooses the node by the text in braces, the digest. A verdict and its lease are therefore on the same
    // node.

    fn verdict_name(&self, key: &VerdictKey<'_>) -> String {
        self.name("v2", key)
    }

    fn lease_name(&self, key: &VerdictKey<'_>) -> String {
        self.name("lease1", key)
    }

    fn forgotten_name(&self, key: &VerdictKey<'_>) -> String {
        self.name("forgotten1", key)
    }

    fn name(&self, kind: &str, key: &VerdictKey<'_>) -> String {
        let letter = char::from(key.letter());
        format!("{}:{kind}:{}:{letter}:{{{}}}", self.redis.prefix(), key.scope(), key.digest())
    }

    /// Reads a value. Returns `None` if Redis has no value or it has expired, and an error if this version did not
    /// write it. `left` is the time for which Redis will keep the value, in milliseconds. It is negative if Redis has
    /// no value or keeps it for ever.
    fn open(
        &self,
        key: &VerdictKey<'_>,
        value: &[u8],
        left: i64,
    ) -> Result<Option<CachedVerdict>, RedisFailure> {
        if value.is_empty() {
            return Ok(None);
        }
        let sealed = self.seal.open(key, value).ok_or_else(|| self.redis.rubbish())?;
        let Some(verdict) = sealed.at(since_epoch(SystemTime::now()), key) else { return Ok(None) };
        // The clock of this process may be behind. The writer and all readers share Redis's clock.
        let left = u64::try_from(left).map_or(Duration::MAX, Duration::from_millis);
        Ok(Some(verdict.with_time_to_live(verdict.time_to_live().min(left))))
    }

    async fn look_up(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, RedisFailure> {
        let name = self.verdict_name(key);
        let mut commands = redis::pipe();
        // Reads one byte more than a valid value has, even if the value in Redis is longer.
        commands.cmd("GETRANGE").arg(&name).arg(0).arg(StoredVerdict::LENGTH);
        commands.cmd("PTTL").arg(&name);
        let answers = self.redis.query(Access::ReadVerdict, commands).await?;
        let (value, left): (Vec<u8>, i64) = answers;
        self.open(key, &value, left)
    }

    async fn try_lease(
        &self,
        key: &VerdictKey<'_>,
        owner: Owner,
        lease: Duration,
    ) -> Result<LeaseState, RedisFailure> {
        let mut command = redis::cmd("EVAL");
        command.arg(LEASE).arg(2).arg(self.lease_name(key)).arg(self.verdict_name(key));
        command.arg(owner.to_string()).arg(expiry(lease)).arg(StoredVerdict::LENGTH);
        let (leased, value, left): (bool, Vec<u8>, i64) = self.redis.query(Access::Lease, command).await?;
        Ok(match self.open(key, &value, left).unwrap_or(None) {
            Some(verdict) => LeaseState::Known { verdict, leased },
            None if leased => LeaseState::Ours,
            None => LeaseState::Others,
        })
    }
}

/// Tries to get a lease, and reads the verdict, because a holder stores the verdict before it releases the lease.
/// Arguments: owner, lease in milliseconds, length of a value.
const LEASE: &str = r"
local value = redis.pcall('GET', KEYS[1])
if not value then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  value = ARGV[1]
end
local verdict = redis.pcall('GETRANGE', KEYS[2], 0, ARGV[3])
if type(verdict) ~= 'string' then verdict = '' end
return {value == ARGV[1] and 1 or 0, verdict, redis.call('PTTL', KEYS[2])}";

/// The state of a lease after an attempt to get it.
enum LeaseState {
    Ours,
    Others,
    Known { verdict: CachedVerdict, leased: bool },
}

/// Stores a verdict with marks unless the marks were forgotten a moment ago. Arguments: value, time to live in
/// milliseconds.
const PUT_MARKS: &str = r"
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end";

/// Deletes a lease if the owner still holds it.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

impl VerdictCache for RedisCache {
    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        let found = self.look_up(key).await;
        let result = match &found {
            Ok(Some(_)) => "hit",
            Ok(None) => "miss",
            Err(_) => "error",
        };
        CACHE_LOOKUPS.add([label("cache", "redis"), label("result", result)]);
        found.map_err(CacheError::new)
    }

    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        let time_to_live = millis(verdict.time_to_live());
        if time_to_live == 0 {
            return Ok(());
        }
        let now = millis(since_epoch(SystemTime::now()));
        let value = StoredVerdict {
            verdict: verdict.verdict(),
            checked_at: millis(since_epoch(verdict.checked_at())),
            expires_at: now.saturating_add(time_to_live),
            bits: verdict.bits(),
        };
        let (name, value) = (self.verdict_name(key), self.seal.close(key, &value));
        let mut command;
        // A refusal lets nobody in.
        if key.is_for_marks() && verdict.verdict() == Verdict::Genuine {
            command = redis::cmd("EVAL");
            command.arg(PUT_MARKS).arg(2).arg(name).arg(self.forgotten_name(key)).arg(&value[..]);
        } else {
            command = redis::cmd("SET");
            command.arg(name).arg(&value[..]).arg("PX");
        }
        command.arg(expiry(verdict.time_to_live()));
        self.redis.query_to_end(Access::WriteVerdict, command).await.map_err(CacheError::new)
    }

    async fn forget(&self, key: &VerdictKey<'_>, hold: Duration) -> Result<(), CacheError> {
        let mut commands = redis::pipe();
        // First, so that no verdict is stored in between.
        commands.cmd("SET").arg(self.forgotten_name(key)).arg("").arg("PX").arg(expiry(hold));
        commands.cmd("DEL").arg(self.verdict_name(key));
        let done = self.redis.query_to_end::<(String, u8)>(Access::Forget, commands).await;
        done.map(drop).map_err(CacheError::new)
    }

    fn deadline(&self) -> Duration {
        self.redis.deadline()
    }

    async fn lease(&self, key: &VerdictKey<'_>) -> MayAsk {
        let Some(lease) = self.lease else { return MayAsk::Freely };
        let owner = Owner::random();
        let started = Instant::now();
        let mut jitter = owner.as_bytes().iter().cycle();
        let mut pause = Duration::from_millis(10);
        loop {
            match self.try_lease(key, owner, lease).await {
                Ok(LeaseState::Known { verdict, leased }) => {
                    if leased {
                        self.release(key, owner).await;
                    }
                    return MayAsk::NoNeed(verdict);
                }
                Ok(LeaseState::Others) => {}
                Ok(LeaseState::Ours) => return MayAsk::UnderLease(owner),
                Err(_) => return MayAsk::Freely,
            }
            // Waits for a random part of the pause, at least half, so that the replicas do not look simultaneously.
            let part = 128 + u32::from(*jitter.next().unwrap_or(&0)) / 2;
            let wait = pause * part / 256;
            if started.elapsed() + wait >= lease {
                return MayAsk::Freely;
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    async fn release(&self, key: &VerdictKey<'_>, owner: Owner) {
        let mut command = redis::cmd("EVAL");
        command.arg(RELEASE).arg(1).arg(self.lease_name(key)).arg(owner.to_string());
        // The lease ends by itself if this fails.
        let _: Result<u8, RedisFailure> = self.redis.query_to_end(Access::Lease, command).await;
    }
}

impl fmt::Debug for RedisCache {
    // Omits the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache")
            .field("redis", &self.redis)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
