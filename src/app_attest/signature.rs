//! ECDSA verification: by aws-lc, or in pure Rust.

use rustls_pki_types::SignatureVerificationAlgorithm;

#[cfg(not(feature = "aws-lc-rs"))]
use self::pure_rust::{P256_SHA256, P384_SHA256, P384_SHA384};
#[cfg(feature = "aws-lc-rs")]
use webpki::aws_lc_rs::{
    ECDSA_P256_SHA256 as P256_SHA256, ECDSA_P384_SHA256 as P384_SHA256, ECDSA_P384_SHA384 as P384_SHA384,
};

use crate::app_attest::public_key::PublicKey;

/// The algorithms of Apple's certificates. The leaf of an attestation is signed by a key on P-384 with SHA-256
/// (observed on real objects).
pub(super) static ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 3] =
    [P256_SHA256, P384_SHA256, P384_SHA384];

/// Whether the key has signed the message, hashed once with SHA-256. The signature is in DER.
pub(super) fn has_signed(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    P256_SHA256.verify_signature(key.as_bytes(), message, signature).is_ok()
}

#[cfg(not(feature = "aws-lc-rs"))]
mod pure_rust {
    use p256::ecdsa::signature::{Verifier, hazmat::PrehashVerifier};
    use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
    use sha2::{Digest, Sha256};

    /// A curve and a hash.
    struct Algorithm {
        name: &'static str,
        key: AlgorithmIdentifier,
        signature: AlgorithmIdentifier,
        verify: Verify,
    }

    /// From a point, a message and a signature in DER.
    type Verify = fn(&[u8], &[u8], &[u8]) -> Option<()>;

    pub(in crate::app_attest) static P256_SHA256: &dyn SignatureVerificationAlgorithm = &Algorithm {
        name: "P-256 with SHA-256",
        key: alg_id::ECDSA_P256,
        signature: alg_id::ECDSA_SHA256,
        verify: |point, message, signature| {
            let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
            key.verify(message, &p256::ecdsa::Signature::from_der(signature).ok()?).ok()
        },
    };

    pub(in crate::app_attest) static P384_SHA256: &dyn SignatureVerificationAlgorithm = &Algorithm {
        name: "P-384 with SHA-256",
        key: alg_id::ECDSA_P384,
        signature: alg_id::ECDSA_SHA256,
        verify: |point, message, signature| {
            let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
            // The curve's field is longer than the hash, which counts as a number all the same.
            let mut hash = [0; 48];
            hash[16..].copy_from_slice(&Sha256::digest(message));
            key.verify_prehash(&hash, &p384::ecdsa::Signature::from_der(signature).ok()?).ok()
        },
    };

    pub(in crate::app_attest) static P384_SHA384: &dyn SignatureVerificationAlgorithm = &Algorithm {
        name: "P-384 with SHA-384",
        key: alg_id::ECDSA_P384,
        signature: alg_id::ECDSA_SHA384,
        verify: |point, message, signature| {
            let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
            key.verify(message, &p384::ecdsa::Signature::from_der(signature).ok()?).ok()
        },
    };

    impl SignatureVerificationAlgorithm for Algorithm {
        fn verify_signature(
            &self,
            key: &[u8],
            message: &[u8],
            signature: &[u8],
        ) -> Result<(), InvalidSignature> {
            (self.verify)(key, message, signature).ok_or(InvalidSignature)
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            self.key
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            self.signature
        }
    }

    impl std::fmt::Debug for Algorithm {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.name)
        }
    }
}
