//! The public key of a device.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::app_attest::error::ObjectError;
use crate::app_attest::key_id::KeyId;

/// The public half of a key in a device: an uncompressed point of P-256, 65 bytes, `04 || x || y`.
///
/// This is what a server stores of an attestation, and what assertions are verified by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 65]);

impl PublicKey {
    /// Takes the 65 bytes.
    ///
    /// Nobody checks here whether the point lies on the curve: no signature verifies by one that does not.
    ///
    /// # Errors
    ///
    /// Bytes of another length, or that do not begin with 4, are an error of the step `public_key`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ObjectError> {
        match <[u8; 65]>::try_from(bytes) {
            Ok(point @ [0x04, ..]) => Ok(Self(point)),
            _ => Err(ObjectError::malformed("public_key", "not an uncompressed point of P-256")),
        }
    }

    /// The 65 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 65] {
        &self.0
    }

    /// The id of this key. Hashes 65 bytes.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        KeyId::from(<[u8; 32]>::from(Sha256::digest(self.0)))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.key_id())
    }
}
