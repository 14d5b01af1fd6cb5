//! Receipts: signed messages about a key, for Apple's fraud metric.

use std::time::Duration;

use crate::gate::routing::Environment;
use crate::testing::app_attest::certificate::calendar;
use crate::testing::app_attest::der;
use crate::testing::app_attest::fault::Fault;
use crate::testing::app_attest::key::{Hash, Key};

const DAY: Duration = Duration::from_secs(86_400);
/// A receipt expires this long after its creation.
const LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// Apple writes the content in pieces of this many bytes.
const PIECE: usize = 1000;

/// The facts that all receipts about one key have in common.
#[derive(Clone)]
pub(super) struct Facts {
    pub(super) app_id: String,
    pub(super) leaf: Vec<u8>,
    pub(super) client_data_hash: Vec<u8>,
    pub(super) token: String,
    pub(super) environment: Environment,
    pub(super) encoding: ReceiptEncoding,
    pub(super) fault: Option<Fault>,
}

/// The two types of receipts: inside an attestation, or from Apple's server.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Attest,
    Refreshed { metric: u32 },
}

/// The encoding of a receipt. Apple sends both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceiptEncoding {
    /// BER with indefinite lengths, and the content in pieces. Most real receipts are so.
    #[default]
    Indefinite,
    /// DER.
    Definite,
}

/// The key that signs a receipt, and its certificates.
pub(super) struct Signer {
    pub(super) key: Key,
    /// The certificate of the key, and those above it, the root last.
    pub(super) certificates: [Vec<u8>; 3],
    pub(super) issuer: Vec<u8>,
    pub(super) serial: Vec<u8>,
}

impl Facts {
    pub(super) fn receipt(&self, signer: &Signer, kind: Kind, at: Duration) -> Vec<u8> {
        let content = self.content(kind, at);
        let signed = match self.fault {
            Some(Fault::ReceiptSignature) => &[],
            _ => content.as_slice(),
        };
        let sha256 = der::sequence(&[&der::oid(&[2, 16, 840, 1, 101, 3, 4, 2, 1]), &der::NULL]);
        let signer_info = der::sequence(&[
            &der::integer(1),
            &der::sequence(&[&signer.issuer, &der::unsigned(&signer.serial)]),
            &sha256,
            &Hash::Sha256.algorithm(),
            &der::octets(&signer.key.sign(Hash::Sha256, signed)),
        ]);
        let certificates = signer.certificates.concat();
        let encoding = self.encoding;
        let content_info =
            encoding.tagged(0x30, &[&pkcs7(1), &encoding.tagged(0xa0, &[&encoding.octets(&content)])]);
        let signed_data = encoding.tagged(
            0x30,
            &[
                &der::integer(1),
                &der::set(&[&sha256]),
                &content_info,
                &encoding.tagged(0xa0, &[&certificates]),
                &der::set(&[&signer_info]),
            ],
        );
        encoding.tagged(0x30, &[&pkcs7(2), &encoding.tagged(0xa0, &[&signed_data])])
    }

    /// The content that is signed: a set of numbered fields.
    fn content(&self, kind: Kind, at: Duration) -> Vec<u8> {
        let environment = match self.environment {
            Environment::Production => "production",
            Environment::Development => "sandbox",
        };
        let app_id = field(2, self.app_id.as_bytes());
        let leaf = field(3, &self.leaf);
        let token = field(5, self.token.as_bytes());
        let environment = field(7, environment.as_bytes());
        let created = field(12, iso8601(at).as_bytes());
        let expires = field(21, iso8601(at + LIFETIME).as_bytes());
        let mut fields = match kind {
            Kind::Attest => {
                let hash = field(4, &self.client_data_hash);
                vec![app_id, leaf, hash, token, field(6, b"ATTEST"), environment, created, expires]
            }
            Kind::Refreshed { metric } => {
                let metric = field(17, metric.to_string().as_bytes());
                // In real ones, the hash is damaged: it was taken for a text.
                let hash = field(4, String::from_utf8_lossy(&self.client_data_hash).as_bytes());
                let kind = field(6, b"RECEIPT");
                let not_before = field(19, iso8601(at + DAY).as_bytes());
                vec![metric, kind, app_id, leaf, hash, token, environment, created, not_before, expires]
            }
        };
        if self.fault == Some(Fault::ReceiptFieldTwice) {
            fields.extend(fields.last().cloned());
        }
        der::set(&fields.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }
}

impl ReceiptEncoding {
    fn tagged(self, tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        match self {
            Self::Indefinite => der::indefinite(tag, parts),
            Self::Definite => der::tagged(&[tag], parts),
        }
    }

    fn octets(self, content: &[u8]) -> Vec<u8> {
        match self {
            Self::Indefinite => {
                let pieces: Vec<u8> = content.chunks(PIECE).flat_map(der::octets).collect();
                der::indefinite(0x24, &[&pieces])
            }
            Self::Definite => der::octets(content),
        }
    }
}

/// The object identifiers of data (1) and signed data (2).
fn pkcs7(last: u32) -> Vec<u8> {
    der::oid(&[1, 2, 840, 113_549, 1, 7, last])
}

/// A field of version 1.
fn field(number: u32, value: &[u8]) -> Vec<u8> {
    der::sequence(&[&der::integer(number), &der::integer(1), &der::octets(value)])
}

/// A time in UTC with three digits after the second, or with two if the third is a zero: Apple writes both.
fn iso8601(since_epoch: Duration) -> String {
    let ([year, month, day], [hour, minute, second]) = calendar(since_epoch);
    let thousandths = since_epoch.subsec_millis();
    let fraction = match thousandths % 10 {
        0 => format!("{:02}", thousandths / 10),
        _ => format!("{thousandths:03}"),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction}Z")
}
