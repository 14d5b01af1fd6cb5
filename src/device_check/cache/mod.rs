//! What is remembered of Apple's verdicts.

#[cfg(feature = "memory-cache")]
mod keyed_hash;
#[cfg(feature = "memory-cache")]
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod tiered;

use std::{error::Error, fmt, sync::Arc, sync::OnceLock, time::Duration};

#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::RedisCache;
pub use self::tiered::Tiered;
#[cfg(feature = "memory-cache")]
pub use self::{keyed_hash::HashSecret, memory::MemoryCache};
use crate::{
    BoxError, apple::DeviceToken, gate::credential::TokenDigest, gate::decision::Verdict,
    gate::routing::Environment, replay::owner::Owner, runtime::SystemTime,
};

/// Remembers verdicts: `MemoryCache` in the process, others between processes, [`Tiered`] both.
///
/// Only verdicts are ever put, never the lack of one. A cache that fails counts as one that has nothing; under
/// tokio, so does one that takes longer than a second.
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
    /// `key` may hold a text that is no canonical token: the cache must answer only if it was given a
    /// verdict for exactly these bytes. Default: nothing.
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

    /// Asks for the right to ask Apple about a token that the cache does not know, for caches that let only
    /// one of several processes ask at a time. Default: [`Lease::Ask`], everyone may.
    ///
    /// Called as often as [`get`](Self::get). It may wait for the verdict of whoever else asks, but must end by
    /// itself; what fails here must let this process ask. A lease that is not released, because the process died
    /// or all who waited went away, must end by itself, too.
    fn lease(&self, key: &VerdictKey<'_>) -> impl Future<Output = Lease> + Send {
        let _ = key;
        std::future::ready(Lease::Ask)
    }

    /// Gives back a lease that was [granted](Lease::Granted) to this owner, after the verdict was put or there
    /// was none. Default: nothing.
    fn release(&self, key: &VerdictKey<'_>, owner: Owner) -> impl Future<Output = ()> + Send {
        let _ = (key, owner);
        std::future::ready(())
    }
}

/// Who asks Apple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "either there is a verdict or somebody has to ask, with a lease or without"
)]
pub enum Lease {
    /// This process, and there is nothing to give back.
    Ask,
    /// This process, which gives the lease back when it has asked.
    Granted(Owner),
    /// Nobody needs to: another process has asked.
    Known(CachedVerdict),
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

    fn lease(&self, key: &VerdictKey<'_>) -> impl Future<Output = Lease> + Send {
        C::lease(self, key)
    }

    fn release(&self, key: &VerdictKey<'_>, owner: Owner) -> impl Future<Output = ()> + Send {
        C::release(self, key, owner)
    }
}

/// What a verdict is about: a token, the environment that was asked, and whose credentials asked.
///
/// A verdict for one scope or environment says nothing about another, so a cache must tell them apart.
pub struct VerdictKey<'a> {
    scope: &'a str,
    environment: Environment,
    text: &'a [u8],
    memo: Memo,
}

/// What was found out while one request used a key, for its later keys of the same token and environment.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    pub(crate) digest: OnceLock<TokenDigest>,
    /// The keyed hash, and under which secret it is that.
    #[cfg(feature = "memory-cache")]
    pub(crate) keyed_hash: OnceLock<(u64, u128)>,
    /// How long the request has waited for a shared cache.
    #[cfg(feature = "redis")]
    pub(crate) waited: crate::runtime::Waited,
}

impl Memo {
    pub(crate) fn with_digest(self, digest: TokenDigest) -> Self {
        self.digest.get_or_init(|| digest);
        self
    }
}

impl<'a> VerdictKey<'a> {
    /// The key of `token`'s verdict.
    #[must_use]
    pub fn new(scope: &'a str, environment: Environment, token: &'a DeviceToken) -> Self {
        Self::of_text(scope, environment, token.as_bytes())
    }

    pub(crate) fn of_text(scope: &'a str, environment: Environment, text: &'a [u8]) -> Self {
        Self { scope, environment, text, memo: Memo::default() }
    }

    /// The same key, with what is known about it already.
    pub(crate) fn with_memo(mut self, memo: Memo) -> Self {
        self.memo = memo;
        self
    }

    pub(crate) fn into_memo(self) -> Memo {
        self.memo
    }

    /// Whose verdict it is: [`DeviceVerifier::scope`](crate::DeviceVerifier::scope).
    #[must_use]
    pub const fn scope(&self) -> &'a str {
        self.scope
    }

    /// The environment that was asked.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// The token's SHA-256, computed when it is first asked for.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        *self.memo.digest.get_or_init(|| TokenDigest::of(self.text))
    }
}

impl fmt::Debug for VerdictKey<'_> {
    // Without the token itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerdictKey")
            .field("scope", &self.scope)
            .field("environment", &self.environment)
            .finish_non_exhaustive()
    }
}

/// A verdict as caches hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedVerdict {
    verdict: Verdict,
    digest: TokenDigest,
    checked_at: SystemTime,
    time_to_live: Duration,
}

impl CachedVerdict {
    /// A verdict about the token with this digest, from a check that began at `checked_at`, good for
    /// `time_to_live` from now.
    #[must_use]
    pub const fn new(
        verdict: Verdict,
        digest: TokenDigest,
        checked_at: SystemTime,
        time_to_live: Duration,
    ) -> Self {
        Self { verdict, digest, checked_at, time_to_live }
    }

    /// The verdict.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// SHA-256 of the token that it is about.
    #[must_use]
    pub const fn digest(&self) -> TokenDigest {
        self.digest
    }

    /// When the check began.
    #[must_use]
    pub const fn checked_at(&self) -> SystemTime {
        self.checked_at
    }

    /// For how long from now it is good.
    #[must_use]
    pub const fn time_to_live(&self) -> Duration {
        self.time_to_live
    }

    /// The same verdict with another time to live.
    #[must_use]
    pub const fn with_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.time_to_live = time_to_live;
        self
    }
}

/// A cache could not say or could not keep.
#[derive(Debug)]
pub struct CacheError {
    source: BoxError,
    reported: bool,
}

impl CacheError {
    /// An error with this cause, which must hold no secret: it is logged.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self { source: source.into(), reported: false }
    }

    /// The same error of a cache that logs its incidents itself, once each and not once per request.
    #[must_use]
    pub const fn reported(mut self) -> Self {
        self.reported = true;
        self
    }

    /// Whether the cache has logged the incident already. [`TracingObserver`](crate::TracingObserver) is
    /// silent about those; observers that count get all of them.
    #[must_use]
    pub const fn is_reported(&self) -> bool {
        self.reported
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the verdict cache failed")
    }
}

impl Error for CacheError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
