//! The two parts of a split key.

use std::{fmt, str::FromStr, sync::Arc};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
use crate::split_key::metadata::Metadata;

/// The longest API key that can be split, in characters.
pub(super) const MAX_KEY_LENGTH: usize = 4096;

/// The length of the longest API key with the salt of version 1 and metadata.
const MAX_CLIENT_PART: usize = MAX_KEY_LENGTH + 64;
/// The length of the longest sealed key, which is the longest server part.
const MAX_SERVER_PART: usize = 2 * MAX_KEY_LENGTH;

/// The client's part of a split key: `<part>.<metadata>`. The part itself may hold dots.
///
/// `Debug` shows only the metadata. Comparison takes constant time. The memory is wiped on drop.
#[derive(Clone)]
pub struct ClientPart {
    text: Zeroizing<String>,
    secret_length: usize,
    metadata: Metadata,
}

impl ClientPart {
    /// Joins a secret with its metadata.
    pub(super) fn new(secret: &[u8], metadata: Metadata) -> Result<Self, SplitKeyError> {
        let secret = std::str::from_utf8(secret).map_err(|_| SplitKeyErrorKind::Malformed)?;
        let metadata = metadata.to_string();
        // Reserves the capacity at once, because a string that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(secret.len() + 1 + metadata.len()));
        text.push_str(secret);
        text.push('.');
        text.push_str(&metadata);
        text.parse()
    }

    /// The text that the client sends. Anyone with this text and a genuine device can use the key.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Version, creation time and split id.
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
    // Omits the part, which is half of a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientPart").field("metadata", &self.metadata).finish_non_exhaustive()
    }
}

/// The server's part of a split key, kept in a [`SplitKeyStore`](crate::split_key::SplitKeyStore).
///
/// `Debug` reveals nothing of it. Dropping the last clone wipes the memory.
#[derive(Clone)]
pub struct ServerPart(Arc<Zeroizing<String>>);

impl ServerPart {
    /// Parses the text of a server part.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is empty, longer than any server part, or holds more than visible ASCII characters.
    pub(super) fn new(text: String) -> Result<Self, SplitKeyError> {
        let text = Zeroizing::new(text);
        if text.is_empty() || text.len() > MAX_SERVER_PART || !is_visible(&text) {
            return Err(SplitKeyErrorKind::Malformed.into());
        }
        Ok(Self(Arc::new(text)))
    }

    /// The text to store.
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
    // Omits the text, because a version 1 part holds characters of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerPart(..)")
    }
}

/// Whether a text fits into a header and has only visible ASCII characters.
pub(super) fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}
