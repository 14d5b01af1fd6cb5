//! A device without a device: its key, and the objects that it sends.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256, Sha512};

use crate::gate::routing::Environment;
use crate::runtime::{SystemTime, since_epoch};
use crate::testing::app_attest::ca::FakeAttestCa;
use crate::testing::app_attest::certificate::{
    Draft, apple_extension, attestation_key_usage, end_entity, name, spoil_signature,
};
use crate::testing::app_attest::fault::Fault;
use crate::testing::app_attest::key::{Hash, Key};
use crate::testing::app_attest::receipt::{Facts, Kind, ReceiptEncoding};
use crate::testing::app_attest::{cbor, der, shape::Shape};

const DAY: Duration = Duration::from_secs(86_400);
/// A leaf certificate is valid for this long, from a day before the attestation.
const LEAF_LIFETIME: Duration = Duration::from_secs(3 * 86_400);
const SIX_MINUTES: Duration = Duration::from_secs(360);
const ANOTHER_APP_ID: &str = "ZYXWVUTSRQ.com.example.another";

/// A virtual device with one App Attest key. It makes what a real device and Apple would make together.
///
/// [`FakeAttestCa::device`] makes one. Clones are the same device: they have the same key, and one counter. The methods
/// `with_*` give a device that makes other objects.
///
/// See the [module docs](crate::testing::app_attest) for an example.
#[derive(Clone)]
pub struct VirtualDevice {
    ca: FakeAttestCa,
    key: Key,
    /// The key of nobody, for faults.
    stranger: Key,
    counter: Arc<AtomicU32>,
    app_id: String,
    environment: Environment,
    shape: Shape,
    flags: u8,
    os_version: String,
    category: u32,
    bundle_version: Option<String>,
    category_first: bool,
    receipts: Option<ReceiptEncoding>,
    fault: Option<Fault>,
}

impl FakeAttestCa {
    /// Makes a device with a new key, on which the app `app_id` runs: a team id, a dot and a bundle id.
    ///
    /// # Panics
    ///
    /// Panics if the operating system gives no random bytes.
    #[must_use]
    pub fn device(&self, app_id: &str, shape: Shape, environment: Environment) -> VirtualDevice {
        VirtualDevice::new(self.clone(), app_id, shape, environment)
    }
}

impl VirtualDevice {
    pub(super) fn new(ca: FakeAttestCa, app_id: &str, shape: Shape, environment: Environment) -> Self {
        Self {
            ca,
            key: Key::p256(),
            stranger: Key::p256(),
            counter: Arc::default(),
            app_id: app_id.to_owned(),
            environment,
            shape,
            flags: shape.flags(),
            os_version: shape.os_version().to_owned(),
            category: match environment {
                Environment::Production => 4,
                Environment::Development => 3,
            },
            // Only programs without a bundle, which have no such version, were seen on Macs.
            bundle_version: (shape != Shape::MacOs27).then(|| "1".to_owned()),
            category_first: false,
            receipts: Some(ReceiptEncoding::default()),
            fault: None,
        }
    }

    /// Sends this category in the map of iOS 27. The default is 4 (App Store) in production, and 3 (development) in
    /// development. Real devices can combine any category with any environment.
    #[must_use]
    pub fn with_category(mut self, category: u32) -> Self {
        self.category = category;
        self
    }

    /// Sends this bundle version in the map of iOS 27, or none. The default is `1`, and none on a Mac.
    #[must_use]
    pub fn with_bundle_version(mut self, version: Option<&str>) -> Self {
        self.bundle_version = version.map(str::to_owned);
        self
    }

    /// Sends the category before the bundle version. By default the bundle version is first. Real devices do both.
    #[must_use]
    pub fn with_category_first(mut self) -> Self {
        self.category_first = true;
        self
    }

    /// Sends these flags in the authenticator data. Real devices were seen to send 0x40 and 0xc0, with and without a map.
    #[must_use]
    pub fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// Has this version of the system in the certificate.
    #[must_use]
    pub fn with_os_version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.os_version);
        self
    }

    /// Has receipts of this encoding in its attestations, or none.
    #[must_use]
    pub fn with_receipts(mut self, encoding: Option<ReceiptEncoding>) -> Self {
        self.receipts = encoding;
        self
    }

    /// Makes objects with this fault.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Reinstalls the app: the result is the same device with a new key, and a counter of zero.
    ///
    /// # Panics
    ///
    /// Panics if the operating system gives no random bytes.
    #[must_use]
    pub fn reinstalled(&self) -> Self {
        Self { key: Key::p256(), counter: Arc::default(), ..self.clone() }
    }

    /// The key id as the app sends it: 44 characters of standard base64.
    #[must_use]
    pub fn key_id(&self) -> String {
        STANDARD.encode(key_id(&self.key))
    }

    /// The public key, as an uncompressed point.
    #[must_use]
    pub fn public_key(&self) -> [u8; 65] {
        let mut point = [0; 65];
        point.iter_mut().zip(self.key.point()).for_each(|(to, from)| *to = from);
        point
    }

    /// The App ID of the app.
    #[must_use]
    pub fn app_id(&self) -> &str {
        &self.app_id
    }

    /// The counter of the last assertion, or zero before the first one.
    #[must_use]
    pub fn counter(&self) -> u32 {
        self.counter.load(Relaxed)
    }

    /// Sets the counter of the last assertion. The next assertion has the number after it. A lower number repeats
    /// counters, a higher one skips some.
    pub fn set_counter(&self, counter: u32) {
        self.counter.store(counter, Relaxed);
    }

    /// Makes an attestation object for `client_data_hash`, any bytes, at the time `at`.
    ///
    /// The leaf certificate is valid from 24 hours before `at` until 48 hours after it. Times before 1970 count as 1970.
    /// The same arguments give the same bytes.
    #[must_use]
    pub fn attest(&self, client_data_hash: &[u8], at: SystemTime) -> Vec<u8> {
        let auth_data = self.attestation_data();
        let leaf = self.leaf(&self.key, client_data_hash, at);
        let mut x5c = vec![cbor::bytes(&leaf), cbor::bytes(self.ca.attestation_ca_certificate())];
        if self.has(Fault::LeafAlone) {
            x5c.truncate(1);
        }
        let mut statement = vec![("x5c", cbor::array(&x5c))];
        if let Some(receipt) = self.receipt_about(leaf, client_data_hash, at) {
            statement.push(("receipt", cbor::bytes(&receipt)));
        }
        let format = if self.has(Fault::Format) { "packed" } else { "apple-appattest" };
        self.object(vec![
            ("fmt", cbor::text(format)),
            ("attStmt", cbor::map(&statement)),
            ("authData", cbor::bytes(&auth_data)),
        ])
    }

    /// Makes an assertion object for `client_data_hash`, any bytes. This increments the counter, which wraps around at
    /// its end.
    #[must_use]
    pub fn assert(&self, client_data_hash: &[u8]) -> Vec<u8> {
        let counter = self.counter.fetch_add(1, Relaxed).wrapping_add(1);
        let auth_data = self.with_map(self.beginning(counter));
        // The nonce is the message, which ECDSA hashes once more.
        let nonce = Sha256::digest([&auth_data, client_data_hash].concat());
        let signer = if self.has(Fault::Signature) { &self.stranger } else { &self.key };
        let signature = signer.sign(Hash::Sha256, &nonce);
        self.object(vec![
            ("signature", cbor::bytes(&signature)),
            ("authenticatorData", cbor::bytes(&auth_data)),
        ])
    }

    /// Makes the receipt that an [attestation](Self::attest) with the same arguments contains. [`FakeAttestCa::refreshed`]
    /// exchanges it. A device [without receipts](Self::with_receipts) gives `None`.
    #[must_use]
    pub fn receipt(&self, client_data_hash: &[u8], at: SystemTime) -> Option<Vec<u8>> {
        self.receipt_about(self.leaf(&self.key, client_data_hash, at), client_data_hash, at)
    }

    fn receipt_about(&self, mut leaf: Vec<u8>, client_data_hash: &[u8], at: SystemTime) -> Option<Vec<u8>> {
        let encoding = self.receipts?;
        let app_id = if self.has(Fault::ReceiptAppId) { ANOTHER_APP_ID } else { &self.app_id };
        if self.has(Fault::ReceiptKey) {
            leaf = self.leaf(&self.stranger, client_data_hash, at);
        }
        let mut client_data_hash = client_data_hash.to_vec();
        if self.has(Fault::ReceiptHash) {
            client_data_hash.push(0);
        }
        let token = STANDARD.encode(Sha512::digest(&leaf));
        let facts = Facts {
            app_id: app_id.to_owned(),
            leaf,
            client_data_hash,
            token,
            environment: self.environment,
            encoding,
            fault: self.fault,
        };
        let late = if self.has(Fault::ReceiptAge) { SIX_MINUTES } else { Duration::ZERO };
        Some(self.ca.sign_receipt(facts, Kind::Attest, since_epoch(at).saturating_sub(late)))
    }

    /// The leaf certificate for `key`, which Apple makes for this attestation alone.
    fn leaf(&self, key: &Key, client_data_hash: &[u8], at: SystemTime) -> Vec<u8> {
        let at = since_epoch(at);
        let not_before = at.saturating_sub(DAY);
        let subject: String = key_id(key).iter().map(|byte| format!("{byte:02x}")).collect();
        let subject =
            name(&[(3, &subject), (11, "AAA Certification"), (10, "Apple Inc."), (8, "California")]);
        let milliseconds = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        let draft = Draft {
            serial: &milliseconds.to_be_bytes(),
            subject: &subject,
            public_key: key,
            validity: [not_before, not_before + LEAF_LIFETIME],
            extensions: &self.leaf_extensions(client_data_hash),
        };
        let mut leaf = self.ca.attestation_ca().issue(Hash::Sha256, &draft);
        if self.has(Fault::LeafSignature) {
            spoil_signature(&mut leaf);
        }
        leaf
    }

    fn leaf_extensions(&self, client_data_hash: &[u8]) -> Vec<Vec<u8>> {
        let mut extensions = end_entity(4, 0xf0);
        if self.shape.is_recent() {
            extensions.push(attestation_key_usage());
        }
        extensions.push(self.shape.key_facts(&self.app_id));
        if self.shape.is_recent() {
            extensions.push(self.shape.access_control(self.has(Fault::AccessControl)));
        }
        extensions.push(self.shape.system_facts(&self.os_version));
        let mut nonce = Sha256::new_with_prefix(self.attestation_data());
        nonce.update(client_data_hash);
        if self.has(Fault::Nonce) {
            nonce.update([0]);
        }
        let nonce = der::sequence(&[&der::context(1, &der::octets(&nonce.finalize()))]);
        let times = match self.fault {
            Some(Fault::NonceMissing) => 0,
            Some(Fault::NonceTwice) => 2,
            _ => 1,
        };
        extensions.extend(std::iter::repeat_n(apple_extension([8, 2], &nonce), times));
        extensions
    }

    /// The authenticator data of an attestation.
    fn attestation_data(&self) -> Vec<u8> {
        let mut data = self.beginning(u32::from(self.has(Fault::Counter)));
        data.extend(match (self.fault, self.environment) {
            (Some(Fault::Aaguid), _) => b"appattestsandbox",
            (_, Environment::Production) => b"appattest\0\0\0\0\0\0\0",
            (_, Environment::Development) => b"appattestdevelop",
        });
        data.extend([0, 32]);
        data.extend(key_id(if self.has(Fault::CredentialId) { &self.stranger } else { &self.key }));
        let key = if self.has(Fault::CoseKey) { &self.stranger } else { &self.key };
        data.extend(cose_key(&key.point()));
        self.with_map(data)
    }

    /// The first 37 bytes of any authenticator data.
    fn beginning(&self, counter: u32) -> Vec<u8> {
        let app_id = if self.has(Fault::RpIdHash) { ANOTHER_APP_ID } else { &self.app_id };
        let rp_id_hash: [u8; 32] = Sha256::digest(app_id).into();
        [&rp_id_hash[..], &[self.flags], &counter.to_be_bytes()].concat()
    }

    /// Adds the map of iOS 27, if the device sends one.
    fn with_map(&self, mut data: Vec<u8>) -> Vec<u8> {
        if self.shape.has_map() {
            data.extend(cbor::map(&self.map_entries()));
        }
        match self.fault {
            Some(Fault::TrailingAuthData) => data.push(0),
            Some(Fault::ShortAuthData) => data.truncate(data.len() - 1),
            _ => {}
        }
        data
    }

    fn map_entries(&self) -> Vec<(&'static str, Vec<u8>)> {
        let category = ("apple_validation_category_01", cbor::bytes(&self.category.to_le_bytes()));
        let version = self.bundle_version.iter();
        let mut entries: Vec<_> =
            version.map(|version| ("apple_bundle_version_01", cbor::text(version))).collect();
        entries.insert(if self.category_first { 0 } else { entries.len() }, category.clone());
        if self.shape == Shape::MacOs27 {
            let code_directory = Sha256::digest(&self.app_id);
            entries.push(("apple_cd_hash_hash_01", cbor::bytes(&code_directory)));
            entries.push(("apple_cd_hash_type_01", cbor::bytes(&[2])));
        }
        match self.fault {
            Some(Fault::DuplicateCategory) => entries.push(category),
            Some(Fault::SecondCategory) => {
                let another = self.category.wrapping_add(1).to_le_bytes();
                entries.push(("validationCategory", cbor::bytes(&another)));
            }
            _ => {}
        }
        entries
    }

    /// The outermost map of an object.
    fn object(&self, mut entries: Vec<(&str, Vec<u8>)>) -> Vec<u8> {
        if self.has(Fault::DuplicateKey) {
            entries.extend(entries.last().cloned());
        }
        let mut object = cbor::map(&entries);
        if self.has(Fault::TrailingByte) {
            object.push(0);
        }
        object
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

impl fmt::Debug for VirtualDevice {
    // Omits the private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualDevice")
            .field("key_id", &self.key_id())
            .field("app_id", &self.app_id)
            .field("environment", &self.environment)
            .field("shape", &self.shape)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

fn key_id(key: &Key) -> [u8; 32] {
    Sha256::digest(key.point()).into()
}

/// A COSE key: its type (elliptic curve), algorithm (ES256), curve (P-256) and coordinates. CBOR's negative numbers are
/// written as fixed bytes, because nothing else needs them.
fn cose_key(point: &[u8]) -> Vec<u8> {
    let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len() / 2);
    let begin = [0xa5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21];
    [&begin[..], &cbor::bytes(x), &[0x22], &cbor::bytes(y)].concat()
}
