//! Attestations.

use std::time::Duration;

use sha2::{Digest, Sha256};
use web_time::UNIX_EPOCH;

use crate::app_attest::anchors::Anchors;
use crate::app_attest::app_id::AppId;
use crate::app_attest::auth_data::{Attested, AuthData};
use crate::app_attest::bundle_version::BundleVersion;
use crate::app_attest::category::Category;
use crate::app_attest::cbor::Item;
use crate::app_attest::chain::{self, Steps};
use crate::app_attest::error::ObjectError;
use crate::app_attest::extensions::Extensions;
use crate::app_attest::key_id::KeyId;
use crate::app_attest::leaf::Leaf;
use crate::app_attest::public_key::PublicKey;
use crate::app_attest::receipt::{Enclosing, Receipt};
use crate::gate::routing::Environment;
use crate::runtime::{SystemTime, since_epoch};

const LONGEST: usize = 16 * 1024;
const FORMAT: &str = "apple-appattest";
const STEPS: Steps = Steps { chain: "chain", time: "time" };

/// An attestation that Apple has signed: this key is in a genuine device, and this app made it.
///
/// Store what it says, not the object: Apple's certificate in it may end after three days (observed on real objects).
/// Later requests show that they have the key with an [`Assertion`](crate::app_attest::Assertion).
#[derive(Clone, Debug)]
pub struct Attestation {
    key_id: KeyId,
    public_key: PublicKey,
    app_id: AppId,
    environment: Environment,
    extensions: Extensions,
    attested_at: Duration,
    platform: Option<Box<str>>,
    system_version: Option<Box<str>>,
    receipt: Option<Receipt>,
}

/// The facts that an attestation must match.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a caller must think of each fact")]
pub struct AttestationExpected<'a> {
    /// The key id that the app sent along.
    pub key_id: &'a KeyId,
    /// The bytes that the app passed to `attestKey` as `clientDataHash`, as the server computes them. They must hold a
    /// challenge that this server made, and that nobody has used.
    pub client_data_hash: &'a [u8],
    /// The apps that are admitted.
    pub app_ids: &'a [AppId],
    /// The environments that are admitted. Usually only [`Environment::Production`].
    pub environments: &'a [Environment],
    /// The time at which the certificates must be valid.
    pub now: SystemTime,
    /// The greatest age of the attestation, by the time at which Apple signed it. `None` leaves that to the certificate,
    /// which ends after 3 days to 12 months (observed on real objects). [`AttestationExpected::MAX_AGE`] is usual.
    pub max_age: Option<Duration>,
}

impl AttestationExpected<'_> {
    /// One hour.
    pub const MAX_AGE: Duration = Duration::from_secs(60 * 60);
}

impl Attestation {
    /// Verifies an attestation: the CBOR that `DCAppAttestService.attestKey` returns, at most 16 KiB. Verifies the
    /// receipt inside as well, if there is one.
    ///
    /// Costs five verifications, about 0.7 ms with aws-lc and 4 ms in pure Rust.
    ///
    /// Source: Apple, "Validating apps that connect to your server".
    ///
    /// # Errors
    ///
    /// The first check that fails, in this order: `size`, `cbor`, `format`, `certificates`, `auth_data`, `chain`,
    /// `time`, `age`, `nonce`, `key_id`, `rp_id`, `counter`, `environment`, `credential_id`, `public_key`, `extensions`,
    /// `category`, `access_list`, and the steps of the receipt.
    pub fn verify(
        object: &[u8],
        expected: &AttestationExpected<'_>,
        anchors: &Anchors,
    ) -> Result<Self, ObjectError> {
        let parts = Parts::parse(object)?;
        let auth_data = AuthData::parse(parts.auth_data)?;
        let attested = Attested::parse(auth_data.rest)?;
        let now = since_epoch(expected.now);

        chain::verify(&parts.certificates, &anchors.attestation, now, STEPS)?;
        let leaf = parts.certificates.first().and_then(|der| Leaf::parse(der));
        let leaf =
            leaf.ok_or_else(|| ObjectError::malformed("certificates", "the first one cannot be read"))?;
        if expected.max_age.is_some_and(|max_age| leaf.attested_at() + max_age < now) {
            return Err(ObjectError::refused("age", "Apple signed it too long ago"));
        }
        let nonce =
            Sha256::new().chain_update(parts.auth_data).chain_update(expected.client_data_hash).finalize();
        leaf.check_nonce(&nonce)?;
        if leaf.public_key.key_id() != *expected.key_id {
            return Err(ObjectError::refused("key_id", "the attested key has another id"));
        }
        let app_id = expected.app_ids.iter().find(|app_id| app_id.rp_id_hash() == auth_data.rp_id_hash);
        let app_id = app_id
            .ok_or_else(|| ObjectError::refused("rp_id", "made by none of the apps that are admitted"))?;
        if auth_data.counter != 0 {
            return Err(ObjectError::refused("counter", "not 0: the key has been used"));
        }
        let environment = admitted(attested.environment()?, expected.environments)?;
        if attested.credential_id != expected.key_id.as_bytes() {
            return Err(ObjectError::refused("credential_id", "the authenticator data names another key id"));
        }
        if attested.public_key != leaf.public_key {
            return Err(ObjectError::refused("public_key", "the authenticator data holds another key"));
        }
        let extensions = Extensions::parse(attested.rest)?;
        leaf.check_access_list(app_id.is_on_mac())?;

        let around = Enclosing {
            app_id,
            public_key: &leaf.public_key,
            client_data_hash: expected.client_data_hash,
            // Should Apple ever move the beginning of its certificates, the present is late enough.
            attested_at: leaf.attested_at().min(now),
        };
        let receipt = parts.receipt.map(|bytes| Receipt::inside(bytes, &around, anchors)).transpose()?;
        Ok(Self {
            key_id: *expected.key_id,
            public_key: leaf.public_key,
            app_id: app_id.clone(),
            environment,
            extensions,
            attested_at: leaf.attested_at(),
            platform: leaf.platform.map(Into::into),
            system_version: leaf.system_version.map(Into::into),
            receipt,
        })
    }

    /// The id of the attested key.
    #[must_use]
    pub const fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// The attested key.
    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The app that made the key: one of those that were expected.
    #[must_use]
    pub const fn app_id(&self) -> &AppId {
        &self.app_id
    }

    /// The environment. Assertions do not say it, so store it with the key.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// The category of the app, if the device says it (iOS 27, macOS 27).
    #[must_use]
    pub const fn category(&self) -> Option<Category> {
        self.extensions.category
    }

    /// The build of the app, if the device says it (iOS 27, macOS 27).
    #[must_use]
    pub const fn bundle_version(&self) -> Option<&BundleVersion> {
        self.extensions.bundle_version.as_ref()
    }

    /// The time at which Apple signed it, in whole seconds: 24 hours after the validity of its certificate begins.
    /// Observed on real objects; Apple does not promise it.
    #[must_use]
    pub fn attested_at(&self) -> SystemTime {
        UNIX_EPOCH + self.attested_at
    }

    /// The platform, such as `iphoneos` or `macosx`. Apple does not document this field.
    #[must_use]
    pub fn platform(&self) -> Option<&str> {
        self.platform.as_deref()
    }

    /// The version of the operating system, such as `27.0.1`. Apple does not document this field.
    #[must_use]
    pub fn system_version(&self) -> Option<&str> {
        self.system_version.as_deref()
    }

    /// The receipt inside, verified.
    #[must_use]
    pub const fn receipt(&self) -> Option<&Receipt> {
        self.receipt.as_ref()
    }
}

/// The parts of the CBOR.
struct Parts<'a> {
    certificates: Vec<&'a [u8]>,
    receipt: Option<&'a [u8]>,
    auth_data: &'a [u8],
}

impl<'a> Parts<'a> {
    fn parse(object: &'a [u8]) -> Result<Self, ObjectError> {
        if object.len() > LONGEST {
            return Err(ObjectError::malformed("size", "longer than 16 KiB"));
        }
        let fault = |reason| ObjectError::malformed("cbor", reason);
        let map = Item::only(object).map_err(fault)?;
        if map.text("fmt") != Some(FORMAT) {
            return Err(ObjectError::malformed("format", "not the format apple-appattest"));
        }
        let auth_data = map.bytes("authData").ok_or_else(|| fault("no authenticator data"))?;
        let statement = map.get(&Item::Text("attStmt")).ok_or_else(|| fault("no statement"))?;
        let receipt = match statement.get(&Item::Text("receipt")) {
            None => None,
            Some(Item::Bytes(receipt)) => Some(*receipt),
            Some(_) => return Err(fault("the receipt is no bytes")),
        };
        let Some(Item::Array(chain)) = statement.get(&Item::Text("x5c")) else {
            return Err(fault("no certificates"));
        };
        // Apple sends two. More of them leave room for another hierarchy.
        if !(2..=4).contains(&chain.len()) {
            return Err(ObjectError::malformed("certificates", "not two to four"));
        }
        let certificate = |item: &Item<'a>| match item {
            Item::Bytes(certificate) => Ok(*certificate),
            _ => Err(fault("a certificate is no bytes")),
        };
        Ok(Self {
            certificates: chain.iter().map(certificate).collect::<Result<_, _>>()?,
            receipt,
            auth_data,
        })
    }
}

fn admitted(environment: Environment, admitted: &[Environment]) -> Result<Environment, ObjectError> {
    if admitted.contains(&environment) {
        return Ok(environment);
    }
    let names: Vec<_> = admitted.iter().map(|environment| environment.as_str()).collect();
    let text = format!("attested for {environment}, and this route admits: {}", names.join(", "));
    Err(ObjectError::refused("environment", text))
}
