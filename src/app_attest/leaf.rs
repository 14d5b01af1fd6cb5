//! The certificate of an attested key, and Apple's extensions in it.

use std::time::Duration;

use crate::app_attest::certificate::Certificate;
use crate::app_attest::der::{Der, OCTET_STRING, SEQUENCE, context};
use crate::app_attest::error::ObjectError;
use crate::app_attest::public_key::PublicKey;

/// `1.2.840.113635.100.8.2`: the nonce.
const NONCE: &[u8] = b"\x2a\x86\x48\x86\xf7\x63\x64\x08\x02";
const NONCE_PREFIX: &[u8] = b"\x30\x24\xa1\x22\x04\x20";
/// `1.2.840.113635.100.8.6`: who may use the key.
const ACCESS_LIST: &[u8] = b"\x2a\x86\x48\x86\xf7\x63\x64\x08\x06";
/// `1.2.840.113635.100.8.7`: the operating system. Observed on real objects; Apple does not document it.
const SYSTEM: &[u8] = b"\x2a\x86\x48\x86\xf7\x63\x64\x08\x07";
const SYSTEM_PLATFORM: u32 = context(1026);
const SYSTEM_VERSION: u32 = context(1400);
/// The access list of a key that only a Mac with full security and System Integrity Protection can have made.
///
/// Source: Apple, "Validating apps that connect to your server". It never changes, says Apple.
const FULL_SECURITY: &[u8] = b"\x30\x46\xa3\x44\x04\x42\x30\x40\x0c\x02\x31\x31\x30\x3a\x30\x09\x0c\x02\x6f\x6b\xa1\x03\x01\x01\xff\x30\
    \x09\x0c\x02\x6f\x61\xa1\x03\x01\x01\xff\x30\x0b\x0c\x04\x6f\x64\x65\x6c\xa1\x03\x01\x01\xff\x30\x15\x0c\
    \x04\x6f\x73\x67\x6e\xa0\x06\x0c\x04\x72\x73\x65\x63\x30\x05\xa6\x03\x02\x01\x01";

/// The certificate of an attested key, whose chain has been verified.
pub(super) struct Leaf<'a> {
    certificate: Certificate<'a>,
    pub(super) public_key: PublicKey,
    pub(super) platform: Option<&'a str>,
    pub(super) system_version: Option<&'a str>,
}

impl<'a> Leaf<'a> {
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let certificate = Certificate::parse(der)?;
        let public_key = certificate.public_key()?;
        let system = certificate.extension(SYSTEM).ok().flatten();
        let (platform, system_version) = system.and_then(system_texts).unwrap_or_default();
        Some(Self { certificate, public_key, platform, system_version })
    }

    /// The time of Apple's answer: a day after the certificate's validity begins.
    ///
    /// Observed on real objects of 2020 to 2026; Apple does not promise it.
    pub(super) fn attested_at(&self) -> Duration {
        self.certificate.not_before + Duration::from_secs(24 * 60 * 60)
    }

    pub(super) fn check_nonce(&self, nonce: &[u8]) -> Result<(), ObjectError> {
        let found = self.certificate.extension(NONCE).ok().flatten();
        match found.and_then(|value| value.strip_prefix(NONCE_PREFIX)) {
            None => Err(ObjectError::refused("nonce", "not exactly one nonce in the certificate")),
            Some(found) if found == nonce => Ok(()),
            Some(_) => Err(ObjectError::refused(
                "nonce",
                "made for other client data. The app must hash exactly the bytes that the server hashes",
            )),
        }
    }

    /// On a Mac, checks that it had full security.
    pub(super) fn check_access_list(&self, is_on_mac: bool) -> Result<(), ObjectError> {
        if !is_on_mac && self.platform != Some("macosx") {
            return Ok(());
        }
        match self.certificate.extension(ACCESS_LIST) {
            Ok(Some(FULL_SECURITY)) => Ok(()),
            _ => Err(ObjectError::refused(
                "access_list",
                "a Mac without full security, or without System Integrity Protection",
            )),
        }
    }
}

/// The platform and the version of the operating system.
fn system_texts(value: &[u8]) -> Option<(Option<&str>, Option<&str>)> {
    let (mut fields, mut found) = (Der(Der(value).only(SEQUENCE)?), (None, None));
    while !fields.is_empty() {
        let (tag, content) = fields.any()?;
        let text = Der(content).only(OCTET_STRING).and_then(|text| std::str::from_utf8(text).ok());
        match tag {
            SYSTEM_PLATFORM => found.0 = text,
            SYSTEM_VERSION => found.1 = text,
            _ => {}
        }
    }
    Some(found)
}
