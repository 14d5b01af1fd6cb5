//! App Attest: the objects that Apple devices make and Apple signs, verified here (feature `app-attest`).
//!
//! A device makes a key and has Apple attest it: an [`Attestation`]. With the key, it signs what it sends: an
//! [`Assertion`]. A [`Receipt`] comes with the attestation; a server can ask Apple for newer ones, which hold a risk
//! metric. Nothing here asks Apple, keeps a state or reads a clock.
//!
//! ```no_run
//! # #[cfg(all(feature = "app-attest", any(feature = "aws-lc-rs", feature = "rust-crypto")))]
//! # fn verify(attested: &[u8], asserted: &[u8], key_id: &str, challenge: &[u8], request: &[u8])
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::SystemTime;
//!
//! use sha2::{Digest, Sha256};
//! use tower_devicecheck::Environment;
//! use tower_devicecheck::app_attest::{
//!     Anchors, AppId, Assertion, AssertionExpected, Attestation, AttestationExpected, KeyId,
//! };
//!
//! let app_ids: [AppId; 1] = ["TEAM123456.com.example.app".parse()?];
//! let key_id: KeyId = key_id.parse()?;
//!
//! // Once for each key, with a challenge that this server made:
//! let expected = AttestationExpected {
//!     key_id: &key_id,
//!     client_data_hash: &Sha256::digest(challenge),
//!     app_ids: &app_ids,
//!     environments: &[Environment::Production],
//!     now: SystemTime::now(),
//!     max_age: Some(AttestationExpected::MAX_AGE),
//! };
//! let attestation = Attestation::verify(attested, &expected, &Anchors::apple())?;
//! // … store the key with its id, app, environment and a counter of 0.
//!
//! // With each request:
//! let expected = AssertionExpected {
//!     public_key: attestation.public_key(),
//!     client_data_hash: &Sha256::digest(request),
//!     app_id: attestation.app_id(),
//! };
//! let assertion = Assertion::verify(asserted, &expected)?;
//! // … admit it only if `assertion.counter()` is greater than the stored one, and store it in the same step.
//! # let _ = assertion.counter();
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! Attestations and receipts have at most 16 KiB, assertions at most 4 KiB. Verification allocates a few times the
//! object's length, never blocks, and never panics.

mod anchors;
mod answer;
mod app_id;
mod assertion;
mod attest_endpoint;
mod attestation;
mod attested_device;
mod auth_data;
mod ber;
mod bundle_version;
mod category;
mod cbor;
mod certificate;
mod chain;
mod challenge;
mod challenge_endpoint;
mod client_data;
mod content_digest;
mod date;
mod der;
mod error;
mod extensions;
mod freshness;
mod key_id;
mod keys;
mod leaf;
mod policy;
mod proof;
mod public_key;
mod receipt;
mod receipt_fields;
mod roots;
mod signature;
mod signed_data;
mod submission;

pub use self::anchors::Anchors;
pub use self::app_id::AppId;
pub use self::assertion::{Assertion, AssertionExpected};
pub use self::attest_endpoint::AttestEndpoint;
pub use self::attestation::{Attestation, AttestationExpected};
pub use self::attested_device::AttestedDevice;
pub use self::bundle_version::BundleVersion;
pub use self::category::Category;
pub use self::challenge::{ChallengeError, ChallengeKey, ChallengePurpose, Challenges};
pub use self::challenge_endpoint::ChallengeEndpoint;
pub use self::client_data::{ClientData, ClientFacts};
pub use self::error::{ObjectError, ObjectErrorKind};
pub use self::freshness::Freshness;
pub use self::key_id::KeyId;
pub use self::keys::attested_key::{AttestedKey, KeyRevocation};
pub use self::keys::counter::{CounterRule, KeyCounter};
pub use self::keys::memory::MemoryAttestKeyStore;
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::keys::redis::RedisAttestKeyStore;
pub use self::keys::store::{AttestKeyStore, AttestKeyStoreError, Insertion};
pub use self::policy::AttestPolicy;
pub use self::proof::AppAttestProof;
pub use self::public_key::PublicKey;
pub use self::receipt::{Receipt, ReceiptExpected, ReceiptKind};

#[cfg(test)]
mod tests;
