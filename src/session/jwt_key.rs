//! Key pairs that sign sessions for other services.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    UnparsedPublicKey,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::session::error::SessionError;

/// A key pair: Ed25519 for the algorithm `EdDSA`, or P-256 for `ES256`. Its id is the thumbprint of the public key (RFC
/// 7638). `Debug` shows only the id.
pub struct JwtKey {
    pair: Pair,
    id: String,
    /// The public key as a JSON Web Key.
    jwk: String,
    /// The only header of this key's tokens, in base64url.
    header: String,
}

enum Pair {
    EdDsa(Ed25519KeyPair),
    Es256(EcdsaKeyPair),
}

impl JwtKey {
    /// Reads a private key in PKCS #8, as `openssl genpkey -algorithm ed25519` writes it, or `openssl genpkey -algorithm
    /// EC -pkeyopt ec_paramgen_curve:P-256`.
    ///
    /// # Errors
    ///
    /// Returns an error if the text holds no such key.
    pub fn from_pem(pem: &str) -> Result<Self, SessionError> {
        let lines = pem.trim().strip_prefix("-----BEGIN PRIVATE KEY-----");
        let lines = lines.and_then(|lines| lines.strip_suffix("-----END PRIVATE KEY-----"));
        let text = lines.map(|lines| {
            // Reserves room for the whole key at once: growing would leave copies of it behind.
            let mut text = Zeroizing::new(String::with_capacity(lines.len()));
            text.extend(lines.chars().filter(|letter| !letter.is_whitespace()));
            text
        });
        let der = text.and_then(|text| STANDARD.decode(&*text).ok()).map(Zeroizing::new);
        let der = der.ok_or(SessionError::new("the key is not PEM with one PRIVATE KEY"))?;
        let pair = match Ed25519KeyPair::from_pkcs8(&der) {
            Ok(pair) => Pair::EdDsa(pair),
            Err(_) => EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
                .map(Pair::Es256)
                .map_err(|_| SessionError::new("the key is neither one of Ed25519 nor one of P-256"))?,
        };
        Ok(Self::new(pair))
    }

    fn new(pair: Pair) -> Self {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        // The members of a thumbprint, in its order.
        let (algorithm, members) = match &pair {
            Pair::EdDsa(pair) => {
                let x = text(pair.public_key().as_ref());
                ("EdDSA", format!(r#""crv":"Ed25519","kty":"OKP","x":"{x}""#))
            }
            Pair::Es256(pair) => {
                // The form of the point, then both coordinates.
                let point = pair.public_key().as_ref();
                let (x, y) = point.get(1..).and_then(|point| point.split_at_checked(32)).unwrap_or_default();
                ("ES256", format!(r#""crv":"P-256","kty":"EC","x":"{}","y":"{}""#, text(x), text(y)))
            }
        };
        let id = text(&Sha256::digest(format!("{{{members}}}")));
        let jwk = format!(r#"{{{members},"use":"sig","alg":"{algorithm}","kid":"{id}"}}"#);
        let header =
            text(format!(r#"{{"alg":"{algorithm}","typ":"dc-session+jwt","kid":"{id}"}}"#).as_bytes());
        Self { pair, id, jwk, header }
    }

    /// The id: the `kid` of tokens and of the published key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn jwk(&self) -> &str {
        &self.jwk
    }

    pub(super) fn header(&self) -> &str {
        &self.header
    }

    pub(super) fn sign(&self, text: &[u8]) -> Result<Vec<u8>, SessionError> {
        match &self.pair {
            Pair::EdDsa(pair) => Ok(pair.sign(text).as_ref().to_vec()),
            Pair::Es256(pair) => pair
                .sign(&SystemRandom::new(), text)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| SessionError::new("a session cannot be signed")),
        }
    }

    pub(super) fn has_signed(&self, text: &[u8], signature: &[u8]) -> bool {
        let verified = match &self.pair {
            Pair::EdDsa(pair) => UnparsedPublicKey::new(&ED25519, pair.public_key()).verify(text, signature),
            Pair::Es256(pair) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key()).verify(text, signature)
            }
        };
        verified.is_ok()
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKey").field("id", &self.id).finish_non_exhaustive()
    }
}
