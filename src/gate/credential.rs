//! Text that a token source found, and token digests.

use std::{fmt, ops::Range};

use http::HeaderValue;
use sha2::{Digest, Sha256};

/// The start of a bearer credential in the header `Authorization`.
pub(crate) const BEARER: &str = "Bearer ";

/// Text that a [`TokenSource`](crate::TokenSource) found and that may be a device token. The text is not yet checked.
///
/// A candidate is a header value or a part of one, so that finding a token copies nothing.
#[derive(Clone)]
pub struct Candidate {
    value: HeaderValue,
    range: Range<usize>,
}

impl Candidate {
    /// Makes a candidate from all of `value`, without surrounding white space.
    #[must_use]
    pub fn new(value: HeaderValue) -> Self {
        let range = 0..value.len();
        Self::part(value, range)
    }

    /// Makes a candidate from the bytes of `value` in `range`, without surrounding white space. The part of `range`
    /// beyond the end of `value` counts as empty.
    #[must_use]
    pub fn part(value: HeaderValue, range: Range<usize>) -> Self {
        let end = range.end.min(value.len());
        let start = range.start.min(end);
        let found = &value.as_bytes()[start..end];
        let start = start + (found.len() - found.trim_ascii_start().len());
        let end = start + found.trim_ascii().len();
        Self { value, range: start..end }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.value.as_bytes()[self.range.clone()]
    }
}

impl fmt::Debug for Candidate {
    // Omits the text, which may be a device token or a debug token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate").field("length", &self.range.len()).finish_non_exhaustive()
    }
}

/// The SHA-256 of a token's canonical text. Caches, logs and handlers use the digest instead of the token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Computes the digest of a credential's canonical text.
    #[must_use]
    pub fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// The digest's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for TokenDigest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Lower-case hexadecimal.
impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenDigest({self})")
    }
}
