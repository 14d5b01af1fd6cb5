//! The authorities of Apple's that sign attestations and receipts.

use std::{collections::HashMap, fmt, sync::Arc, sync::Mutex, time::Duration};

use sha2::{Digest, Sha256};

use crate::gate::routing::Environment;
use crate::runtime::{SystemTime, lock, since_epoch};
use crate::testing::app_attest::certificate::{
    Draft, Issuer, apple_extension, authority, authority_key_identifier, end_entity, name, spoil_signature,
};
use crate::testing::app_attest::key::{Hash, Key};
use crate::testing::app_attest::receipt::{Facts, Kind, Signer};
use crate::testing::app_attest::{der, fault::Fault};

const INC: (u32, &str) = (10, "Apple Inc.");
const STATE: (u32, &str) = (8, "California");
const COUNTRY: (u32, &str) = (6, "US");
const CERTIFICATION: (u32, &str) = (11, "Apple Certification Authority");

/// The authorities are valid from 1970 until the end of 2049, so that tests may set their clocks to any time between.
const VALIDITY: [Duration; 2] = [Duration::ZERO, Duration::from_secs(2_524_607_999)];

/// A fake of Apple's two certificate authorities for App Attest: one signs attestations, the other one receipts.
///
/// Each fake has keys of its own, which it generates. A server in a test trusts the roots of one fake. What another fake
/// signs is then an object with the wrong root. Clones are the same fake.
///
/// See the [module docs](crate::testing::app_attest) for an example.
///
/// # Danger
///
/// A server that trusts a root of a fake admits whatever runs the fake. Tests alone may trust it.
#[derive(Clone)]
pub struct FakeAttestCa(Arc<Authorities>);

struct Authorities {
    attestation_root: Vec<u8>,
    attestation_ca: Issuer,
    attestation_ca_certificate: Vec<u8>,
    receipt_root: Vec<u8>,
    receipt_ca: Issuer,
    receipt_ca_certificate: Vec<u8>,
    receipt_key: Key,
    /// The facts of each receipt that was signed, by its SHA-256.
    receipts: Mutex<HashMap<[u8; 32], Facts>>,
}

impl FakeAttestCa {
    /// Generates the keys of both authorities, and signs their certificates.
    ///
    /// This takes some signatures on the curve P-384, which are slow in builds without optimisation: share one fake
    /// between tests where that matters.
    ///
    /// # Panics
    ///
    /// Panics if the operating system gives no random bytes.
    #[must_use]
    pub fn new() -> Self {
        let root_name = name(&[(3, "Apple App Attestation Root CA"), INC, STATE]);
        let root = Issuer { key: Key::p384(), name: root_name };
        let ca_name = name(&[(3, "Apple App Attestation CA 1"), INC, STATE]);
        let attestation_ca = Issuer { key: Key::p384(), name: ca_name };
        let receipt_root_name = name(&[(3, "Apple Root CA - G3"), CERTIFICATION, INC, COUNTRY]);
        let receipt_root = Issuer { key: Key::p384(), name: receipt_root_name };
        let receipt_ca_name =
            name(&[(3, "Apple Application Integration CA 5 - G1"), CERTIFICATION, INC, COUNTRY]);
        let receipt_ca = Issuer { key: Key::p256(), name: receipt_ca_name };
        Self(Arc::new(Authorities {
            attestation_root: root.certify(&root, None),
            attestation_ca_certificate: root.certify(&attestation_ca, Some(0)),
            attestation_ca,
            receipt_root: receipt_root.certify(&receipt_root, None),
            receipt_ca_certificate: receipt_root.certify(&receipt_ca, None),
            receipt_ca,
            receipt_key: Key::p256(),
            receipts: Mutex::default(),
        }))
    }

    /// The root certificate that signs attestations, in DER. A server under test trusts it in place of the Apple App
    /// Attestation Root CA.
    #[must_use]
    pub fn attestation_root_der(&self) -> &[u8] {
        &self.0.attestation_root
    }

    /// The root certificate that signs receipts, in DER. A server under test trusts it in place of Apple Root CA - G3.
    #[must_use]
    pub fn receipt_root_der(&self) -> &[u8] {
        &self.0.receipt_root
    }

    /// Exchanges a receipt for a newer one about the same key, as Apple's server does. `at` is its time of creation.
    /// `metric` is the risk metric: the number of keys that the device has attested lately.
    ///
    /// The new receipt says that the next exchange may happen 24 hours later, and that it expires after 90 days. Bytes
    /// that are no receipt of this fake give `None`. This fake does not check whether the old receipt is due or expired.
    #[must_use]
    pub fn refreshed(&self, receipt: &[u8], at: SystemTime, metric: u32) -> Option<Vec<u8>> {
        let facts = lock(&self.0.receipts).get(&digest(receipt)).cloned()?;
        Some(self.sign_receipt(facts, Kind::Refreshed { metric }, since_epoch(at)))
    }

    /// The environment of the key that a receipt of this fake is about.
    pub(in crate::testing) fn environment_of(&self, receipt: &[u8]) -> Option<Environment> {
        Some(lock(&self.0.receipts).get(&digest(receipt))?.environment)
    }

    pub(super) fn sign_receipt(&self, facts: Facts, kind: Kind, at: Duration) -> Vec<u8> {
        let receipt = facts.receipt(&self.receipt_signer(facts.fault), kind, at);
        lock(&self.0.receipts).insert(digest(&receipt), facts);
        receipt
    }

    pub(super) fn attestation_ca(&self) -> &Issuer {
        &self.0.attestation_ca
    }

    pub(super) fn attestation_ca_certificate(&self) -> &[u8] {
        &self.0.attestation_ca_certificate
    }

    /// The signer of receipts, or another one of the same authority that signs something else.
    fn receipt_signer(&self, fault: Option<Fault>) -> Signer {
        let ca = &self.0.receipt_ca;
        let signs_receipts = fault != Some(Fault::ReceiptSigner);
        let common_name = match signs_receipts {
            true => "Application Attestation Fraud Receipt Signing",
            false => "Something Else Signing",
        };
        let mut extensions = end_entity(7, 0x80);
        extensions.push(authority_key_identifier(&ca.key));
        if signs_receipts {
            extensions.push(apple_extension([12, 15], &der::NULL));
        }
        let serial = serial(&self.0.receipt_key);
        let mut certificate = ca.issue(
            Hash::Sha256,
            &Draft {
                serial: &serial,
                subject: &name(&[(3, common_name), INC, COUNTRY]),
                public_key: &self.0.receipt_key,
                validity: VALIDITY,
                extensions: &extensions,
            },
        );
        if fault == Some(Fault::ReceiptChain) {
            spoil_signature(&mut certificate);
        }
        let certificates = [certificate, self.0.receipt_ca_certificate.clone(), self.0.receipt_root.clone()];
        Signer { key: self.0.receipt_key.clone(), certificates, issuer: ca.name.clone(), serial }
    }
}

impl Issuer {
    /// Signs the certificate of another authority, or of this one.
    fn certify(&self, other: &Self, path_length: Option<u32>) -> Vec<u8> {
        let above = (self.name != other.name).then_some(&self.key);
        let draft = Draft {
            serial: &serial(&other.key),
            subject: &other.name,
            public_key: &other.key,
            validity: VALIDITY,
            extensions: &authority(&other.key, above, path_length),
        };
        self.issue(Hash::Sha384, &draft)
    }
}

impl Default for FakeAttestCa {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FakeAttestCa {
    // Omits the keys. Throw-away keys are not secret, but tests set an example.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeAttestCa").finish_non_exhaustive()
    }
}

/// Fifteen bytes that differ from key to key.
fn serial(key: &Key) -> Vec<u8> {
    Sha256::digest(key.point()).into_iter().take(15).collect()
}

fn digest(receipt: &[u8]) -> [u8; 32] {
    Sha256::digest(receipt).into()
}
