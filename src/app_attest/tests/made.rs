//! Objects that are made here, under a root of their own: shapes that no published object has.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SigningKey,
    date_time_ymd,
};
use sha2::{Digest, Sha256};

use super::*;

/// 2026-06-01, the day on which they are made.
pub(super) const TODAY: u64 = 1_780_272_000;
pub(super) const HASH: &[u8] = b"any bytes that the app passes";
const APP_ID: &str = "TEAM123456.com.example.app";
const APPLE: [u64; 6] = [1, 2, 840, 113_635, 100, 8];

/// The parts of an attestation that a test changes.
pub(super) struct Made {
    pub(super) flags: u8,
    pub(super) counter: u32,
    pub(super) aaguid: [u8; 16],
    pub(super) credential_id: Option<[u8; 32]>,
    pub(super) cose_algorithm: u8,
    pub(super) behind: Vec<u8>,
    pub(super) nonces: usize,
    /// How many certificates there are, and what those that sign others may do.
    pub(super) certificates: usize,
    pub(super) usage: KeyUsagePurpose,
    /// More of Apple's extensions: the last number, and the content.
    pub(super) extensions: Vec<(u64, Vec<u8>)>,
    pub(super) is_on_mac: bool,
    pub(super) receipt: Option<Vec<u8>>,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            flags: 0x40,
            counter: 0,
            aaguid: *b"appattest\0\0\0\0\0\0\0",
            credential_id: None,
            cose_algorithm: 0x26,
            behind: vec![],
            nonces: 1,
            certificates: 2,
            usage: KeyUsagePurpose::KeyCertSign,
            extensions: vec![],
            is_on_mac: false,
            receipt: None,
        }
    }
}

impl Made {
    pub(super) fn verify(self) -> Result<Attestation, ObjectError> {
        let (attested, anchors) = self.make();
        attested.verify_by(Some(AttestationExpected::MAX_AGE), &[Environment::Production], &anchors)
    }

    pub(super) fn make(self) -> (Attested, Anchors) {
        let app_id: AppId = APP_ID.parse().unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let point = key.der_bytes();
        let key_id = PublicKey::from_bytes(point).unwrap().key_id();
        let auth_data = [
            &app_id.rp_id_hash()[..],
            &[self.flags],
            &self.counter.to_be_bytes(),
            &self.aaguid,
            &[0, 32],
            self.credential_id.as_ref().unwrap_or(key_id.as_bytes()),
            &[0xa5, 0x01, 0x02, 0x03, self.cose_algorithm, 0x20, 0x01, 0x21, 0x58, 0x20],
            &point[1..33],
            &[0x22, 0x58, 0x20],
            &point[33..],
            &self.behind,
        ]
        .concat();
        let nonce = Sha256::new().chain_update(&auth_data).chain_update(HASH).finalize();
        let nonce = [b"\x30\x24\xa1\x22\x04\x20", &nonce[..]].concat();

        let mut leaf = CertificateParams::default();
        (leaf.not_before, leaf.not_after) = (date_time_ymd(2026, 5, 31), date_time_ymd(2026, 6, 3));
        let extension = |number: u64, content| {
            CustomExtension::from_oid_content(&[&APPLE[..], &[number]].concat(), content)
        };
        leaf.custom_extensions = (0..self.nonces).map(|_| extension(2, nonce.clone())).collect();
        leaf.custom_extensions
            .extend(self.extensions.into_iter().map(|(number, content)| extension(number, content)));

        let (root, mut issuer) = authority(0, KeyUsagePurpose::KeyCertSign, None);
        let mut chain = vec![];
        for number in 1..self.certificates {
            let (certificate, next) = authority(number, self.usage, Some(&issuer));
            chain.insert(0, certificate);
            issuer = next;
        }
        chain.insert(0, leaf.signed_by(&key, &issuer).unwrap());
        let certificates: Vec<_> = chain.iter().map(|certificate| bytes_item(certificate.der())).collect();
        let mut statement = vec![(text_item("x5c"), array_item(&certificates))];
        statement.extend(self.receipt.map(|receipt| (text_item("receipt"), bytes_item(&receipt))));
        let object = map_item(&[
            (text_item("fmt"), text_item("apple-appattest")),
            (text_item("attStmt"), map_item(&statement)),
            (text_item("authData"), bytes_item(&auth_data)),
        ]);
        let app_id = if self.is_on_mac { app_id.on_mac() } else { app_id };
        let anchors = Anchors::apple().with_attestation_roots(root.der()).unwrap();
        let name = "made".to_owned();
        (Attested { name, object, key_id, client_data_hash: HASH.to_vec(), app_id, at: TODAY }, anchors)
    }
}

/// A certificate that may sign others, and its key. The root signs itself.
fn authority(
    number: usize,
    usage: KeyUsagePurpose,
    issuer: Option<&Issuer<'static, KeyPair>>,
) -> (Certificate, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("authority {number}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![usage];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2045, 1, 1));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    (certificate, Issuer::new(params, key))
}

/// An assertion whose authenticator data ends with these bytes.
pub(super) fn assertion(flags: u8, counter: u32, behind: &[u8]) -> Asserted {
    let app_id: AppId = APP_ID.parse().unwrap();
    let auth_data = [&app_id.rp_id_hash()[..], &[flags], &counter.to_be_bytes(), behind].concat();
    signed(&auth_data)
}

/// An assertion with these bytes as its authenticator data.
pub(super) fn signed(auth_data: &[u8]) -> Asserted {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let nonce = Sha256::new().chain_update(auth_data).chain_update(HASH).finalize();
    let signature = key.sign(&nonce).unwrap();
    let object = map_item(&[
        (text_item("signature"), bytes_item(&signature)),
        (text_item("authenticatorData"), bytes_item(auth_data)),
    ]);
    Asserted {
        name: "made".to_owned(),
        object,
        public_key: PublicKey::from_bytes(key.der_bytes()).unwrap(),
        client_data_hash: HASH.to_vec(),
        app_id: APP_ID.parse().unwrap(),
    }
}

fn head(major: u8, length: usize) -> Vec<u8> {
    match length {
        0..24 => vec![major << 5 | length as u8],
        24..256 => vec![major << 5 | 24, length as u8],
        _ => [&[major << 5 | 25], &(length as u16).to_be_bytes()[..]].concat(),
    }
}

pub(super) fn bytes_item(bytes: &[u8]) -> Vec<u8> {
    [&head(2, bytes.len())[..], bytes].concat()
}

pub(super) fn text_item(text: &str) -> Vec<u8> {
    [&head(3, text.len())[..], text.as_bytes()].concat()
}

pub(super) fn array_item(items: &[Vec<u8>]) -> Vec<u8> {
    [head(4, items.len()), items.concat()].concat()
}

pub(super) fn map_item(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let content = entries.iter().flat_map(|(key, value)| [&key[..], value].concat());
    head(5, entries.len()).into_iter().chain(content).collect()
}
