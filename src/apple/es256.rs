//! ES256 signatures (ECDSA on P-256 with SHA-256, in the JWT form): by aws-lc, or in pure Rust.

#[cfg(feature = "aws-lc-rs")]
pub(super) use self::aws_lc::SigningKey;
#[cfg(not(feature = "aws-lc-rs"))]
pub(super) use self::pure_rust::SigningKey;

#[cfg(feature = "aws-lc-rs")]
mod aws_lc {
    use aws_lc_rs::error::{KeyRejected, Unspecified};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

    /// A private key. aws-lc wipes it on drop.
    pub(in crate::apple) struct SigningKey(EcdsaKeyPair);

    impl SigningKey {
        pub(in crate::apple) fn from_pkcs8(der: &[u8]) -> Result<Self, KeyRejected> {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map(Self)
        }

        pub(in crate::apple) fn sign(&self, text: &[u8]) -> Result<impl AsRef<[u8]> + use<>, Unspecified> {
            self.0.sign(&SystemRandom::new(), text)
        }
    }
}

#[cfg(not(feature = "aws-lc-rs"))]
mod pure_rust {
    // p256's errors are errors of the standard library only with its feature `std`. That one brings a random number
    // generator, which needs a setting in each application for wasm. Signatures by RFC 6979 need no randomness.
    use p256::ecdsa::{self, Signature, signature::Signer};
    use p256::pkcs8::DecodePrivateKey;

    /// A private key. It wipes itself on drop.
    pub(in crate::apple) struct SigningKey(ecdsa::SigningKey);

    impl SigningKey {
        pub(in crate::apple) fn from_pkcs8(der: &[u8]) -> Result<Self, String> {
            ecdsa::SigningKey::from_pkcs8_der(der).map(Self).map_err(|error| error.to_string())
        }

        pub(in crate::apple) fn sign(&self, text: &[u8]) -> Result<impl AsRef<[u8]> + use<>, String> {
            let signature: Signature = self.0.try_sign(text).map_err(|error| error.to_string())?;
            Ok(signature.to_bytes())
        }
    }
}
