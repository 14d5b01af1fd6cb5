//! The parts of a certificate that webpki does not tell: its dates, its key and its extensions.

use std::time::Duration;

use crate::app_attest::date::certificate_date;
use crate::app_attest::der::{BIT_STRING, Der, INTEGER, OBJECT_ID, OCTET_STRING, SEQUENCE, context};
use crate::app_attest::public_key::PublicKey;

const BOOLEAN: u32 = 0x01;
const UNIQUE_IDS: [u32; 2] = [0x81, 0x82];
/// The algorithm of a key on P-256: `ecPublicKey` with `prime256v1`.
const P256_KEY: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
const KEY_CERT_SIGN: u8 = 0x04;

/// A certificate that can be read. Nobody has checked yet who signed it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Certificate<'a> {
    pub(super) serial: &'a [u8],
    pub(super) issuer: &'a [u8],
    pub(super) not_before: Duration,
    key: Der<'a>,
    extensions: Der<'a>,
}

impl<'a> Certificate<'a> {
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut signed = Der(Der(der).only(SEQUENCE)?).open(SEQUENCE)?;
        signed.take(context(0))?;
        let serial = signed.take(INTEGER)?;
        signed.take(SEQUENCE)?;
        let issuer = signed.take(SEQUENCE)?;
        let mut validity = signed.open(SEQUENCE)?;
        let (tag, not_before) = validity.any()?;
        let not_before = certificate_date(tag, not_before)?;
        signed.take(SEQUENCE)?;
        let key = signed.open(SEQUENCE)?;
        let mut extensions = Der(&[]);
        while !signed.is_empty() {
            match signed.any()? {
                (tag, content) if tag == context(3) => extensions = Der(Der(content).only(SEQUENCE)?),
                (tag, _) if UNIQUE_IDS.contains(&tag) => {}
                _ => return None,
            }
        }
        Some(Self { serial, issuer, not_before, key, extensions })
    }

    /// The key, if it is an uncompressed point of P-256.
    pub(super) fn public_key(&self) -> Option<PublicKey> {
        let mut parts = self.key;
        let algorithm = parts.take(SEQUENCE)?;
        let (unused_bits, point) = parts.only(BIT_STRING)?.split_first()?;
        (algorithm == P256_KEY && *unused_bits == 0).then(|| PublicKey::from_bytes(point).ok())?
    }

    /// The value of the extension with this object identifier. `Err` if it occurs twice, or the list cannot be read.
    pub(super) fn extension(&self, id: &[u8]) -> Result<Option<&'a [u8]>, ()> {
        let mut found = None;
        let mut extensions = self.extensions;
        while !extensions.is_empty() {
            let (name, value) = extensions.open(SEQUENCE).and_then(extension).ok_or(())?;
            if name == id && found.replace(value).is_some() {
                return Err(());
            }
        }
        Ok(found)
    }

    /// Whether the key may sign certificates. webpki leaves this to the basic constraints.
    pub(super) fn may_sign_certificates(&self) -> bool {
        let usage = self.extension(KEY_USAGE).ok().flatten().and_then(|value| Der(value).only(BIT_STRING));
        matches!(usage, Some([_, bits, ..]) if bits & KEY_CERT_SIGN != 0)
    }
}

/// The object identifier and the value of one extension.
fn extension(mut parts: Der<'_>) -> Option<(&[u8], &[u8])> {
    let name = parts.take(OBJECT_ID)?;
    let mut value = parts;
    if value.take(BOOLEAN).is_none() {
        value = parts;
    }
    Some((name, value.only(OCTET_STRING)?))
}
