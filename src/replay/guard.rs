//! The `ReplayGuard` trait, its dyn-safe twin, and its error.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use crate::replay::claim::{Claim, Claimed, ReplayKey};
use crate::{BoxError, gate::error::impl_error};

// The default times of both guards.
pub(super) const DEFAULT_LEASE: Duration = Duration::from_secs(30);
pub(super) const DEFAULT_RETENTION: Duration = Duration::from_secs(60 * 60);

/// Remembers which tokens are in use or spent: [`MemoryReplayGuard`](crate::replay::MemoryReplayGuard)
/// in the process, `RedisReplayGuard` between processes.
///
/// Under tokio, a step that takes longer than a second fails.
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
    /// The reservation must be one atomic step. If it is neither confirmed nor released, it must lapse by
    /// itself, but not before Apple's answer can be there: the `AppleClient` gives up after 5 seconds by
    /// default.
    ///
    /// # Errors
    ///
    /// If the guard does not know. The request is answered with
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
    /// If the guard does not know whether the token is now spent. The request is answered with
    /// [`Unavailable`](crate::Rejection::Unavailable).
    fn confirm(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<Claimed, GuardError>> + Send;

    /// Frees the token, if it is reserved under this claim: Apple gave no verdict.
    ///
    /// # Errors
    ///
    /// If the guard could not free it. The reservation then lapses by itself.
    fn release(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<(), GuardError>> + Send;

    /// Does the same as [`release`](Self::release) for a request whose future was dropped, because the client
    /// went away. It cannot await and must not block. Default: does nothing, the reservation lapses.
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

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        G::abandon(self, key, claim);
    }
}

/// A step of a guard, boxed.
type GuardStep<'a, T> = BoxFuture<'a, Result<T, GuardError>>;

/// The twin of [`ReplayGuard`] that can be a trait object.
pub(crate) trait ErasedReplayGuard: Send + Sync {
    fn reserve<'a>(&'a self, key: &'a ReplayKey<'_>, claim: &'a Claim) -> GuardStep<'a, Claimed>;
    fn confirm<'a>(&'a self, key: &'a ReplayKey<'_>, claim: &'a Claim) -> GuardStep<'a, Claimed>;
    fn release<'a>(&'a self, key: &'a ReplayKey<'_>, claim: &'a Claim) -> GuardStep<'a, ()>;
    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim);
}

impl<G: ReplayGuard> ErasedReplayGuard for G {
    fn reserve<'a>(&'a self, key: &'a ReplayKey<'_>, claim: &'a Claim) -> GuardStep<'a, Claimed> {
        Box::pin(ReplayGuard::reserve(self, key, claim))
    }

    fn confirm<'a>(&'a self, key: &'a ReplayKey<'_>, claim: &'a Claim) -> GuardStep<'a, Claimed> {
        Box::pin(ReplayGuard::confirm(self, key, claim))
    }

    fn release<'a>(&'a self, key: &'a ReplayKey<'_>, claim: &'a Claim) -> GuardStep<'a, ()> {
        Box::pin(ReplayGuard::release(self, key, claim))
    }

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        ReplayGuard::abandon(self, key, claim);
    }
}

/// The error of a guard that does not know whether a token is in use.
#[derive(Debug)]
pub struct GuardError {
    source: BoxError,
}

impl GuardError {
    /// An error with this cause, which must hold no secret: it is logged.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self { source: source.into() }
    }
}

impl_error!(GuardError, |error| Some(&*error.source), "the replay guard failed");
