//! The record of an attested key.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::app_attest::app_id::AppId;
use crate::app_attest::bundle_version::BundleVersion;
use crate::app_attest::category::Category;
use crate::app_attest::key_id::KeyId;
use crate::app_attest::keys::counter::KeyCounter;
use crate::app_attest::public_key::PublicKey;
use crate::gate::routing::Environment;
use crate::runtime::SystemTime;

/// An attested key, as a server keeps it: about 300 bytes.
///
/// [`tenant`](Self::tenant) and [`key_id`](Self::key_id) together are its primary key. The record holds no secret, but
/// the [account](Self::account) may tell who uses the device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttestedKey {
    /// The name of the tenant whose app made the key; empty where there are no [tenants](crate::tenant).
    pub tenant: String,
    /// The id of the key.
    pub key_id: KeyId,
    /// The key, by which assertions are verified.
    pub public_key: PublicKey,
    /// The app that made the key.
    pub app_id: AppId,
    /// The environment of the attestation. Assertions do not say it.
    pub environment: Environment,
    /// The counters that have been admitted.
    pub counter: KeyCounter,
    /// The operator's own name for the account that uses the key, if the server knew it.
    pub account: Option<String>,
    /// The time of the attestation.
    pub attested_at: SystemTime,
    /// The time of the attestation, or of the last assertion that was admitted.
    pub last_seen_at: SystemTime,
    /// The category of the app at the attestation.
    pub category: Option<Category>,
    /// The build of the app at the attestation.
    pub bundle_version: Option<BundleVersion>,
    /// The platform, such as `iphoneos`. Apple does not document it.
    pub platform: Option<String>,
    /// The version of the operating system at the attestation. Apple does not document it.
    pub system_version: Option<String>,
    /// The time of the revocation and its reason, if the key is revoked.
    pub revocation: Option<KeyRevocation>,
}

/// The revocation of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyRevocation {
    /// The time.
    pub at: SystemTime,
    /// The operator's reason, for operators.
    pub reason: String,
}

impl KeyRevocation {
    /// Makes a revocation.
    #[must_use]
    pub fn new(at: SystemTime, reason: &str) -> Self {
        Self { at, reason: reason.to_owned() }
    }
}

impl AttestedKey {
    /// Makes the record of a new key: a counter of 0, last seen at its attestation, and none of what is optional.
    #[must_use]
    pub fn new(
        tenant: &str,
        public_key: PublicKey,
        app_id: AppId,
        environment: Environment,
        attested_at: SystemTime,
    ) -> Self {
        Self {
            tenant: tenant.to_owned(),
            key_id: public_key.key_id(),
            public_key,
            app_id,
            environment,
            counter: KeyCounter::default(),
            account: None,
            attested_at,
            last_seen_at: attested_at,
            category: None,
            bundle_version: None,
            platform: None,
            system_version: None,
            revocation: None,
        }
    }

    /// The pseudonym of the key in [`VerifiedDevice::subject`](crate::VerifiedDevice::subject): 32 lower-case hexadecimal
    /// digits. Keys of different tenants have different ones.
    #[must_use]
    pub fn subject(&self) -> String {
        let hash = Sha256::new().chain_update(&self.tenant).chain_update([0]);
        hex(&hash.chain_update(self.key_id.as_bytes()).finalize()[..16])
    }
}

/// Lower-case hexadecimal digits.
pub(in crate::app_attest) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
