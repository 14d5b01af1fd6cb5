//! What a verdict is about.

use std::fmt;

use crate::{apple::token::DeviceToken, gate::credential::TokenDigest, gate::routing::Environment};

/// What a verdict is about: a token, the environment that was asked, and whose credentials asked.
///
/// A verdict for one scope or environment says nothing about another, so a cache must tell them apart.
#[derive(Clone, Copy)]
pub struct VerdictKey<'a> {
    scope: &'a str,
    environment: Environment,
    text: &'a [u8],
    digest: Option<TokenDigest>,
}

impl<'a> VerdictKey<'a> {
    /// The key of `token`'s verdict.
    #[must_use]
    pub fn new(scope: &'a str, environment: Environment, token: &'a DeviceToken) -> Self {
        Self::of_text(scope, environment, token.as_bytes())
    }

    /// The key of the verdict about a text that may not be a token.
    pub(crate) const fn of_text(scope: &'a str, environment: Environment, text: &'a [u8]) -> Self {
        Self { scope, environment, text, digest: None }
    }

    /// The same key for a caller who knows the text's digest already.
    pub(crate) const fn with_digest(mut self, digest: TokenDigest) -> Self {
        self.digest = Some(digest);
        self
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

    /// The token's SHA-256. The layer has computed it before it calls [`get`](crate::cache::VerdictCache::get);
    /// for [`peek`](crate::cache::VerdictCache::peek) it is computed by each call of this.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        self.digest.unwrap_or_else(|| TokenDigest::of(self.text))
    }

    /// The text itself, which is a secret if it is a token.
    #[cfg(feature = "memory-cache")]
    pub(super) const fn text(&self) -> &'a [u8] {
        self.text
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
