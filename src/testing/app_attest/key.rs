//! Throw-away keys of both curves that App Attest uses.

use p256::ecdsa::signature::hazmat::PrehashSigner;
use sha2::{Digest, Sha256, Sha384};

use crate::testing::app_attest::der;

/// A key that signs certificates, receipts or assertions.
#[derive(Clone)]
pub(super) enum Key {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
}

/// The hash function of a signature. Apple signs with both under keys of the curve P-384.
#[derive(Clone, Copy)]
pub(super) enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    /// The `AlgorithmIdentifier` of ECDSA with this hash function.
    pub(super) fn algorithm(self) -> Vec<u8> {
        let last = match self {
            Self::Sha256 => 2,
            Self::Sha384 => 3,
        };
        der::sequence(&[&der::oid(&[1, 2, 840, 10_045, 4, 3, last])])
    }
}

impl Key {
    pub(super) fn p256() -> Self {
        loop {
            // About one number of this length in 2^32 is not a valid key.
            if let Ok(key) = p256::ecdsa::SigningKey::from_slice(&random::<32>()) {
                return Self::P256(key);
            }
        }
    }

    pub(super) fn p384() -> Self {
        loop {
            if let Ok(key) = p384::ecdsa::SigningKey::from_slice(&random::<48>()) {
                return Self::P384(key);
            }
        }
    }

    /// The uncompressed point: 65 or 97 bytes.
    pub(super) fn point(&self) -> Vec<u8> {
        match self {
            Self::P256(key) => key.verifying_key().to_encoded_point(false).as_bytes().to_vec(),
            Self::P384(key) => key.verifying_key().to_encoded_point(false).as_bytes().to_vec(),
        }
    }

    /// The `SubjectPublicKeyInfo`.
    pub(super) fn public_key_info(&self) -> Vec<u8> {
        let curve: &[u32] = match self {
            Self::P256(_) => &[1, 2, 840, 10_045, 3, 1, 7],
            Self::P384(_) => &[1, 3, 132, 0, 34],
        };
        let algorithm = der::sequence(&[&der::oid(&[1, 2, 840, 10_045, 2, 1]), &der::oid(curve)]);
        der::sequence(&[&algorithm, &der::bits(&self.point())])
    }

    /// Signs as ECDSA over the hash of `message`, in DER.
    pub(super) fn sign(&self, hash: Hash, message: &[u8]) -> Vec<u8> {
        let digest = match hash {
            Hash::Sha256 => Sha256::digest(message).to_vec(),
            Hash::Sha384 => Sha384::digest(message).to_vec(),
        };
        #[allow(clippy::expect_used, reason = "a valid key signs any digest of at least half its length")]
        match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign_prehash(&digest).expect("a signature");
                signature.to_der().as_bytes().to_vec()
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign_prehash(&digest).expect("a signature");
                signature.to_der().as_bytes().to_vec()
            }
        }
    }
}

fn random<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    #[allow(clippy::expect_used, reason = "documented as a panic of what makes keys")]
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
