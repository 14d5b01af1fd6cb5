//! The text that a token source found, and the digest of a token.

use std::{fmt, ops::Range};

use http::HeaderValue;
use sha2::{Digest, Sha256};

/// How a bearer credential begins in the header `Authorization`.
pub(crate) const BEARER: &str = "Bearer ";

/// Text that a [`TokenSource`](crate::TokenSource) found where a device token should be; not yet checked.
///
/// It is a header value or a part of one, so that finding a token copies nothing.
#[derive(Clone)]
pub struct Candidate {
    value: HeaderValue,
    range: Range<usize>,
}

impl Candidate {
    /// The whole of `value`, without white space around it.
    #[must_use]
    pub fn new(value: HeaderValue) -> Self {
        let range = 0..value.len();
        Self::part(value, range)
    }

    /// The bytes of `value` in `range`, without white space around them. What lies outside `value` counts as empty.
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
    // The text may be a device token or a debug token: never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate").field("length", &self.range.len()).finish_non_exhaustive()
    }
}

/// SHA-256 of a token's canonical text: what caches, logs and handlers may see of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a credential's canonical text.
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
