//! Receipts.

use std::{fmt, time::Duration};

use web_time::UNIX_EPOCH;

use crate::app_attest::anchors::Anchors;
use crate::app_attest::app_id::AppId;
use crate::app_attest::certificate::Certificate;
use crate::app_attest::chain::{self, Steps};
use crate::app_attest::error::ObjectError;
use crate::app_attest::public_key::PublicKey;
use crate::app_attest::receipt_fields::{self as field, ReceiptFields};
use crate::app_attest::signature::has_signed;
use crate::app_attest::signed_data::SignedData;
use crate::runtime::{SystemTime, since_epoch};

const LONGEST: usize = 16 * 1024;
const STEPS: Steps = Steps { chain: "receipt_chain", time: "receipt_time" };
/// `1.2.840.113635.100.12.15`: marks the certificate of a signer of receipts (observed on real objects). Without it,
/// every certificate under Apple's root could sign one.
const SIGNER: &[u8] = b"\x2a\x86\x48\x86\xf7\x63\x64\x0c\x0f";
/// The age of a receipt that Apple's text admits at the attestation.
const OLDEST: Duration = Duration::from_secs(5 * 60);

/// A receipt that Apple has signed: it buys the risk metric of a device from Apple.
///
/// An attestation comes with the first receipt. A server exchanges it at Apple for a newer one, which holds the metric.
#[derive(Clone)]
pub struct Receipt {
    bytes: Box<[u8]>,
    kind: ReceiptKind,
    app_id: Box<str>,
    public_key: PublicKey,
    client_data_hash: Option<Box<[u8]>>,
    environment: Option<Box<str>>,
    risk_metric: Option<u32>,
    creation: Duration,
    not_before: Option<Duration>,
    expiry: Option<Duration>,
}

/// The kind of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReceiptKind {
    /// `ATTEST`: the first one, inside an attestation. It holds no metric.
    Attest,
    /// `RECEIPT`: a later one, from Apple's server.
    Receipt,
}

/// The facts that a receipt must match.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a caller must think of each fact")]
pub struct ReceiptExpected<'a> {
    /// The app that is stored with the key.
    pub app_id: &'a AppId,
    /// The key that is stored. `None` admits a receipt for any key of the app.
    pub public_key: Option<&'a PublicKey>,
    /// The time at which the signer's certificate must be valid. These certificates live for about 13 months, so verify
    /// a receipt when it comes.
    pub now: SystemTime,
}

/// The facts about an attestation that the receipt inside must match.
pub(super) struct Enclosing<'a> {
    pub(super) app_id: &'a AppId,
    pub(super) public_key: &'a PublicKey,
    pub(super) client_data_hash: &'a [u8],
    pub(super) attested_at: Duration,
}

impl Receipt {
    /// Verifies a receipt: CMS, at most 16 KiB, as it is in an attestation, or in the base64 of Apple's answer.
    ///
    /// Costs three verifications, about 0.3 ms with aws-lc and 1.4 ms in pure Rust.
    ///
    /// Source: Apple, "Assessing fraud risk". The root certificate inside is ignored.
    ///
    /// # Errors
    ///
    /// The first check that fails, in this order: `size`, `receipt_format`, `receipt_signature`, `receipt_chain`,
    /// `receipt_time`, `receipt_app_id`, `receipt_key`.
    pub fn verify(
        bytes: &[u8],
        expected: &ReceiptExpected<'_>,
        anchors: &Anchors,
    ) -> Result<Self, ObjectError> {
        let receipt = Self::signed(bytes, Some(since_epoch(expected.now)), anchors)?;
        receipt.check(expected.app_id, expected.public_key)?;
        Ok(receipt)
    }

    /// Verifies the receipt inside an attestation. It is judged at the time of its creation: the attestation's own
    /// certificate bounds the time of the whole.
    pub(super) fn inside(
        bytes: &[u8],
        around: &Enclosing<'_>,
        anchors: &Anchors,
    ) -> Result<Self, ObjectError> {
        let receipt = Self::signed(bytes, None, anchors)?;
        receipt.check(around.app_id, Some(around.public_key))?;
        // Apple's server mangled the hash in some later receipts (observed on real objects of 2020 and 2021).
        if receipt.kind == ReceiptKind::Attest
            && receipt.client_data_hash.as_deref() != Some(around.client_data_hash)
        {
            return Err(ObjectError::refused("receipt_client_data_hash", "made for other client data"));
        }
        if receipt.creation + OLDEST < around.attested_at {
            return Err(ObjectError::refused(
                "receipt_age",
                "more than 5 minutes older than the attestation",
            ));
        }
        Ok(receipt)
    }

    /// Checks the signature and the chain, at this time or at that of the receipt's creation.
    fn signed(bytes: &[u8], at: Option<Duration>, anchors: &Anchors) -> Result<Self, ObjectError> {
        if bytes.len() > LONGEST {
            return Err(ObjectError::malformed("size", "a receipt longer than 16 KiB"));
        }
        let envelope = SignedData::parse(bytes)
            .ok_or_else(|| ObjectError::malformed("receipt_format", "not CMS as Apple signs receipts"))?;
        let fault = || ObjectError::refused("receipt_signature", "not signed as Apple signs receipts");
        let signer =
            envelope.certificates.first().and_then(|der| Certificate::parse(der)).ok_or_else(fault)?;
        let key = signer.public_key().ok_or_else(fault)?;
        if !matches!(signer.extension(SIGNER), Ok(Some(_)))
            || !has_signed(&key, &envelope.content, envelope.signature)
        {
            return Err(fault());
        }
        let receipt = Self::read(bytes, &envelope.content).ok_or_else(|| {
            ObjectError::malformed("receipt_format", "a field is missing, or cannot be read")
        })?;
        chain::verify(&envelope.certificates, &anchors.receipts, at.unwrap_or(receipt.creation), STEPS)?;
        Ok(receipt)
    }

    fn read(bytes: &[u8], content: &[u8]) -> Option<Self> {
        let fields = ReceiptFields::parse(content)?;
        Some(Self {
            bytes: bytes.into(),
            kind: match fields.bytes(field::KIND)? {
                b"ATTEST" => ReceiptKind::Attest,
                b"RECEIPT" => ReceiptKind::Receipt,
                _ => return None,
            },
            app_id: fields.text(field::APP_ID)?.into(),
            public_key: Certificate::parse(fields.bytes(field::LEAF)?)?.public_key()?,
            client_data_hash: fields.bytes(field::CLIENT_DATA_HASH).map(Into::into),
            environment: fields.text(field::ENVIRONMENT).map(Into::into),
            risk_metric: match fields.bytes(field::RISK_METRIC) {
                Some(_) => Some(fields.text(field::RISK_METRIC)?.parse().ok()?),
                None => None,
            },
            creation: fields.date(field::CREATION).ok()??,
            not_before: fields.date(field::NOT_BEFORE).ok()?,
            expiry: fields.date(field::EXPIRY).ok()?,
        })
    }

    fn check(&self, app_id: &AppId, public_key: Option<&PublicKey>) -> Result<(), ObjectError> {
        if *self.app_id != *app_id.as_str() {
            return Err(ObjectError::refused("receipt_app_id", "made for another app"));
        }
        if public_key.is_some_and(|key| *key != self.public_key) {
            return Err(ObjectError::refused("receipt_key", "made for another key"));
        }
        Ok(())
    }

    /// The bytes that were verified, to be stored and to be sent to Apple for a newer receipt.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> ReceiptKind {
        self.kind
    }

    /// The App ID.
    #[must_use]
    pub const fn app_id(&self) -> &str {
        &self.app_id
    }

    /// The attested key.
    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The environment as Apple spells it here: `production` or `sandbox`. Apple does not document this field.
    #[must_use]
    pub fn environment(&self) -> Option<&str> {
        self.environment.as_deref()
    }

    /// The risk metric: how many keys this device has attested in about 30 days. Only a later receipt holds it.
    ///
    /// A high metric is a reason to look, not to block: somebody who installs an app again and again reaches it, too.
    #[must_use]
    pub const fn risk_metric(&self) -> Option<u32> {
        self.risk_metric
    }

    /// The time at which Apple made the receipt.
    #[must_use]
    pub fn creation(&self) -> SystemTime {
        UNIX_EPOCH + self.creation
    }

    /// The time from which Apple gives a newer receipt. Only a later receipt holds it.
    #[must_use]
    pub fn not_before(&self) -> Option<SystemTime> {
        self.not_before.map(|time| UNIX_EPOCH + time)
    }

    /// The time until which Apple takes this receipt, 90 days after its creation. Nobody checks this here.
    #[must_use]
    pub fn expiry(&self) -> Option<SystemTime> {
        self.expiry.map(|time| UNIX_EPOCH + time)
    }
}

impl ReceiptKind {
    /// Apple's word: `ATTEST` or `RECEIPT`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attest => "ATTEST",
            Self::Receipt => "RECEIPT",
        }
    }
}

impl fmt::Debug for Receipt {
    /// Leaves out the bytes, which buy the metric of a device for everybody who may ask Apple for this team.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("kind", &self.kind)
            .field("app_id", &self.app_id)
            .field("public_key", &self.public_key)
            .field("environment", &self.environment)
            .field("risk_metric", &self.risk_metric)
            .field("creation", &self.creation)
            .finish_non_exhaustive()
    }
}
