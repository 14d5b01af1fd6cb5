//! The authenticator data: 37 bytes, and more in an attestation.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 32 | RP ID hash: the SHA-256 of the App ID |
//! | 32 | 1 | flags, which decide nothing |
//! | 33 | 4 | counter |
//! | 37 | 16 | attestations only: AAGUID, the environment |
//! | 53 | 2 | attestations only: length of the credential id |
//! | 55 | 32 | attestations only: credential id, which is the key id |
//! | 87 | 77 | attestations only: COSE key |
//! | 37 or 164 | 0 or more | nothing, or a map: `extensions.rs` |
//!
//! Numbers have their most significant byte first. Sources: Apple, "Validating apps that connect to your server", and
//! the authenticator data of WebAuthn. Apple's flags are not those of WebAuthn: an assertion has the bit for an attested
//! credential and holds none (observed on real objects).

use crate::app_attest::cbor::Item;
use crate::app_attest::error::ObjectError;
use crate::app_attest::public_key::PublicKey;
use crate::gate::routing::Environment;

const PRODUCTION: &[u8; 16] = b"appattest\0\0\0\0\0\0\0";
const DEVELOPMENT: &[u8; 16] = b"appattestdevelop";

/// The beginning of all authenticator data.
pub(super) struct AuthData<'a> {
    pub(super) rp_id_hash: &'a [u8; 32],
    pub(super) counter: u32,
    /// The bytes that follow.
    pub(super) rest: &'a [u8],
}

/// The part that only an attestation has.
pub(super) struct Attested<'a> {
    aaguid: &'a [u8; 16],
    pub(super) credential_id: &'a [u8],
    pub(super) public_key: PublicKey,
    /// The bytes that follow.
    pub(super) rest: &'a [u8],
}

impl<'a> AuthData<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ObjectError> {
        let mut rest = bytes;
        let rp_id_hash = chunk(&mut rest)?;
        let [_flags] = chunk(&mut rest)?;
        let counter = u32::from_be_bytes(*chunk(&mut rest)?);
        Ok(Self { rp_id_hash, counter, rest })
    }
}

impl<'a> Attested<'a> {
    /// Reads the bytes that follow the counter.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ObjectError> {
        let mut rest = bytes;
        let aaguid = chunk(&mut rest)?;
        let length = u16::from_be_bytes(*chunk(&mut rest)?);
        let (credential_id, rest) = rest.split_at_checked(length.into()).ok_or_else(cut_off)?;
        let (key, rest) = Item::first(rest).map_err(|reason| ObjectError::malformed("auth_data", reason))?;
        let public_key =
            cose_key(&key).ok_or_else(|| ObjectError::malformed("public_key", "not a key on P-256"))?;
        Ok(Self { aaguid, credential_id, public_key, rest })
    }

    pub(super) fn environment(&self) -> Result<Environment, ObjectError> {
        match self.aaguid {
            PRODUCTION => Ok(Environment::Production),
            DEVELOPMENT => Ok(Environment::Development),
            _ => Err(ObjectError::refused("environment", "attested for no environment that Apple documents")),
        }
    }
}

fn chunk<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], ObjectError> {
    let (chunk, behind) = rest.split_first_chunk().ok_or_else(cut_off)?;
    *rest = behind;
    Ok(chunk)
}

fn cut_off() -> ObjectError {
    ObjectError::malformed("auth_data", "cut off")
}

/// The point of a COSE key (RFC 9053): type EC2, algorithm ES256, curve P-256, x and y.
fn cose_key(key: &Item<'_>) -> Option<PublicKey> {
    let shape = [
        (Item::Unsigned(1), Item::Unsigned(2)),
        (Item::Unsigned(3), Item::Negative(6)),
        (Item::Negative(0), Item::Unsigned(1)),
    ];
    if shape.iter().any(|(label, value)| key.get(label) != Some(value)) {
        return None;
    }
    match (key.get(&Item::Negative(1))?, key.get(&Item::Negative(2))?) {
        (Item::Bytes(x), Item::Bytes(y)) if x.len() == 32 && y.len() == 32 => {
            PublicKey::from_bytes(&[&[0x04], *x, *y].concat()).ok()
        }
        _ => None,
    }
}
