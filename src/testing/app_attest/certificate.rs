//! X.509 certificates with the names, extensions and algorithms of Apple's.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::runtime::date;
use crate::testing::app_attest::der;
use crate::testing::app_attest::key::{Hash, Key};

/// The arcs below which Apple has its own object identifiers.
const APPLE: [u32; 5] = [1, 2, 840, 113_635, 100];

/// A key with its name: it issues certificates.
#[derive(Clone)]
pub(super) struct Issuer {
    pub(super) key: Key,
    pub(super) name: Vec<u8>,
}

/// A certificate before it is signed.
pub(super) struct Draft<'a> {
    pub(super) serial: &'a [u8],
    pub(super) subject: &'a [u8],
    pub(super) public_key: &'a Key,
    /// The first and the last second in which the certificate is valid, since 1970.
    pub(super) validity: [Duration; 2],
    pub(super) extensions: &'a [Vec<u8>],
}

impl Issuer {
    /// Signs a certificate, and returns it in DER.
    pub(super) fn issue(&self, hash: Hash, draft: &Draft<'_>) -> Vec<u8> {
        let extensions: Vec<&[u8]> = draft.extensions.iter().map(Vec::as_slice).collect();
        let to_be_signed = der::sequence(&[
            &der::context(0, &der::integer(2)),
            &der::unsigned(draft.serial),
            &hash.algorithm(),
            &self.name,
            &der::sequence(&[&time(draft.validity[0]), &time(draft.validity[1])]),
            draft.subject,
            &draft.public_key.public_key_info(),
            &der::context(3, &der::sequence(&extensions)),
        ]);
        let signature = self.key.sign(hash, &to_be_signed);
        der::sequence(&[&to_be_signed, &hash.algorithm(), &der::bits(&signature)])
    }
}

/// Changes the last byte of a certificate, which belongs to its signature.
pub(super) fn spoil_signature(certificate: &mut [u8]) {
    if let Some(byte) = certificate.last_mut() {
        *byte ^= 1;
    }
}

/// A distinguished name. Each attribute is the last arc below 2.5.4, and a text.
pub(super) fn name(attributes: &[(u32, &str)]) -> Vec<u8> {
    let sets: Vec<Vec<u8>> = attributes
        .iter()
        .map(|(attribute, text)| {
            // Apple writes countries, and only them, as printable strings.
            let text = match attribute {
                6 => der::tagged(&[0x13], &[text.as_bytes()]),
                _ => der::utf8(text),
            };
            der::set(&[&der::sequence(&[&der::oid(&[2, 5, 4, *attribute]), &text])])
        })
        .collect();
    der::sequence(&sets.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// The extensions of a certificate that issues others. Below it there may be `path_length` more of them, or any number.
pub(super) fn authority(key: &Key, above: Option<&Key>, path_length: Option<u32>) -> Vec<Vec<u8>> {
    let path_length = path_length.map(der::integer).unwrap_or_default();
    let mut extensions = vec![
        critical(&[2, 5, 29, 19], &der::sequence(&[&der::BOOLEAN_TRUE, &path_length])),
        extension(&[2, 5, 29, 14], &der::octets(&key_identifier(key))),
        // Bits 5 and 6: it signs certificates and lists of revoked ones.
        critical(&[2, 5, 29, 15], &[0x03, 0x02, 0x01, 0x06]),
    ];
    if let Some(above) = above {
        extensions.insert(1, authority_key_identifier(above));
    }
    extensions
}

/// The extensions that say: this certificate issues no others. `usage` is the octet of the key usage after the count of
/// its unused bits.
pub(super) fn end_entity(unused_bits: u8, usage: u8) -> Vec<Vec<u8>> {
    vec![
        critical(&[2, 5, 29, 19], &der::sequence(&[])),
        critical(&[2, 5, 29, 15], &[0x03, 0x02, unused_bits, usage]),
    ]
}

pub(super) fn authority_key_identifier(key: &Key) -> Vec<u8> {
    let identifier = der::tagged(&[0x80], &[&key_identifier(key)]);
    extension(&[2, 5, 29, 35], &der::sequence(&[&identifier]))
}

/// An extension of Apple's, that is not critical.
pub(super) fn apple_extension(arcs: [u32; 2], value: &[u8]) -> Vec<u8> {
    extension(&[&APPLE[..], &arcs].concat(), value)
}

/// The extended key usage of App Attest's leaf certificates since 2026.
pub(super) fn attestation_key_usage() -> Vec<u8> {
    let usage = der::oid(&[&APPLE[..], &[4, 24]].concat());
    extension(&[2, 5, 29, 37], &der::sequence(&[&usage]))
}

fn extension(oid: &[u32], value: &[u8]) -> Vec<u8> {
    der::sequence(&[&der::oid(oid), &der::octets(value)])
}

fn critical(oid: &[u32], value: &[u8]) -> Vec<u8> {
    der::sequence(&[&der::oid(oid), &der::BOOLEAN_TRUE, &der::octets(value)])
}

/// Twenty bytes that name a key, by method 1 of RFC 7093.
fn key_identifier(key: &Key) -> [u8; 20] {
    let mut identifier = [0; 20];
    let digest = Sha256::digest(key.point());
    identifier.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    identifier
}

/// A time: with two digits of the year until 2049, with four from 2050.
fn time(since_epoch: Duration) -> Vec<u8> {
    let ([year, month, day], [hour, minute, second]) = calendar(since_epoch);
    let rest = format!("{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    if year < 2050 {
        der::tagged(&[0x17], &[format!("{:02}{rest}", year % 100).as_bytes()])
    } else {
        der::tagged(&[0x18], &[format!("{year:04}{rest}").as_bytes()])
    }
}

/// Year, month and day, and hour, minute and second, in UTC.
pub(super) const fn calendar(since_epoch: Duration) -> ([u64; 3], [u64; 3]) {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    ([year, month, day], [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60])
}
