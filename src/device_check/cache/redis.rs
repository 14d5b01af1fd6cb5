//! A cache that replicas share.

use std::{fmt, time::Duration};

use crate::{
    device_check::cache::{
        cached_verdict::CachedVerdict,
        stored_verdict::{Seal, StoredVerdict},
        verdict_cache::{MayAsk, VerdictCache},
        verdict_key::VerdictKey,
    },
    gate::observer::CacheError,
    redis::{Access, Redis, RedisFailure},
    replay::owner::Owner,
    runtime::{Instant, SystemTime, millis, since_epoch},
};

/// Verdicts in Redis or Valkey, shared by all replicas that use the same server and prefix.
///
/// Put a [`MemoryCache`](crate::cache::MemoryCache) in front of it, so that a token that this process knows
/// costs no round trip:
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
/// Slow, down, restarting, read-only, out of memory or answering nonsense, it counts as a cache that has
/// nothing: Apple is asked. A request waits for Redis no longer than the [deadline](Redis::with_deadline) in all, before
/// and after Apple is asked; a verdict is written even if no time is left. [`Redis`] says what happens during an
/// outage and what is logged; [`Observer::cache_error`](crate::Observer::cache_error) hears of every failure.
///
/// # What is kept, and who can change it
///
/// The key holds prefix, scope, environment and the token's SHA-256, the value the verdict and its times, in
/// 50 bytes: who reads Redis learns no token. A value that this version has not written under this very key is
/// not believed. **Whoever can write to Redis and knows this crate can write a verdict that is believed,
/// unless values are authenticated** by [`with_secret`](Self::with_secret).
///
/// Times are the replicas' wall clocks: one that is ahead forgets verdicts early, and none keeps one for
/// longer than its time to live.
#[derive(Clone)]
pub struct RedisCache {
    redis: Redis,
    seal: Seal,
    lease: Option<Duration>,
}

impl RedisCache {
    /// A cache on this server.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        redis.add_user("verdict cache");
        Self { redis, seal: Seal::new(&[]), lease: None }
    }

    /// Authenticates values with HMAC-SHA-256, so that who can write to Redis but does not know this secret
    /// can make no verdict. All replicas need the same one; 32 random bytes are a good one.
    ///
    /// It does not keep them from deleting verdicts, nor from putting one back that was good before within
    /// its time to live.
    #[must_use]
    pub fn with_secret(mut self, secret: &[u8]) -> Self {
        self.seal = Seal::new(secret);
        self
    }

    /// Lets one replica ask about a token at a time, so that a token that arrives at all replicas at once
    /// makes one call to Apple. Default: each replica asks for itself.
    ///
    /// Whoever asks holds a lease for `lease`; give it about twice the time that Apple usually takes to
    /// answer, such as 2 seconds. The others look for the verdict every 10 to 50 ms. When the lease ends
    /// without one, because its holder died, one of them gets it; who has waited for `lease` in all asks Apple
    /// in any case.
    #[must_use]
    pub fn with_fleet_single_flight(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    // The digest in braces is what a cluster chooses the node by: a verdict and its lease are on one.

    fn verdict_name(&self, key: &VerdictKey<'_>) -> String {
        let (scope, environment) = (key.scope(), char::from(key.environment().letter()));
        format!("{}:v1:{scope}:{environment}:{{{}}}", self.redis.prefix(), key.digest())
    }

    fn lease_name(&self, key: &VerdictKey<'_>) -> String {
        let (scope, environment) = (key.scope(), char::from(key.environment().letter()));
        format!("{}:lease1:{scope}:{environment}:{{{}}}", self.redis.prefix(), key.digest())
    }

    /// No value is `None`, a strange one an error.
    fn open(&self, key: &VerdictKey<'_>, value: &[u8]) -> Result<Option<CachedVerdict>, RedisFailure> {
        if value.is_empty() {
            return Ok(None);
        }
        let sealed = self.seal.open(key, value).ok_or_else(|| self.redis.rubbish())?;
        Ok(sealed.at(since_epoch(SystemTime::now()), key))
    }

    async fn try_lease(
        &self,
        key: &VerdictKey<'_>,
        owner: Owner,
        lease: Duration,
    ) -> Result<LeaseState, RedisFailure> {
        let mut commands = redis::pipe();
        commands.cmd("SET").arg(self.lease_name(key)).arg(owner.to_string());
        commands.arg("NX").arg("PX").arg(millis(lease).max(1));
        // After the lease, for its last holder gave it up after it had put the verdict.
        commands.cmd("GETRANGE").arg(self.verdict_name(key)).arg(0).arg(StoredVerdict::LENGTH);
        let (leased, value): (bool, Vec<u8>) = self.redis.query(Access::Write, commands).await?;
        Ok(match self.open(key, &value).unwrap_or(None) {
            Some(verdict) => LeaseState::Known { verdict, leased },
            None if leased => LeaseState::Ours,
            None => LeaseState::Others,
        })
    }
}

/// Who asks, as of now.
enum LeaseState {
    Ours,
    Others,
    Known { verdict: CachedVerdict, leased: bool },
}

/// Deletes a lease that is still its owner's.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

impl VerdictCache for RedisCache {
    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        let mut command = redis::cmd("GETRANGE");
        // One byte more than a value has, and no more, whatever is there.
        command.arg(self.verdict_name(key)).arg(0).arg(StoredVerdict::LENGTH);
        let value: Vec<u8> = self.redis.query(Access::Read, command).await.map_err(CacheError::new)?;
        self.open(key, &value).map_err(CacheError::new)
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
        };
        let mut command = redis::cmd("SET");
        command.arg(self.verdict_name(key)).arg(&self.seal.close(key, &value)[..]);
        command.arg("PX").arg(time_to_live);
        self.redis.query_to_end(Access::Write, command).await.map_err(CacheError::new)
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
            // Between a half and the whole of it, so that the replicas do not look all at once.
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
        // A lease that is not given back ends by itself.
        let _: Result<u8, RedisFailure> = self.redis.query_to_end(Access::Write, command).await;
    }
}

impl fmt::Debug for RedisCache {
    // Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache")
            .field("redis", &self.redis)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
