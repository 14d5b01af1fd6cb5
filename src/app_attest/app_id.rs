//! The App ID.

use std::{fmt, str::FromStr, sync::Arc};

use sha2::{Digest, Sha256};

use crate::app_attest::error::ObjectError;

const LONGEST: usize = 255;

/// An App ID: the prefix of 10 characters, usually the team id, a dot, and the bundle identifier.
///
/// On a Mac the second part is the signing identifier. Objects hold the SHA-256 of this text. Source: Apple,
/// "Validating apps that connect to your server". Clones share the text.
///
/// ```
/// # #[cfg(all(feature = "app-attest", any(feature = "aws-lc-rs", feature = "rust-crypto")))]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_devicecheck::app_attest::AppId;
///
/// let phone: AppId = "TEAM123456.com.example.app".parse()?;
/// let mac = "TEAM123456.com.example.app".parse::<AppId>()?.on_mac();
/// assert!(mac.is_on_mac() && !phone.is_on_mac());
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "app-attest", any(feature = "aws-lc-rs", feature = "rust-crypto"))))]
/// # fn main() {}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AppId {
    text: Arc<str>,
    rp_id_hash: [u8; 32],
    is_on_mac: bool,
}

impl AppId {
    /// Says that the app runs on Macs. An attestation must then show that the Mac has full security and System
    /// Integrity Protection. Without this, an attestation must show it only if its certificate names macOS, by a field
    /// that Apple does not document.
    #[must_use]
    pub fn on_mac(self) -> Self {
        Self { is_on_mac: true, ..self }
    }

    /// Whether [`on_mac`](Self::on_mac) was called.
    #[must_use]
    pub const fn is_on_mac(&self) -> bool {
        self.is_on_mac
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The SHA-256 of the text: the RP ID hash of this app's objects.
    #[must_use]
    pub const fn rp_id_hash(&self) -> &[u8; 32] {
        &self.rp_id_hash
    }
}

impl FromStr for AppId {
    type Err = ObjectError;

    /// Parses 10 upper-case letters or digits, a dot, and letters, digits, `-`, `.` and `_`; at most 255 characters.
    /// Anything else is an error of the step `app_id`.
    fn from_str(text: &str) -> Result<Self, ObjectError> {
        let is_prefix = |prefix: &str| {
            prefix.len() == 10
                && prefix.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
        };
        let is_identifier = |rest: &str| {
            !rest.is_empty()
                && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        };
        match text.split_once('.') {
            Some((prefix, rest)) if is_prefix(prefix) && is_identifier(rest) && text.len() <= LONGEST => {
                Ok(Self { text: text.into(), rp_id_hash: Sha256::digest(text).into(), is_on_mac: false })
            }
            _ => Err(ObjectError::malformed(
                "app_id",
                "not an App ID, such as TEAM123456.com.example.app: the team id, a dot, the bundle identifier",
            )),
        }
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_ids() {
        for text in [
            "TEAM123456.com.example.app",
            "6MURL8TA57.de.vincent-haupert.apple-appattest-poc",
            "1234567890.a_b",
        ] {
            assert_eq!(text.parse::<AppId>().unwrap().to_string(), text);
        }
        let long = format!("TEAM123456.{}", "a".repeat(245));
        let others = [
            "",
            "TEAM123456",
            "TEAM123456.",
            "TEAM12345.com",
            "team123456.com",
            "TEAM123456.*",
            "TEAM123456.é",
            &long,
        ];
        for text in others {
            assert_eq!(text.parse::<AppId>().unwrap_err().step(), "app_id", "{text}");
        }
    }
}
