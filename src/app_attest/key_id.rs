//! The id of a key.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::app_attest::error::ObjectError;

/// The id of a key in a device: the SHA-256 of its public key, 32 bytes.
///
/// Source: Apple, "Validating apps that connect to your server". The app gets the id from
/// `DCAppAttestService.generateKey` as 44 characters of base64. This text has one spelling: the standard alphabet, with
/// padding, and unused bits zero. An id is not a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 32]);

impl KeyId {
    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for KeyId {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for KeyId {
    type Err = ObjectError;

    /// Parses the 44 characters. Any other spelling is an error of the step `key_id`.
    fn from_str(text: &str) -> Result<Self, ObjectError> {
        let fault = || ObjectError::malformed("key_id", "not the base64 of 32 bytes");
        if text.len() != 44 {
            return Err(fault());
        }
        let bytes = STANDARD.decode(text).map_err(|_| fault())?;
        bytes.try_into().map(Self).map_err(|_| fault())
    }
}

impl fmt::Display for KeyId {
    /// Writes the 44 characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_id_has_one_spelling() {
        let text = "2o0syRGn1HDKDv85d522XBC9nLqrHWHGnt/mJ5hWMQM=";
        assert_eq!(text.parse::<KeyId>().unwrap().to_string(), text);
        let others = [
            "",
            "2o0syRGn1HDKDv85d522XBC9nLqrHWHGnt/mJ5hWMQM",
            "2o0syRGn1HDKDv85d522XBC9nLqrHWHGnt/mJ5hWMQN=",
            "2o0syRGn1HDKDv85d522XBC9nLqrHWHGnt_mJ5hWMQM=",
            " 2o0syRGn1HDKDv85d522XBC9nLqrHWHGnt/mJ5hWMQM=",
            "2o0syRGn1HDKDv85d522XBC9nLqrHWHGnt/mJ5hWMQ==",
            "2o0syRGn1HDKDv85d522XBC9nLqrHWHGnt/mJ5hWMQMA",
            "2o0syRGn1HDKDv85d522XBC9nLqrHWHGnt/mJ5hWMQé=",
        ];
        for other in others {
            assert_eq!(other.parse::<KeyId>().unwrap_err().step(), "key_id", "{other}");
        }
    }
}
