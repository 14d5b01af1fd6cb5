//! The question to a guard, and its answer.

use std::time::Duration;

use crate::{gate::credential::TokenDigest, replay::owner::Owner};

/// A guard's answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a token is this request's or another's")]
pub enum Claimed {
    /// The token is this request's.
    Yours,
    /// The token is another request's, or spent.
    Taken,
}

/// The key of a token, for the scope of the credentials that ask about it.
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

    /// The scope of the credentials: [`DeviceVerifier::scope`](crate::DeviceVerifier::scope).
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
}

/// Identifies a retry of a request, for a layer that lets one through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    pub(crate) key: TokenDigest,
    pub(crate) window: Duration,
}

impl Claim {
    /// A claim of a request without an idempotency key.
    #[must_use]
    pub const fn new(owner: Owner) -> Self {
        Self { owner, retry: None }
    }

    /// The same claim of a request with this idempotency key, which may be repeated once within `window`
    /// after the token was spent.
    ///
    /// # Danger
    ///
    /// An attacker who has captured the request has its idempotency key, and can be the one who repeats it.
    #[must_use]
    pub fn with_retry(self, idempotency_key: &[u8], window: Duration) -> Self {
        self.with(Some(Retry { key: TokenDigest::of(idempotency_key), window }))
    }

    pub(crate) fn with(mut self, retry: Option<Retry>) -> Self {
        self.retry = retry;
        self
    }

    /// The name of this request.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// SHA-256 of the request's idempotency key, if it has one and the layer lets retries through.
    #[must_use]
    pub fn retry_digest(&self) -> Option<TokenDigest> {
        self.retry.map(|retry| retry.key)
    }

    /// The time after the token was spent in which a retry of the request is let through.
    #[must_use]
    pub fn retry_window(&self) -> Duration {
        self.retry.map_or(Duration::ZERO, |retry| retry.window)
    }
}
