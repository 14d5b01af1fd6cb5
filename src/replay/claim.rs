//! What a guard is asked about, and what it says.

use std::time::Duration;

use crate::{gate::credential::TokenDigest, replay::owner::Owner};

/// What a guard says about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a token is this request's or another's")]
pub enum Claimed {
    /// It is this request's.
    Yours,
    /// It is another request's, or spent.
    Taken,
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
        Self { owner, retry: None }
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
