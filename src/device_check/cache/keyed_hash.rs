//! A hash for tables inside one process. It costs a fraction of SHA-256, and is as hard to fool.
//!
//! Hashing three kilobytes of token is nearly all of a cache hit. The hash never leaves the process, so it need not
//! resist attackers who can compute it. It must only keep attackers who do not know a random secret from choosing two
//! keys that collide. A universal hash provably does that.
//!
//! Both backends evaluate a polynomial over GF(2^128), whose coefficients are the key's blocks of 16 bytes,
//! at a secret random point: two different polynomials of degree `n` agree in at most `n` of 2^128 points.
//!
//! * GMAC, the AES-GCM tag of unencrypted text, from aws-lc if the crate uses aws-lc anyway. The nonce never changes,
//!   which adds the same unknown block to every hash. This is harmless, because no hash leaves the process; for a
//!   published tag it would not be.
//! * Otherwise POLYVAL (RFC 8452), at slightly more than a third of the cost of SHA-256.

use crate::device_check::cache::verdict_key::VerdictKey;

/// The secret under which keys are hashed. The secret and the hashes must not leave the process, because an attacker
/// could use them to make tokens that collide. The secret therefore has no `Debug`.
pub(super) struct HashSecret(backend::Secret);

impl HashSecret {
    /// A new secret from the operating system.
    ///
    /// # Panics
    ///
    /// Panics if the operating system gives no random bytes. No server survives that.
    pub(super) fn random() -> Self {
        let mut key = [0; 16];
        #[allow(clippy::expect_used, reason = "see Panics")]
        getrandom::fill(&mut key).expect("the operating system gives random bytes");
        Self(backend::secret(key))
    }

    /// A hash of the whole key, at a seventh to a third of the cost of [`VerdictKey::digest`].
    ///
    /// It is a universal hash under a random secret. Take two different keys of at most `n` blocks of 16 bytes each,
    /// and a secret that was chosen independently of them. Their hashes are equal with probability at most `n / 2^128`.
    /// For a token and a scope of 16 bytes, `n` is at most 515. An attacker who sends tokens sees neither the secret
    /// nor a hash, only whether a token was found. Therefore `q` tokens against a cache of `m` entries produce a false
    /// hit with probability at most `q * m * n / 2^128`: less than 2^-58 for 2^40 tries against 2^20 entries.
    ///
    /// This bound does not hold against anyone who knows the secret or sees a hash.
    pub(super) fn hash(&self, key: &VerdictKey<'_>) -> u128 {
        backend::hash(&self.0, key.text(), key.scope().as_bytes(), key.letter())
    }
}

// Both backends hash distinct keys as distinct sequences of blocks, because the last block holds the lengths of text
// and scope.

#[cfg(feature = "aws-lc-rs")]
mod backend {
    use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

    pub(super) type Secret = LessSafeKey;

    pub(super) fn secret(key: [u8; 16]) -> Secret {
        #[allow(clippy::expect_used, reason = "any 16 bytes are a key")]
        let key = UnboundKey::new(&AES_128_GCM, &key).expect("AES-128 takes 16 bytes");
        LessSafeKey::new(key)
    }

    pub(super) fn hash(secret: &Secret, text: &[u8], scope: &[u8], environment: u8) -> u128 {
        let mut short = [environment; 64];
        let mut long;
        let rest = if scope.len() < short.len() {
            &mut short[..=scope.len()]
        } else {
            long = vec![environment; scope.len() + 1];
            &mut long
        };
        rest[..scope.len()].copy_from_slice(scope);
        // GCM hashes the text, the rest plus a constant (its ciphertext), and the lengths of both.
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        #[allow(clippy::expect_used, reason = "an HTTP header is not that long")]
        let tag =
            secret.seal_in_place_separate_tag(nonce, Aad::from(text), rest).expect("GCM takes up to 64 GiB");
        tag.as_ref().iter().fold(0, |hash, byte| hash << 8 | u128::from(*byte))
    }
}

#[cfg(not(feature = "aws-lc-rs"))]
mod backend {
    use polyval::{Polyval, universal_hash::UniversalHash};

    pub(super) type Secret = Polyval;

    pub(super) fn secret(key: [u8; 16]) -> Secret {
        Polyval::new(&key.into())
    }

    pub(super) fn hash(secret: &Secret, text: &[u8], scope: &[u8], environment: u8) -> u128 {
        let mut last = [0; 16];
        last[..8].copy_from_slice(&(text.len() as u64).to_le_bytes());
        last[8..].copy_from_slice(&(scope.len() as u64).to_le_bytes());
        // No scope is 2^56 bytes long.
        last[15] = environment;
        let mut hash = secret.clone();
        hash.update_padded(text);
        hash.update_padded(scope);
        hash.update(&[last.into()]);
        u128::from_le_bytes(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::gate::routing::Environment;

    #[test]
    fn different_keys_have_different_hashes() {
        let secret = HashSecret::random();
        let long = "x".repeat(100);
        let texts: [&[u8]; 6] = [b"", b"A", b"AA", b"AAAAAAAAAAAAAAAA", b"AAAAAAAAAAAAAAAAA", &[b'A'; 2_952]];
        let scopes = ["", "A", "TEAM123456", "TEAM123456\0", &long, &long[1..]];
        let environments = [Environment::Production, Environment::Development];
        let mut hashes = HashSet::new();
        for text in texts {
            for scope in scopes {
                for environment in environments {
                    for is_for_marks in [false, true] {
                        let key = VerdictKey::of_text(scope, environment, text).for_marks(is_for_marks);
                        let hash = secret.hash(&key);
                        assert_eq!(secret.hash(&key), hash);
                        assert!(hashes.insert(hash), "{} {key:?}", text.len());
                    }
                }
            }
        }
        let key = VerdictKey::of_text("A", Environment::Production, b"A");
        assert_ne!(secret.hash(&key), HashSecret::random().hash(&key));
    }

    #[test]
    fn every_bit_of_the_text_counts() {
        let secret = HashSecret::random();
        let mut text = vec![b'A'; 2_952];
        let hash = |text: &[u8]| secret.hash(&VerdictKey::of_text("T", Environment::Production, text));
        let expected = hash(&text);
        for index in 0..text.len() {
            text[index] ^= 1;
            assert_ne!(hash(&text), expected, "{index}");
            text[index] ^= 1;
        }
    }
}
