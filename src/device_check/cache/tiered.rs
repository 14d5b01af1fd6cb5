//! A cache made of two caches.

use std::time::Duration;

use futures_util::future::join;

use crate::device_check::cache::verdict_cache::{MayAsk, VerdictCache};
use crate::device_check::cache::{cached_verdict::CachedVerdict, verdict_key::VerdictKey};
use crate::{gate::observer::CacheError, replay::owner::Owner};

/// A near cache in front of a far one. A verdict found in the far cache is copied to the near cache for the rest of its
/// time to live.
///
/// The near cache keeps no verdicts with [marks](crate::DeviceCheckLayer::with_marks), because the near caches of other
/// processes could not be made to forget them. Each request to a layer with marks looks into the far cache.
#[derive(Clone, Debug)]
pub struct Tiered<Near, Far> {
    near: Near,
    far: Far,
}

impl<Near, Far> Tiered<Near, Far> {
    /// Puts `near`, usually a `MemoryCache`, in front of `far`, usually a cache shared by replicas.
    #[must_use]
    pub const fn new(near: Near, far: Far) -> Self {
        Self { near, far }
    }
}

impl<Near: VerdictCache, Far: VerdictCache> VerdictCache for Tiered<Near, Far> {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        if key.is_for_marks() {
            return self.far.peek(key);
        }
        self.near.peek(key).or_else(|| self.far.peek(key))
    }

    /// Searches the near cache first. An error of the near cache is ignored if the far cache has the verdict.
    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        if key.is_for_marks() {
            return self.far.get(key).await;
        }
        let near = self.near.get(key).await;
        if let Ok(Some(_)) = near {
            return near;
        }
        let Some(found) = self.far.get(key).await? else {
            return near;
        };
        // The verdict matters more than an error of the near cache.
        let _ = self.near.put(key, found).await;
        Ok(Some(found))
    }

    /// Stores the verdict in both caches at the same time. If both fail, returns the far cache's error.
    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        if key.is_for_marks() {
            return self.far.put(key, verdict).await;
        }
        // A slow near cache must not keep the verdict from the far one.
        let (near, far) = join(self.near.put(key, verdict), self.far.put(key, verdict)).await;
        far.and(near)
    }

    /// Returns the far cache's deadline, because requests hardly wait for the near cache.
    fn deadline(&self) -> Duration {
        self.far.deadline()
    }

    /// Tries to get the far cache's lease, because other processes share the far cache.
    async fn lease(&self, key: &VerdictKey<'_>) -> MayAsk {
        let may_ask = self.far.lease(key).await;
        if let MayAsk::NoNeed(found) = may_ask
            && !key.is_for_marks()
        {
            let _ = self.near.put(key, found).await;
        }
        may_ask
    }

    /// Makes the far cache forget, because the near one has nothing to forget.
    async fn forget(&self, key: &VerdictKey<'_>, hold: Duration) -> Result<(), CacheError> {
        self.far.forget(key, hold).await
    }

    async fn release(&self, key: &VerdictKey<'_>, owner: Owner) {
        self.far.release(key, owner).await;
    }
}
