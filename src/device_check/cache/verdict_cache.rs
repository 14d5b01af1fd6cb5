//! The trait of caches, and its error.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use crate::{
    device_check::cache::{cached_verdict::CachedVerdict, verdict_key::VerdictKey},
    gate::observer::CacheError,
    replay::owner::Owner,
};

/// Remembers verdicts: `MemoryCache` in the process, others between processes, [`Tiered`] both.
///
/// Only verdicts are ever put, never the lack of one. A cache that fails counts as one that has nothing; under
/// tokio, so does one that takes longer than its [deadline](Self::deadline).
///
/// ```
/// use std::{collections::HashMap, sync::Mutex, time::Instant};
/// use tower_devicecheck::{
///     Environment, TokenDigest,
///     cache::{CacheError, CachedVerdict, VerdictCache, VerdictKey},
/// };
///
/// /// Unbounded, so good for nothing but a page of documentation.
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
    /// Looks into this process's memory only. Called on the way of every request: it must not block.
    ///
    /// `key` may be about a text that is no canonical token. The layer checks the syntax of what a cache of yours finds;
    /// it spares itself that only after a `MemoryCache`, alone or in a [`Tiered`](crate::cache::Tiered), which compares the
    /// whole text. Default: nothing.
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        let _ = key;
        None
    }

    /// Looks everywhere, also where [`peek`](Self::peek) looks. The answer says how much of the verdict's time to
    /// live is left.
    ///
    /// Called once for all concurrent requests with the same token to the services of one layer.
    ///
    /// # Errors
    ///
    /// If the cache cannot say. The request goes on as if nothing had been cached.
    fn get(
        &self,
        key: &VerdictKey<'_>,
    ) -> impl Future<Output = Result<Option<CachedVerdict>, CacheError>> + Send;

    /// Keeps a verdict for its time to live, counted from now.
    ///
    /// What a cache keeps must be bounded, and a flood of refused tokens should not displace genuine ones.
    ///
    /// # Errors
    ///
    /// If the verdict could not be kept. The request goes on.
    fn put(
        &self,
        key: &VerdictKey<'_>,
        verdict: CachedVerdict,
    ) -> impl Future<Output = Result<(), CacheError>> + Send;

    /// How long one request waits for this cache in all: for [`get`](Self::get) before Apple is asked, and for
    /// [`put`](Self::put) and [`release`](Self::release) afterwards with what is left of it. Default: 2 seconds. A
    /// single step gets no more than a second of it.
    ///
    /// Without any time left, the future of a `put` is polled once and dropped: what must happen all the same,
    /// the cache has to do on a task of its own. [`lease`](Self::lease) is not counted.
    fn deadline(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// Asks for the right to ask Apple about a token that the cache does not know, for caches that let only
    /// one of several processes ask at a time. Default: [`MayAsk::Freely`], everyone may.
    ///
    /// Called as often as [`get`](Self::get). It may wait for the verdict of whoever else asks, but must end by
    /// itself; what fails here must let this process ask. A lease that is not released, because the process died
    /// or all who waited went away, must end by itself, too.
    fn lease(&self, key: &VerdictKey<'_>) -> impl Future<Output = MayAsk> + Send {
        let _ = key;
        std::future::ready(MayAsk::Freely)
    }

    /// Gives back a lease that was [granted](MayAsk::UnderLease) to this owner, after the verdict was put or there
    /// was none. Default: nothing.
    fn release(&self, key: &VerdictKey<'_>, owner: Owner) -> impl Future<Output = ()> + Send {
        let _ = (key, owner);
        std::future::ready(())
    }
}

impl<C: VerdictCache> VerdictCache for Arc<C> {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        C::peek(self, key)
    }

    fn get(
        &self,
        key: &VerdictKey<'_>,
    ) -> impl Future<Output = Result<Option<CachedVerdict>, CacheError>> + Send {
        C::get(self, key)
    }

    fn put(
        &self,
        key: &VerdictKey<'_>,
        verdict: CachedVerdict,
    ) -> impl Future<Output = Result<(), CacheError>> + Send {
        C::put(self, key, verdict)
    }

    fn deadline(&self) -> Duration {
        C::deadline(self)
    }

    fn lease(&self, key: &VerdictKey<'_>) -> impl Future<Output = MayAsk> + Send {
        C::lease(self, key)
    }

    fn release(&self, key: &VerdictKey<'_>, owner: Owner) -> impl Future<Output = ()> + Send {
        C::release(self, key, owner)
    }
}

/// Whether this process may ask Apple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "either there is a verdict or somebody has to ask, with a lease or without"
)]
pub enum MayAsk {
    /// Yes, and there is nothing to give back.
    Freely,
    /// Yes, and it gives the lease back when it has asked.
    UnderLease(Owner),
    /// It need not: another process has asked.
    NoNeed(CachedVerdict),
}

/// The twin of [`VerdictCache`] that can be a trait object.
pub(crate) trait ErasedCache: Send + Sync {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict>;
    fn get<'a>(&'a self, key: &'a VerdictKey<'_>)
    -> BoxFuture<'a, Result<Option<CachedVerdict>, CacheError>>;
    fn put<'a>(
        &'a self,
        key: &'a VerdictKey<'_>,
        verdict: CachedVerdict,
    ) -> BoxFuture<'a, Result<(), CacheError>>;
    fn deadline(&self) -> Duration;
    fn lease<'a>(&'a self, key: &'a VerdictKey<'_>) -> BoxFuture<'a, MayAsk>;
    fn release<'a>(&'a self, key: &'a VerdictKey<'_>, owner: Owner) -> BoxFuture<'a, ()>;
}

impl<C: VerdictCache> ErasedCache for C {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        VerdictCache::peek(self, key)
    }

    fn get<'a>(
        &'a self,
        key: &'a VerdictKey<'_>,
    ) -> BoxFuture<'a, Result<Option<CachedVerdict>, CacheError>> {
        Box::pin(VerdictCache::get(self, key))
    }

    fn put<'a>(
        &'a self,
        key: &'a VerdictKey<'_>,
        verdict: CachedVerdict,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
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
