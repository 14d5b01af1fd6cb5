//! The two halves of a split key.

use std::{fmt, str::FromStr, sync::Arc};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::split_key::{
    error::{SplitKeyError, SplitKeyErrorKind},
    metadata::Metadata,
};

/// The longest API key that is split, in characters.
pub const MAX_KEY_LENGTH: usize = 4096;

/// An API key with the salt of version 1 and metadata.
const MAX_CLIENT_PART: usize = MAX_KEY_LENGTH + 64;
/// The longest sealed key is the longest server part.
const MAX_SERVER_PART: usize = 2 * MAX_KEY_LENGTH;

/// What the client holds: `<part>.<metadata>`. The part itself may hold dots.
///
/// `Debug` shows the metadata only, equality takes the same time wherever the parts differ, and the memory is
/// wiped on drop.
#[derive(Clone)]
pub struct ClientPart {
    text: Zeroizing<String>,
    secret_length: usize,
    metadata: Metadata,
}

impl ClientPart {
    /// Joins what `secret` holds with the metadata.
    pub(super) fn new(secret: &[u8], metadata: Metadata) -> Result<Self, SplitKeyError> {
        let secret = std::str::from_utf8(secret).map_err(|_| SplitKeyErrorKind::Malformed)?;
        let metadata = metadata.to_string();
        // The whole length at once: a string that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(secret.len() + 1 + metadata.len()));
        text.push_str(secret);
        text.push('.');
        text.push_str(&metadata);
        text.parse()
    }

    /// The text that the client sends. Whoever has it can use the key, from a genuine device.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// What it says about itself.
    #[must_use]
    pub const fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// The part without the metadata.
    pub(super) fn secret(&self) -> &[u8] {
        &self.text.as_bytes()[..self.secret_length]
    }
}

impl FromStr for ClientPart {
    type Err = SplitKeyError;

    fn from_str(text: &str) -> Result<Self, SplitKeyError> {
        if text.len() > MAX_CLIENT_PART || !is_visible(text) {
            return Err(SplitKeyErrorKind::Malformed.into());
        }
        let (secret, metadata) = text.rsplit_once('.').ok_or(SplitKeyErrorKind::Malformed)?;
        if secret.is_empty() {
            return Err(SplitKeyErrorKind::Malformed.into());
        }
        Ok(Self {
            secret_length: secret.len(),
            metadata: metadata.parse()?,
            text: Zeroizing::new(text.to_owned()),
        })
    }
}

impl PartialEq for ClientPart {
    fn eq(&self, other: &Self) -> bool {
        self.text.as_bytes().ct_eq(other.text.as_bytes()).into()
    }
}

impl Eq for ClientPart {}

impl fmt::Debug for ClientPart {
    // Half of a secret: never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientPart").field("metadata", &self.metadata).finish_non_exhaustive()
    }
}

/// What the server holds, in its [`SplitKeyStore`](crate::split_key::SplitKeyStore).
///
/// `Debug` shows nothing of it, and the memory is wiped when the last clone is dropped.
#[derive(Clone)]
pub struct ServerPart(Arc<Zeroizing<String>>);

impl ServerPart {
    /// Takes the text of a server part.
    ///
    /// # Errors
    ///
    /// If the text is empty, longer than any server part, or holds more than visible ASCII characters.
    pub fn new(text: String) -> Result<Self, SplitKeyError> {
        let text = Zeroizing::new(text);
        if text.is_empty() || text.len() > MAX_SERVER_PART || !is_visible(&text) {
            return Err(SplitKeyErrorKind::Malformed.into());
        }
        Ok(Self(Arc::new(text)))
    }

    /// The text, to be stored.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerPart {
    type Err = SplitKeyError;

    fn from_str(text: &str) -> Result<Self, SplitKeyError> {
        Self::new(text.to_owned())
    }
}

impl fmt::Debug for ServerPart {
    // Of version 1, this holds characters of the key: never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerPart(..)")
    }
}

/// Whether a text is printable and fits into a header: no space, no control character, nothing beyond ASCII.
pub(super) fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}
