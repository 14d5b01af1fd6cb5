//! A claim to a token, and a guard's answer.

use std::time::Duration;

use crate::{gate::credential::TokenDigest, replay::owner::Owner};

/// A guard's answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a token is this request's or another's")]
pub enum Claimed {
    /// The token belongs to this request.
    Yours,
    /// The token belongs to another request, or is spent.
    Taken,
}

/// The key of a token in a guard: its digest, and the scope of the credentials.
///
/// The environment is not part of the key: a token is spent in both environments at once.
#[derive(Clone, Copy, Debug)]
pub struct ReplayKey<'a> {
    scope: &'a str,
    digest: TokenDigest,
}

impl<'a> ReplayKey<'a> {
    /// Makes the key of the token with this digest, for this [`scope`](crate::DeviceVerifier::scope).
    #[must_use]
    pub const fn new(scope: &'a str, digest: TokenDigest) -> Self {
        Self { scope, digest }
    }

    /// The scope of the credentials: [`DeviceVerifier::scope`](crate::DeviceVerifier::scope).
    #[must_use]
    pub const fn scope(&self) -> &'a str {
        self.scope
    }

    /// The token digest.
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
}

/// Identifies a retry of a request, for a layer that allows one retry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    pub(crate) key: TokenDigest,
    pub(crate) window: Duration,
}

impl Claim {
    /// Makes the claim of a request without an idempotency key.
    #[must_use]
    pub const fn new(owner: Owner) -> Self {
        Self { owner, retry: None }
    }

    /// Adds the request's idempotency key. The request may be repeated once within `window` after the token was spent.
    ///
    /// # Danger
    ///
    /// An attacker who has captured the request also has its idempotency key, and can use up the one repetition.
    #[must_use]
    pub fn with_retry(self, idempotency_key: &[u8], window: Duration) -> Self {
        self.with(Some(Retry { key: TokenDigest::of(idempotency_key), window }))
    }

    pub(crate) fn with(mut self, retry: Option<Retry>) -> Self {
        self.retry = retry;
        self
    }

    /// The owner: the random name of this request.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// The SHA-256 of the request's idempotency key, if it has one and the layer allows retries.
    #[must_use]
    pub fn retry_digest(&self) -> Option<TokenDigest> {
        self.retry.map(|retry| retry.key)
    }

    /// The time after the token was spent within which one retry of the request is allowed.
    #[must_use]
    pub fn retry_window(&self) -> Duration {
        self.retry.map_or(Duration::ZERO, |retry| retry.window)
    }
}
