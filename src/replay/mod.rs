//! Single use: a device token admits one request.
//!
//! Apple asks servers to treat a token as good for one use, and does not enforce it: whoever captures one can
//! send it again for as long as Apple accepts it, and Apple does not say how long that is. Where that is too
//! much, [`DeviceCheckLayer::with_single_use`](crate::DeviceCheckLayer::with_single_use) lets a
//! [`ReplayGuard`] remember tokens instead of verdicts.
//!
//! ```
//! use tower_devicecheck::{DeviceCheckLayer, replay::MemoryReplayGuard};
//!
//! # fn layer(apple: impl tower_devicecheck::DeviceVerifier) -> DeviceCheckLayer {
//! DeviceCheckLayer::new(apple).with_single_use(MemoryReplayGuard::new())
//! # }
//! ```
//!
//! One process needs no more than [`MemoryReplayGuard`]. Replicas must share a guard, or each of them admits
//! the token once: `RedisReplayGuard` (feature `redis`).
//!
//! # A token's life
//!
//! | step | what the guard does | a second request with the token meanwhile |
//! |---|---|---|
//! | before Apple is asked | reserves the token for one request | [`ReusedToken`](crate::Rejection::ReusedToken), Apple is not asked |
//! | Apple says genuine | confirms: the token is spent, and the request goes on | `ReusedToken` for as long as the guard remembers |
//! | Apple refuses | leaves the reservation until it lapses | `ReusedToken`, so that a flood of one bad token costs one call |
//! | no verdict: an outage | releases the token | is checked: the app's retry works |
//! | the client goes away first | releases the token as far as it can, or lets it lapse | is checked |
//! | the process dies | nothing: the reservation lapses | is checked once the reservation has lapsed |
//!
//! Of any number of concurrent requests with one token exactly one is admitted. A token that is spent for one
//! of Apple's environments is spent for the other, too.
//!
//! A guard only ever withholds: no answer of a guard admits a request that Apple has not found genuine.
//!
//! # Retries by the network
//!
//! A client whose connection breaks after its request was admitted does not know that. Where the operator
//! allows it by [`with_retry_window`](crate::DeviceCheckLayer::with_retry_window), *one* more request with the
//! same idempotency key is let through to Apple for a short time after the token was spent. By default none
//! is, and the app makes a new token. Whoever can capture the token can capture the idempotency key beside it:
//! the window lets one replay through, too, unless the inner service answers a known key with the answer
//! that it gave before.

mod memory;
pub(crate) mod owner;
#[cfg(feature = "redis")]
mod redis;

use std::{error::Error, fmt, sync::Arc, time::Duration};

pub use self::memory::MemoryReplayGuard;
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::RedisReplayGuard;
use crate::{BoxError, gate::credential::TokenDigest, replay::owner::Owner, runtime::Waited};

/// Remembers which tokens are in use or spent: [`MemoryReplayGuard`] in the process, `RedisReplayGuard`
/// between processes.
///
/// Under tokio, a step that takes longer than a second has failed.
///
/// ```
/// use std::{collections::HashMap, sync::Mutex};
/// use tower_devicecheck::{
///     Owner, TokenDigest,
///     replay::{Claim, GuardError, ReplayGuard, ReplayKey, Reservation},
/// };
///
/// /// Never forgets, so good for nothing but a page of documentation.
/// #[derive(Default)]
/// struct Elephant(Mutex<HashMap<(String, TokenDigest), Owner>>);
///
/// impl ReplayGuard for Elephant {
///     async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Reservation, GuardError> {
///         let mut owners = self.0.lock().map_err(|_| GuardError::new("poisoned"))?;
///         let owner = owners.entry((key.scope().to_owned(), key.digest())).or_insert(claim.owner());
///         Ok(if *owner == claim.owner() { Reservation::Reserved } else { Reservation::Reused })
///     }
///
///     async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Reservation, GuardError> {
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
    /// It must be one atomic step. A reservation that is neither confirmed nor released must lapse by itself,
    /// but not before Apple's answer can be there: the `AppleClient` gives up after 5 seconds by default.
    ///
    /// # Errors
    ///
    /// If the guard cannot say. The request is answered with
    /// [`Unavailable`](crate::Rejection::Unavailable).
    fn reserve(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<Reservation, GuardError>> + Send;

    /// Marks the token as spent: Apple has found it genuine, and the request is about to be admitted.
    ///
    /// [`Reservation::Reserved`] if the reservation is still this claim's, or has lapsed with nobody having
    /// taken it since; [`Reservation::Reused`] otherwise, and the request is rejected.
    ///
    /// # Errors
    ///
    /// If the guard cannot say. The request is answered with
    /// [`Unavailable`](crate::Rejection::Unavailable); whether the token is spent is then not known.
    fn confirm(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<Reservation, GuardError>> + Send;

    /// Gives the token free again, if it is reserved under this claim: there was no verdict.
    ///
    /// # Errors
    ///
    /// If the guard cannot. The reservation then lapses by itself.
    fn release(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<(), GuardError>> + Send;

    /// The same as [`release`](Self::release) for a request whose future was dropped, where nothing can be
    /// awaited: the client went away. Must not block. Default: nothing, the reservation lapses.
    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        let _ = (key, claim);
    }
}

impl<G: ReplayGuard> ReplayGuard for Arc<G> {
    fn reserve(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<Reservation, GuardError>> + Send {
        G::reserve(self, key, claim)
    }

    fn confirm(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<Reservation, GuardError>> + Send {
        G::confirm(self, key, claim)
    }

    fn release(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<(), GuardError>> + Send {
        G::release(self, key, claim)
    }

    fn abandon(&self, key: &ReplayKey<'_>, claim: &Claim) {
        G::abandon(self, key, claim);
    }
}

/// What a guard says about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a token is this request's or another's")]
pub enum Reservation {
    /// It is this request's.
    Reserved,
    /// It is another request's, or spent.
    Reused,
}

/// Which token it is, and whose credentials ask about it.
///
/// The environment is not part of it: a token is spent in both at once.
#[derive(Clone, Copy, Debug)]
pub struct ReplayKey<'a> {
    scope: &'a str,
    digest: TokenDigest,
}

impl<'a> ReplayKey<'a> {
    /// The token with this digest, for this [`scope`](crate::DeviceVerifier::scope).
    #[must_use]
    pub const fn new(scope: &'a str, digest: TokenDigest) -> Self {
        Self { scope, digest }
    }

    /// Whose credentials ask: [`DeviceVerifier::scope`](crate::DeviceVerifier::scope).
    #[must_use]
    pub const fn scope(&self) -> &'a str {
        self.scope
    }

    /// SHA-256 of the token.
    #[must_use]
    pub const fn digest(&self) -> TokenDigest {
        self.digest
    }
}

/// One request's claim to a token.
#[derive(Clone, Debug)]
pub struct Claim {
    owner: Owner,
    retry: Option<Retry>,
    /// How long this request has waited for the guard.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    waited: Waited,
}

/// By what a repetition of a request is known, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    pub(crate) key: TokenDigest,
    pub(crate) window: Duration,
}

impl Claim {
    /// A claim of a request without an idempotency key.
    #[must_use]
    pub const fn new(owner: Owner) -> Self {
        Self { owner, retry: None, waited: Waited::none() }
    }

    /// The same claim of a request with this idempotency key, which may be repeated once within `window`
    /// after the token was spent.
    #[must_use]
    pub fn with_retry(self, idempotency_key: &[u8], window: Duration) -> Self {
        self.with(Some(Retry { key: TokenDigest::of(idempotency_key), window }))
    }

    pub(crate) fn with(mut self, retry: Option<Retry>) -> Self {
        self.retry = retry;
        self
    }

    /// This request, and no other.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// SHA-256 of the request's idempotency key; `None` where there is none, or where retries are not let
    /// through.
    #[must_use]
    pub fn retry_digest(&self) -> Option<TokenDigest> {
        self.retry.map(|retry| retry.key)
    }

    /// For how long after a token was spent a repetition of the request is let through.
    #[must_use]
    pub fn retry_window(&self) -> Duration {
        self.retry.map_or(Duration::ZERO, |retry| retry.window)
    }
}

/// A guard could not say whether a token is in use.
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

impl fmt::Display for GuardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the replay guard failed")
    }
}

impl Error for GuardError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
