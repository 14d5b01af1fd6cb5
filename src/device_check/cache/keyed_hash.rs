//! A hash for tables inside one process that costs a fraction of SHA-256 and is as hard to fool.
//!
//! Nearly all of a cache hit is hashing three kilobytes of token. Inside a process nobody sees the hash, so
//! it need not be collision resistant for people who can compute it: it is enough that nobody can choose two
//! keys that collide *without knowing a random secret*. That is what a universal hash gives, with a proof.
//!
//! Both backends evaluate a polynomial over GF(2^128), whose coefficients are the key's blocks of 16 bytes,
//! at a secret random point: two different polynomials of degree `n` agree in at most `n` of 2^128 points.
//!
//! * GMAC, AES-GCM's tag of a text that is not encrypted, from aws-lc where that is there anyway. Its nonce
//!   never changes, which adds the same unknown block to every hash. That is harmless, because no hash is ever
//!   shown to anyone; for a tag that is sent to others it would not be.
//! * POLYVAL (RFC 8452) elsewhere, at a good third of the cost of SHA-256.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{device_check::cache::verdict_key::VerdictKey, gate::routing::Environment};

/// The secret of one process under which [`VerdictKey::keyed_hash`] hashes. Its hashes must not leave the
/// process.
#[derive(Clone)]
pub struct HashSecret {
    secret: backend::Secret,
    /// Tells it from the others of this process.
    id: u64,
}

impl HashSecret {
    /// A new secret from the operating system.
    ///
    /// # Panics
    ///
    /// If the operating system has no randomness to give, which no server survives.
    #[must_use]
    pub fn random() -> Self {
        let mut key = [0; 16];
        #[allow(clippy::expect_used, reason = "see Panics")]
        getrandom::fill(&mut key).expect("the operating system gives random bytes");
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self { secret: backend::secret(key), id: NEXT_ID.fetch_add(1, Ordering::Relaxed) }
    }
}

impl fmt::Debug for HashSecret {
    // Whoever knows the secret can make tokens collide.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashSecret(..)")
    }
}

impl VerdictKey<'_> {
    /// A hash of the whole key for tables inside this process, at a seventh to a third of the cost of
    /// [`digest`](Self::digest).
    ///
    /// It is a universal hash under a random secret. For two different keys, of at most `n` blocks of 16
    /// bytes each (`n` is at most 515 for a token and a scope of 16 bytes), and a secret that was chosen
    /// independently of them, the hashes are equal with probability at most `n / 2^128`. Whoever sends tokens
    /// sees neither the secret nor a hash, only whether a token was found, so that `q` tokens tried against a
    /// cache of `m` entries find a false one with probability at most `q * m * n / 2^128`: less than 2^-58
    /// for 2^40 tries against 2^20 entries.
    ///
    /// That holds for nobody who knows the secret or sees hashes. Use [`digest`](Self::digest) for
    /// everything that leaves the process.
    #[must_use]
    pub fn keyed_hash(&self, secret: &HashSecret) -> u128 {
        let hash = || {
            let environment = match self.environment {
                Environment::Production => 0,
                Environment::Development => 1,
            };
            backend::hash(&secret.secret, self.text, self.scope.as_bytes(), environment)
        };
        match *self.memo.keyed_hash.get_or_init(|| (secret.id, hash())) {
            (id, known) if id == secret.id => known,
            _ => hash(),
        }
    }
}

// Both backends hash distinct keys as distinct sequences of blocks: the last block tells where the text and
// the scope end.

#[cfg(feature = "aws-lc-rs")]
mod backend {
    use std::sync::Arc;

    use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

    pub(super) type Secret = Arc<LessSafeKey>;

    pub(super) fn secret(key: [u8; 16]) -> Secret {
        #[allow(clippy::expect_used, reason = "any 16 bytes are a key")]
        let key = UnboundKey::new(&AES_128_GCM, &key).expect("AES-128 takes 16 bytes");
        Arc::new(LessSafeKey::new(key))
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
        // GCM hashes the text, what it made of the rest by adding a constant, and the length of both.
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
                    let hash = VerdictKey::of_text(scope, environment, text).keyed_hash(&secret);
                    assert_eq!(VerdictKey::of_text(scope, environment, text).keyed_hash(&secret), hash);
                    assert!(hashes.insert(hash), "{} {scope} {environment}", text.len());
                }
            }
        }
        let key = VerdictKey::of_text("A", Environment::Production, b"A");
        assert_ne!(key.keyed_hash(&secret), key.keyed_hash(&HashSecret::random()));
    }

    #[test]
    fn a_key_has_a_hash_under_each_secret() {
        let (one, other) = (HashSecret::random(), HashSecret::random());
        let key = || VerdictKey::of_text("T", Environment::Production, b"AgAA");
        let used = key();
        let hashes = [used.keyed_hash(&one), used.keyed_hash(&other), used.keyed_hash(&one.clone())];
        assert_eq!(hashes, [key().keyed_hash(&one), key().keyed_hash(&other), key().keyed_hash(&one)]);
        assert_ne!(hashes[0], hashes[1]);

        let next = key().with_memo(used.into_memo());
        assert_eq!([next.keyed_hash(&other), next.keyed_hash(&one)], [hashes[1], hashes[0]]);
    }

    #[test]
    fn every_bit_of_the_text_counts() {
        let secret = HashSecret::random();
        let mut text = vec![b'A'; 2_952];
        let hash = |text: &[u8]| VerdictKey::of_text("T", Environment::Production, text).keyed_hash(&secret);
        let expected = hash(&text);
        for index in 0..text.len() {
            text[index] ^= 1;
            assert_ne!(hash(&text), expected, "{index}");
            text[index] ^= 1;
        }
    }
}
