//! The `VerdictCache` trait, its dyn-safe twin, and its error.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use crate::device_check::cache::{cached_verdict::CachedVerdict, verdict_key::VerdictKey};
use crate::{gate::observer::CacheError, replay::owner::Owner};

/// Remembers verdicts: `MemoryCache` in the process, `RedisCache` between processes,
/// [`Tiered`](crate::cache::Tiered) both.
///
/// The layer puts only verdicts, never the lack of one. A cache that fails counts as empty. Where there are timers, so
/// does a cache that takes longer than its [deadline](Self::deadline).
///
/// # Danger
///
/// A cache decides who is admitted: the layer believes every verdict that it finds.
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
    /// `key` may hold a text that is no canonical token, and a cache should answer only if it was given a
    /// verdict for exactly this text. The layer checks the syntax of the text before it admits on what a
    /// cache finds. It skips that check for what a `MemoryCache` finds, alone or in a
    /// [`Tiered`](crate::cache::Tiered), because that compares the whole text.
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        let _ = key;
        None
    }

    /// Looks everywhere, also where [`peek`](Self::peek) looks. The answer holds the rest of the verdict's
    /// time to live.
    ///
    /// The layer calls this once for all concurrent requests with the same token to its services.
    ///
    /// # Errors
    ///
    /// If the cache does not know. The request goes on as if the cache were empty.
    fn get(
        &self,
        key: &VerdictKey<'_>,
    ) -> impl Future<Output = Result<Option<CachedVerdict>, CacheError>> + Send;

    /// Keeps a verdict for its time to live, counted from now.
    ///
    /// A cache must be bounded, and a flood of refused tokens should not displace genuine ones.
    ///
    /// # Errors
    ///
    /// If the verdict could not be kept. The request goes on.
    fn put(
        &self,
        key: &VerdictKey<'_>,
        verdict: CachedVerdict,
    ) -> impl Future<Output = Result<(), CacheError>> + Send;

    /// The time that one request waits for this cache in all. [`get`](Self::get), before Apple is asked, has
    /// all of it; [`put`](Self::put) and [`release`](Self::release), afterwards, have the rest. Each step
    /// gets a second of it at most. Default: 2 seconds.
    ///
    /// If no time is left, the layer polls the future of a `put` once and drops it. A shared cache should
    /// spawn its write, so that the verdict is stored all the same. The time in [`lease`](Self::lease) does
    /// not count.
    fn deadline(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// Decides whether this process asks Apple about a token that the cache does not know, for caches that
    /// let only one of several processes ask at a time. Default: [`MayAsk::Freely`].
    ///
    /// The layer calls this as often as [`get`](Self::get). It may wait for the verdict of another process,
    /// but must end by itself. After a failure this process must be let ask. A lease must end by itself,
    /// because its holder may die or all of its requests may go away.
    fn lease(&self, key: &VerdictKey<'_>) -> impl Future<Output = MayAsk> + Send {
        let _ = key;
        std::future::ready(MayAsk::Freely)
    }

    /// Gives back a [lease](MayAsk::UnderLease) of this owner, after the verdict was put or Apple gave none.
    /// Default: does nothing.
    fn release(&self, key: &VerdictKey<'_>, owner: Owner) -> impl Future<Output = ()> + Send {
        let _ = (key, owner);
        std::future::ready(())
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
}

/// The answer to whether this process may ask Apple about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "either there is a verdict or this process asks, with a lease or without"
)]
pub enum MayAsk {
    /// This process may ask, and has nothing to give back.
    Freely,
    /// This process may ask, and [gives the lease back](VerdictCache::release) afterwards.
    UnderLease(Owner),
    /// This process need not ask: another one has asked, and this is the verdict.
    NoNeed(CachedVerdict),
}

/// A step of a cache, boxed.
type CacheStep<'a, T> = BoxFuture<'a, Result<T, CacheError>>;

/// The twin of [`VerdictCache`] that can be a trait object.
pub(crate) trait ErasedCache: Send + Sync {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict>;
    fn get<'a>(&'a self, key: &'a VerdictKey<'_>) -> CacheStep<'a, Option<CachedVerdict>>;
    fn put<'a>(&'a self, key: &'a VerdictKey<'_>, verdict: CachedVerdict) -> CacheStep<'a, ()>;
    fn deadline(&self) -> Duration;
    fn lease<'a>(&'a self, key: &'a VerdictKey<'_>) -> BoxFuture<'a, MayAsk>;
    fn release<'a>(&'a self, key: &'a VerdictKey<'_>, owner: Owner) -> BoxFuture<'a, ()>;
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
}
