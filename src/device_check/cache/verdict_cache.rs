//! The `VerdictCache` trait, its dyn-safe twin, and its error.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use crate::device_check::cache::{cached_verdict::CachedVerdict, verdict_key::VerdictKey};
use crate::{gate::observer::CacheError, replay::owner::Owner};

/// A cache of verdicts: `MemoryCache` in the process, `RedisCache` shared by processes,
/// [`Tiered`](crate::cache::Tiered) for both.
///
/// The layer stores only verdicts, never failures. A cache that fails counts as empty. Where there are timers, so does a
/// cache that exceeds its [deadline](Self::deadline).
///
/// For a layer [with marks](crate::DeviceCheckLayer::with_marks), a cache also keeps the [bits](CachedVerdict::bits) and
/// implements [`forget`](Self::forget).
///
/// # Danger
///
/// A cache decides which requests are admitted: the layer believes every verdict that it finds in the cache.
///
/// ```
/// use std::{collections::HashMap, sync::Mutex, time::Instant};
/// use tower_devicecheck::{
///     Environment, TokenDigest,
///     cache::{CacheError, CachedVerdict, VerdictCache, VerdictKey},
/// };
///
/// /// Grows without bounds, so it is fit for a page of documentation only.
/// #[derive(Default)]
/// struct Forever(Mutex<HashMap<(String, Environment, TokenDigest), (Instant, CachedVerdict)>>);
///
/// fn owned(key: &VerdictKey<'_>) -> (String, Environment, TokenDigest) {
///     (key.scope().to_owned(), key.environment(), key.digest())
/// }
///
/// impl VerdictCache for Forever {
///     async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
///         let map = self.0.lock().map_err(|_| CacheError::new("poisoned"))?;
///         let Some((put_at, cached)) = map.get(&owned(key)) else { return Ok(None) };
///         let left = cached.time_to_live().checked_sub(put_at.elapsed());
///         Ok(left.map(|left| cached.with_time_to_live(left)))
///     }
///
///     async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
///         let mut map = self.0.lock().map_err(|_| CacheError::new("poisoned"))?;
///         map.insert(owned(key), (Instant::now(), verdict));
///         Ok(())
///     }
/// }
/// # let _layer = |verifier: std::sync::Arc<tower_devicecheck::AppleClient>| {
/// #     tower_devicecheck::DeviceCheckLayer::new(verifier).with_cache(Forever::default())
/// # };
/// ```
#[diagnostic::on_unimplemented(note = "implement `get` and `put`, and `peek` for what is in the process")]
pub trait VerdictCache: Send + Sync + 'static {
    /// Looks into this process's memory only. The layer calls this for every request, so it must not block.
    /// Default: `None`.
    ///
    /// The text in `key` may not be a canonical token. A cache should answer only if it has a verdict for exactly this
    /// text. The layer checks the syntax of the text before it admits a request on a cache's verdict. It skips this
    /// check for verdicts of a `MemoryCache`, alone or in a [`Tiered`](crate::cache::Tiered), because a `MemoryCache`
    /// compares the whole text.
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        let _ = key;
        None
    }

    /// Looks in the whole cache, including the memory that [`peek`](Self::peek) searches. The answer holds the rest of
    /// the verdict's time to live.
    ///
    /// The layer calls this once for all concurrent requests to its services with the same token.
    ///
    /// # Errors
    ///
    /// Returns an error if the lookup fails. The request continues as if the cache were empty.
    fn get(
        &self,
        key: &VerdictKey<'_>,
    ) -> impl Future<Output = Result<Option<CachedVerdict>, CacheError>> + Send;

    /// Stores a verdict for its time to live, counted from now.
    ///
    /// A cache must be bounded, and a flood of refused tokens should not displace genuine ones.
    ///
    /// # Errors
    ///
    /// Returns an error if the verdict could not be stored. The request continues.
    fn put(
        &self,
        key: &VerdictKey<'_>,
        verdict: CachedVerdict,
    ) -> impl Future<Output = Result<(), CacheError>> + Send;

    /// The total time that one request waits for this cache. [`get`](Self::get), before the call to Apple, may use all
    /// of it; [`put`](Self::put) and [`release`](Self::release), afterwards, may use the rest. Each step gets at most
    /// one second. Default: 2 seconds.
    ///
    /// If no time is left, the layer polls the future of a `put` once and drops it. A shared cache should spawn its
    /// write, so that the verdict is stored nevertheless. The time spent in [`lease`](Self::lease) does not count.
    fn deadline(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// Decides whether this process asks Apple about a token that the cache does not know. This is for caches that let
    /// only one of several processes ask at a time. Default: [`MayAsk::Freely`].
    ///
    /// The layer calls this as often as [`get`](Self::get). The future may wait for the verdict of another process, but
    /// must end by itself. If the cache fails, the answer must let this process ask. A lease must expire by itself,
    /// because its holder may die, or all clients of its requests may disconnect.
    fn lease(&self, key: &VerdictKey<'_>) -> impl Future<Output = MayAsk> + Send {
        let _ = key;
        std::future::ready(MayAsk::Freely)
    }

    /// Gives back a [lease](MayAsk::UnderLease) of this owner, after the verdict was stored or Apple gave none.
    /// Default: does nothing.
    fn release(&self, key: &VerdictKey<'_>, owner: Owner) -> impl Future<Output = ()> + Send {
        let _ = (key, owner);
        std::future::ready(())
    }

    /// Forgets the verdict under this key in all processes that share the cache, and stores no genuine verdict under it
    /// for the time `hold`: a check that is under way may end with an answer that is out of date. Only keys
    /// [for marks](VerdictKey::is_for_marks) are forgotten. Default: an error.
    ///
    /// # Errors
    ///
    /// Returns an error if the old verdict may still be found. The handler that has changed the bits of a device gets it
    /// as `StillRemembered`.
    fn forget(
        &self,
        key: &VerdictKey<'_>,
        hold: Duration,
    ) -> impl Future<Output = Result<(), CacheError>> + Send {
        let _ = (key, hold);
        std::future::ready(Err(CacheError::new("this cache does not implement `forget`")))
    }
}

impl<C: VerdictCache> VerdictCache for Arc<C> {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        C::peek(self, key)
    }

    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        C::get(self, key).await
    }

    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        C::put(self, key, verdict).await
    }

    fn deadline(&self) -> Duration {
        C::deadline(self)
    }

    async fn lease(&self, key: &VerdictKey<'_>) -> MayAsk {
        C::lease(self, key).await
    }

    async fn release(&self, key: &VerdictKey<'_>, owner: Owner) {
        C::release(self, key, owner).await
    }

    async fn forget(&self, key: &VerdictKey<'_>, hold: Duration) -> Result<(), CacheError> {
        C::forget(self, key, hold).await
    }
}

/// Whether this process may ask Apple about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "either there is a verdict or this process asks, with a lease or without"
)]
pub enum MayAsk {
    /// This process may ask, and holds no lease.
    Freely,
    /// This process may ask, and must [give the lease back](VerdictCache::release) afterwards.
    UnderLease(Owner),
    /// This process need not ask: another one has asked, and this is the verdict.
    NoNeed(CachedVerdict),
}

/// A step of a cache, boxed.
type CacheStep<'a, T> = BoxFuture<'a, Result<T, CacheError>>;

/// The dyn-safe twin of [`VerdictCache`].
pub(crate) trait ErasedCache: Send + Sync {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict>;
    fn get<'a>(&'a self, key: &'a VerdictKey<'_>) -> CacheStep<'a, Option<CachedVerdict>>;
    fn put<'a>(&'a self, key: &'a VerdictKey<'_>, verdict: CachedVerdict) -> CacheStep<'a, ()>;
    fn deadline(&self) -> Duration;
    fn lease<'a>(&'a self, key: &'a VerdictKey<'_>) -> BoxFuture<'a, MayAsk>;
    fn release<'a>(&'a self, key: &'a VerdictKey<'_>, owner: Owner) -> BoxFuture<'a, ()>;
    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    fn forget<'a>(&'a self, key: &'a VerdictKey<'_>, hold: Duration) -> CacheStep<'a, ()>;
}

impl<C: VerdictCache> ErasedCache for C {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        VerdictCache::peek(self, key)
    }

    fn get<'a>(&'a self, key: &'a VerdictKey<'_>) -> CacheStep<'a, Option<CachedVerdict>> {
        Box::pin(VerdictCache::get(self, key))
    }

    fn put<'a>(&'a self, key: &'a VerdictKey<'_>, verdict: CachedVerdict) -> CacheStep<'a, ()> {
        Box::pin(VerdictCache::put(self, key, verdict))
    }

    fn deadline(&self) -> Duration {
        VerdictCache::deadline(self)
    }

    fn lease<'a>(&'a self, key: &'a VerdictKey<'_>) -> BoxFuture<'a, MayAsk> {
        Box::pin(VerdictCache::lease(self, key))
    }

    fn release<'a>(&'a self, key: &'a VerdictKey<'_>, owner: Owner) -> BoxFuture<'a, ()> {
        Box::pin(VerdictCache::release(self, key, owner))
    }

    fn forget<'a>(&'a self, key: &'a VerdictKey<'_>, hold: Duration) -> CacheStep<'a, ()> {
        Box::pin(VerdictCache::forget(self, key, hold))
    }
}
