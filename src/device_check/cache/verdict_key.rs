//! What a verdict is about.

use std::{fmt, sync::OnceLock};

use crate::{apple::token::DeviceToken, gate::credential::TokenDigest, gate::routing::Environment};

/// What a verdict is about: a token, the environment that was asked, and whose credentials asked.
///
/// A verdict for one scope or environment says nothing about another, so a cache must tell them apart.
pub struct VerdictKey<'a> {
    pub(super) scope: &'a str,
    pub(super) environment: Environment,
    pub(super) text: &'a [u8],
    pub(super) memo: Memo,
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

    /// The same key of a token whose digest is known already.
    pub(crate) fn with_digest(self, digest: TokenDigest) -> Self {
        self.memo.digest.get_or_init(|| digest);
        self
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
