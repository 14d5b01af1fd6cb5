//! The envelope of a receipt: CMS SignedData (RFC 5652), in the one form that Apple writes.
//!
//! The content is data; one signer has signed it with ECDSA on P-256 and SHA-256, without attributes, so that the
//! signature covers the content itself (observed on real objects). Any other form is malformed.

use crate::app_attest::ber::{Ber, Element};
use crate::app_attest::certificate::Certificate;

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const CONTEXT_0: u8 = 0xa0;

const SIGNED_DATA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";
const DATA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
const SHA_256: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x01";
const ECDSA_WITH_SHA_256: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x02";
const MOST_CERTIFICATES: usize = 8;

/// An envelope that can be read. Nobody has checked the signature yet.
pub(super) struct SignedData<'a> {
    pub(super) content: Vec<u8>,
    pub(super) signature: &'a [u8],
    /// The signer's certificate first.
    pub(super) certificates: Vec<&'a [u8]>,
}

impl<'a> SignedData<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut outer = Ber::new(bytes);
        let mut envelope = outer.open(SEQUENCE)?;
        object_id(&mut envelope, SIGNED_DATA)?;
        let mut wrapped = envelope.open(CONTEXT_0)?;
        let mut parts = wrapped.open(SEQUENCE)?;
        take(&mut parts, INTEGER)?;
        take(&mut parts, SET)?;
        let content = content(parts.open(SEQUENCE)?)?;
        let mut certificates = certificates(parts.open(CONTEXT_0)?)?;
        let mut signers = parts.open(SET)?;
        let (signer, signature) = signer(signers.open(SEQUENCE)?)?;
        let is_end = [outer, envelope, wrapped, parts, signers].iter().all(Ber::is_empty);
        let index = certificates.iter().position(|certificate| signer.is_named_by(certificate))?;
        certificates.swap(0, index);
        is_end.then_some(Self { content, signature, certificates })
    }
}

/// The name of the signer's certificate.
struct Signer<'a> {
    issuer: &'a [u8],
    serial: &'a [u8],
}

impl Signer<'_> {
    fn is_named_by(&self, certificate: &[u8]) -> bool {
        Certificate::parse(certificate)
            .is_some_and(|parsed| parsed.issuer == self.issuer && parsed.serial == self.serial)
    }
}

fn content(mut parts: Ber<'_>) -> Option<Vec<u8>> {
    object_id(&mut parts, DATA)?;
    let mut wrapped = parts.open(CONTEXT_0)?;
    let mut joined = Vec::new();
    wrapped.any()?.octets(&mut joined)?;
    (parts.is_empty() && wrapped.is_empty()).then_some(joined)
}

fn certificates(mut parts: Ber<'_>) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    while !parts.is_empty() {
        found.push(take(&mut parts, SEQUENCE)?.whole);
    }
    (found.len() <= MOST_CERTIFICATES).then_some(found)
}

fn signer(mut parts: Ber<'_>) -> Option<(Signer<'_>, &[u8])> {
    take(&mut parts, INTEGER)?;
    let mut name = parts.open(SEQUENCE)?;
    let issuer = take(&mut name, SEQUENCE)?.content;
    let serial = take(&mut name, INTEGER)?.content;
    object_id(&mut parts.open(SEQUENCE)?, SHA_256)?;
    object_id(&mut parts.open(SEQUENCE)?, ECDSA_WITH_SHA_256)?;
    let signature = take(&mut parts, OCTET_STRING)?.content;
    (name.is_empty() && parts.is_empty()).then_some((Signer { issuer, serial }, signature))
}

fn take<'a>(parts: &mut Ber<'a>, tag: u8) -> Option<Element<'a>> {
    parts.any().filter(|element| element.tag == tag)
}

fn object_id(parts: &mut Ber<'_>, id: &[u8]) -> Option<()> {
    take(parts, OBJECT_ID).filter(|element| element.content == id).map(drop)
}
