//! Throw-away keys, and the provider tokens that they sign.

use std::{fmt, time::SystemTime};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::SecretKey;
use p256::ecdsa::{Signature, SigningKey, VerifyingKey, signature::Signer};
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{gate::error::impl_error, runtime::since_epoch};

/// A P-256 key in the format of Apple's DeviceCheck keys. It is for tests only: Apple does not know the key.
///
/// `Debug` reveals nothing of the key. Dropping the key wipes it from memory.
#[derive(Clone)]
pub struct PrivateKey(SecretKey);

impl PrivateKey {
    /// Generates a new key.
    ///
    /// # Panics
    ///
    /// Panics if the operating system gives no random bytes.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        loop {
            #[allow(clippy::expect_used, reason = "see Panics")]
            getrandom::fill(&mut *bytes).expect("the operating system gives random bytes");
            // About one number of this length in 2^32 is not a valid key.
            if let Ok(key) = SecretKey::from_slice(&*bytes) {
                return Self(key);
            }
        }
    }

    /// Parses a key in Apple's format: PKCS#8 in PEM, `-----BEGIN PRIVATE KEY-----`.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is not PKCS#8 in PEM, or if the key is not of the curve P-256.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        SecretKey::from_pkcs8_pem(pem).map(Self).map_err(InvalidKey)
    }

    /// The key in Apple's format, PKCS#8 in PEM, like the contents of an `AuthKey_….p8` file.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        #[allow(clippy::expect_used, reason = "the encoding of a valid key of fixed size does not fail")]
        let pem = self.0.to_pkcs8_pem(LineEnding::LF).expect("a key has a PEM form");
        pem
    }

    /// Makes a provider token (JWT, ES256) as Apple documents it: `alg` and `kid` in the header, `iss` and `iat` as
    /// claims. A server sends it as `Authorization: Bearer …`.
    ///
    /// This is for tests that call a [`FakeApple`](crate::testing::FakeApple) without this crate's client.
    #[must_use]
    pub fn provider_token(&self, team_id: &str, key_id: &str, issued_at: SystemTime) -> String {
        let header = json!({ "alg": "ES256", "kid": key_id });
        let claims = json!({ "iss": team_id, "iat": since_epoch(issued_at).as_secs() });
        self.sign(&header, &claims)
    }

    pub(super) fn sign(&self, header: &serde_json::Value, claims: &serde_json::Value) -> String {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let signature: Signature = SigningKey::from(&self.0).sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    pub(super) fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey::from(self.0.public_key())
    }
}

impl fmt::Debug for PrivateKey {
    // Omits the key. A throw-away key is not secret, but tests set an example.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// The error for a text that is not a P-256 key as PKCS#8 in PEM.
#[derive(Debug)]
pub struct InvalidKey(p256::pkcs8::Error);

impl_error!(InvalidKey, |error| Some(&error.0), "not a P-256 key as PKCS#8 in PEM");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_pem_and_prints_nothing() {
        let key = PrivateKey::generate();
        let pem = key.to_pem();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        let again = PrivateKey::from_pem(&pem).unwrap();
        assert_eq!(again.verifying_key(), key.verifying_key());
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
    }

    #[test]
    fn what_is_no_key_is_an_error() {
        let cases = [
            ("empty", String::new()),
            ("no PEM", "AuthKey".to_owned()),
            ("cut", PrivateKey::generate().to_pem()[..100].to_owned()),
            ("another label", PrivateKey::generate().to_pem().replace("PRIVATE", "PUBLIC")),
        ];
        for (name, pem) in cases {
            assert!(PrivateKey::from_pem(&pem).is_err(), "{name}");
        }
    }
}
