//! The key of a verdict.

use std::fmt;

use crate::apple::token::DeviceToken;
use crate::gate::{credential::TokenDigest, routing::Environment};

/// The key of a verdict: the token, the environment that was asked, and the scope of the credentials.
///
/// A verdict for one scope or environment says nothing about another, and a verdict without marks does not answer for one
/// with marks, so a cache must keep them apart.
#[derive(Clone, Copy)]
pub struct VerdictKey<'a> {
    scope: &'a str,
    environment: Environment,
    text: &'a [u8],
    digest: Option<TokenDigest>,
    is_for_marks: bool,
}

impl<'a> VerdictKey<'a> {
    /// Makes the key of the verdict about `token`.
    #[must_use]
    pub fn new(scope: &'a str, environment: Environment, token: &'a DeviceToken) -> Self {
        Self::of_text(scope, environment, token.as_bytes())
    }

    /// Makes the key for a text that may not be a token.
    pub(crate) const fn of_text(scope: &'a str, environment: Environment, text: &'a [u8]) -> Self {
        Self { scope, environment, text, digest: None, is_for_marks: false }
    }

    /// Adds the text's digest, so that it is not computed again.
    pub(crate) const fn with_digest(mut self, digest: TokenDigest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// The same key for a verdict with [marks](crate::DeviceCheckLayer::with_marks), or without.
    #[must_use]
    pub const fn for_marks(mut self, is_for_marks: bool) -> Self {
        self.is_for_marks = is_for_marks;
        self
    }

    /// Whether the verdict is one with marks.
    #[must_use]
    pub const fn is_for_marks(&self) -> bool {
        self.is_for_marks
    }

    /// The environment and whether the verdict is one with marks, in one letter.
    #[cfg(any(feature = "memory-cache", feature = "redis"))]
    pub(super) const fn letter(&self) -> u8 {
        let letter = self.environment.letter();
        if self.is_for_marks { letter.to_ascii_uppercase() } else { letter }
    }

    /// The scope of the credentials: [`DeviceVerifier::scope`](crate::DeviceVerifier::scope).
    #[must_use]
    pub const fn scope(&self) -> &'a str {
        self.scope
    }

    /// The environment that was asked.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// The token digest, its SHA-256. The layer computes it once for all methods of a cache except
    /// [`peek`](crate::cache::VerdictCache::peek). In `peek`, each call of `digest` computes it.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        self.digest.unwrap_or_else(|| TokenDigest::of(self.text))
    }

    /// The text. It is a secret if it is a token.
    #[cfg(feature = "memory-cache")]
    pub(super) const fn text(&self) -> &'a [u8] {
        self.text
    }
}

impl fmt::Debug for VerdictKey<'_> {
    // Omits the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerdictKey")
            .field("scope", &self.scope)
            .field("environment", &self.environment)
            .field("is_for_marks", &self.is_for_marks)
            .finish_non_exhaustive()
    }
}
