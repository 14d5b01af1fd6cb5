//! RateLimiter: a limit for each client.

use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

use governor::{Quota, RateLimiter as Governor, clock::Clock, middleware::NoOpMiddleware, nanos::Nanos};
use http::request;

use crate::device_check::limit::buckets::{Buckets, SinceStart, Store};
use crate::device_check::limit::key::LimitKey;
use crate::device_check::limit::limiter::Limiter;

/// A [`Limiter`] with a bucket of permits for each client.
///
/// A bucket is full at first, and fills evenly: `RateLimiter::new(30, Duration::from_secs(60), …)` lets a client have
/// Apple asked 30 times at once, and then once in 2 seconds, or 30 times again after a minute. That is GCRA, as the crate
/// [governor](https://docs.rs/governor) computes it. `Retry-After` is the time until the client's next permit.
///
/// A closure says which client a request counts for: see [`LimitKey`], [`peer_address`](crate::limit::peer_address) and
/// [`forwarded_for`](crate::limit::forwarded_for). **All requests for which it returns `None` share one bucket**, the
/// common one: a request that cannot be told from others is not unlimited. The closure must not block or panic.
///
/// # Memory
///
/// A client takes about 60 bytes, from its first permit until its bucket is full again, which is `per` at most. There
/// are 100,000 clients at most, unless [`with_capacity`](Self::with_capacity) says otherwise. While there are so many,
/// further clients share the common bucket, and those that have one keep it. One check takes about a microsecond under a
/// lock, however many clients there are; buckets that are full again are removed two at a time.
///
/// # Clone
///
/// Clones share their buckets: give clones to several layers, and they have one limit. Each process counts for itself.
///
/// # By split id
///
/// All installations of an app share a split id, so this bounds an app, not a device. Until Apple has answered, the
/// client part is only a claim. Hence the list.
#[cfg_attr(
    feature = "split-key",
    doc = r#"
```
use std::{collections::HashSet, time::Duration};
use http::request;
use tower_devicecheck::{limit::{LimitKey, RateLimiter}, split_key::{ClientPart, SplitId}};

fn by_app(ours: HashSet<SplitId>) -> RateLimiter {
    RateLimiter::new(6_000, Duration::from_secs(60), move |head: &request::Parts| {
        let part: ClientPart = head.headers.get("x-ai-key")?.to_str().ok()?.parse().ok()?;
        let id = part.metadata().split();
        // Made-up ids share the common bucket.
        ours.contains(&id).then(|| LimitKey::from(&*id.to_string()))
    })
}
```
"#
)]
#[derive(Clone)]
pub struct RateLimiter {
    key: Arc<dyn FindKey>,
    permits: u32,
    per: Duration,
    buckets: Arc<Buckets>,
    /// `None`: there are no permits.
    governor: Option<Arc<Permits>>,
}

type Permits = Governor<Option<LimitKey>, Store, SinceStart, NoOpMiddleware<Nanos>>;

/// Finds the client that a request counts for; a name for the closures that do.
trait FindKey: Fn(&request::Parts) -> Option<LimitKey> + Send + Sync {}

impl<F: Fn(&request::Parts) -> Option<LimitKey> + Send + Sync> FindKey for F {}

const DEFAULT_CAPACITY: usize = 100_000;

/// The longest time in which a bucket fills. governor counts nanoseconds in 64 bits, and does not look whether they
/// suffice.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl RateLimiter {
    /// Lets each client have Apple asked `permits` times in `per`; `key` says which client a request counts for.
    ///
    /// `permits` of zero: no request has Apple asked. `per` is 366 days at most, longer ones count as that; zero: there
    /// is in effect no limit. Permits come back one at a time, each a nanosecond at least after the one before.
    #[must_use]
    pub fn new(
        permits: u32,
        per: Duration,
        key: impl Fn(&request::Parts) -> Option<LimitKey> + Send + Sync + 'static,
    ) -> Self {
        Self::build(Arc::new(key), permits, per.min(LONGEST), DEFAULT_CAPACITY)
    }

    /// Sets how many clients have a bucket of their own at the same time; zero: none. It takes memory as it needs it.
    /// Default: 100,000.
    ///
    /// All buckets are full again after this, and no longer those of the limiter's clones.
    #[must_use]
    pub fn with_capacity(self, clients: usize) -> Self {
        Self::build(self.key, self.permits, self.per, clients)
    }

    fn build(key: Arc<dyn FindKey>, permits: u32, per: Duration, capacity: usize) -> Self {
        let clock = SinceStart::now();
        let buckets = Arc::new(Buckets::new(clock, capacity));
        let governor = NonZeroU32::new(permits).and_then(|burst| {
            let quota = Quota::with_period((per / permits).max(Duration::from_nanos(1)))?.allow_burst(burst);
            Some(Arc::new(Governor::new(quota, Store(Arc::clone(&buckets)), clock)))
        });
        Self { key, permits, per, buckets, governor }
    }

    /// The number of clients that have a bucket of their own now. Some of the buckets may be full again.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether no client has a bucket of its own now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Limiter for RateLimiter {
    fn check(&self, head: &request::Parts) -> Result<(), Duration> {
        let Some(governor) = &self.governor else { return Err(LONGEST) };
        let key = (self.key)(head);
        governor.check_key(&key).map_err(|until| until.wait_time_from(governor.clock().now()))
    }
}

impl fmt::Debug for RateLimiter {
    // The closure is not asked to print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("permits", &self.permits)
            .field("per", &self.per)
            .field("clients", &self.len())
            .finish_non_exhaustive()
    }
}
