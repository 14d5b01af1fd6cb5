//! The `ReplayGuard` trait, its dyn-safe twin, and its error.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use crate::replay::claim::{Claim, Claimed, ReplayKey};
use crate::{BoxError, gate::error::impl_error};

// The default times of both guards.
pub(super) const DEFAULT_LEASE: Duration = Duration::from_secs(30);
pub(super) const DEFAULT_RETENTION: Duration = Duration::from_secs(60 * 60);

/// A guard for single use: it remembers which tokens are reserved or spent.
/// [`MemoryReplayGuard`](crate::replay::MemoryReplayGuard) works within one process, `RedisReplayGuard` across
/// processes.
///
/// Where there are timers, a step that takes longer than 1 second fails. Time in which the process itself was too busy to
/// read the answer does not count.
///
/// ```
/// use std::{collections::HashMap, sync::Mutex};
/// use tower_devicecheck::{
///     Owner, TokenDigest,
///     replay::{Claim, Claimed, GuardError, ReplayGuard, ReplayKey},
/// };
///
/// /// Never forgets, so it is fit for a page of documentation only.
/// #[derive(Default)]
/// struct Elephant(Mutex<HashMap<(String, TokenDigest), Owner>>);
///
/// impl ReplayGuard for Elephant {
///     async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
///         let mut owners = self.0.lock().map_err(|_| GuardError::new("poisoned"))?;
///         let owner = owners.entry((key.scope().to_owned(), key.digest())).or_insert(claim.owner());
///         Ok(if *owner == claim.owner() { Claimed::Yours } else { Claimed::Taken })
///     }
///
///     async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
///         self.reserve(key, claim).await
///     }
///
///     async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
///         let mut owners = self.0.lock().map_err(|_| GuardError::new("poisoned"))?;
///         let key = (key.scope().to_owned(), key.digest());
///         if owners.get(&key) == Some(&claim.owner()) {
///             owners.remove(&key);
///         }
///         Ok(())
///     }
/// }
/// # let _layer = |verifier: std::sync::Arc<tower_devicecheck::AppleClient>| {
/// #     tower_devicecheck::DeviceCheckLayer::new(verifier).with_single_use(Elephant::default())
/// # };
/// ```
#[diagnostic::on_unimplemented(
    note = "use `MemoryReplayGuard` or `RedisReplayGuard`, or implement `reserve`, `confirm`, `release`"
)]
pub trait ReplayGuard: Send + Sync + 'static {
    /// Reserves the token for one request, before Apple is asked.
    ///
    /// The reservation must be one atomic step. If it is neither confirmed nor released, it must lapse by itself, but
    /// not before Apple can have answered: the `AppleClient` gives up after 5 seconds by default.
    ///
    /// # Errors
    ///
    /// Returns an error if the guard does not know whether the token is free. The layer rejects the request as
    /// [`Unavailable`](crate::Rejection::Unavailable).
    fn reserve(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<Claimed, GuardError>> + Send;

    /// Marks the token as spent: Apple has found it genuine, and the request is about to be admitted.
    ///
    /// The answer is [`Claimed::Yours`] if the reservation is still this claim's, or has lapsed and no other
    /// request has taken the token since. Otherwise it is [`Claimed::Taken`], and the request is rejected.
    ///
    /// # Errors
    ///
    /// Returns an error if the guard does not know whether the token is now spent. The layer rejects the request as
    /// [`Unavailable`](crate::Rejection::Unavailable) and [withdraws](Self::withdraw) its claim.
    fn confirm(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<Claimed, GuardError>> + Send;

    /// Frees the token if this claim has reserved it, because Apple gave no verdict.
    ///
    /// # Errors
    ///
    /// Returns an error if the guard could not free the token. The reservation then lapses by itself.
    fn release(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<(), GuardError>> + Send;

    /// Undoes everything that this claim has done, because its request was not admitted: the guard failed, Apple gave
    /// no verdict, or the client disconnected. Default: [`release`](Self::release).
    ///
    /// A token that this claim reserved or spent is free again. If the claim was the one retry of a spent token,
    /// another retry is allowed. From then on the claim is void: steps of it that arrive later have no effect.
    ///
    /// Under tokio, the layer retries after an error until the [lease](Self::lease) is over.
    ///
    /// # Errors
    ///
    /// Returns an error if the guard does not know whether the claim is undone.
    fn withdraw(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<(), GuardError>> + Send {
        self.release(key, claim)
    }

    /// The time after which a reservation lapses by itself. Default: 30 seconds.
    fn lease(&self) -> Duration {
        DEFAULT_LEASE
    }

    /// Does as much of [`withdraw`](Self::withdraw) as is possible immediately: it cannot await and must not block.
    /// Default: does nothing. Under tokio, the layer calls `withdraw` afterwards.
    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        let _ = (key, claim);
    }
}

impl<G: ReplayGuard> ReplayGuard for Arc<G> {
    async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        G::reserve(self, key, claim).await
    }

    async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        G::confirm(self, key, claim).await
    }

    async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        G::release(self, key, claim).await
    }

    fn withdraw(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<(), GuardError>> + Send {
        G::withdraw(self, key, claim)
    }

    fn lease(&self) -> Duration {
        G::lease(self)
    }

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        G::abandon(self, key, claim);
    }
}

/// A step of a guard, boxed.
type GuardStep<'a, T> = BoxFuture<'a, Result<T, GuardError>>;

/// The dyn-safe twin of [`ReplayGuard`].
pub(crate) trait ErasedReplayGuard: Send + Sync {
    fn reserve<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<Claimed, GuardError>>;
    fn confirm<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<Claimed, GuardError>>;
    fn withdraw<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<(), GuardError>>;
    fn lease(&self) -> Duration;
    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim);
}

impl<G: ReplayGuard> ErasedReplayGuard for G {
    fn reserve<'a>(&'a self, key: &'a ReplayKey<'_>, claim: &'a Claim) -> GuardStep<'a, Claimed> {
        Box::pin(ReplayGuard::reserve(self, key, claim))
    }

    fn confirm<'a>(&'a self, key: &'a ReplayKey<'_>, claim: &'a Claim) -> GuardStep<'a, Claimed> {
        Box::pin(ReplayGuard::confirm(self, key, claim))
    }

    fn withdraw<'a>(
        &'a self,
        key: &'a ReplayKey<'_>,
        claim: &'a Claim,
    ) -> BoxFuture<'a, Result<(), GuardError>> {
        Box::pin(ReplayGuard::withdraw(self, key, claim))
    }

    fn lease(&self) -> Duration {
        ReplayGuard::lease(self)
    }

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        ReplayGuard::abandon(self, key, claim);
    }
}

/// The error of a guard that does not know the state of a token.
#[derive(Debug)]
pub struct GuardError {
    source: BoxError,
    is_untouched: bool,
}

impl GuardError {
    /// Makes an error with this cause. The cause is logged, so it must hold no secret.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self { source: source.into(), is_untouched: false }
    }

    /// Marks the error of a step that certainly changed nothing, so that there is nothing to undo.
    #[cfg(feature = "redis")]
    pub(crate) const fn untouched(mut self, is_untouched: bool) -> Self {
        self.is_untouched = is_untouched;
        self
    }

    pub(crate) const fn is_untouched(&self) -> bool {
        self.is_untouched
    }
}

impl_error!(GuardError, |error| Some(&*error.source), "the replay guard failed");
