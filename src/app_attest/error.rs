//! The error of an object that does not verify.

use std::borrow::Cow;

use crate::gate::error::impl_error;

/// The error of an attestation, an assertion, a receipt or one of their parts that is not as expected.
///
/// [`step`](Self::step) names the check that failed, and the text says more to the operator. Neither is for the client:
/// the difference between two refusals helps only somebody who forges. Neither holds bytes of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectError {
    kind: ObjectErrorKind,
    step: &'static str,
    reason: Cow<'static, str>,
}

/// The class of an [`ObjectError`]: what it means for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ObjectErrorKind {
    /// The bytes are not an object of this kind.
    Malformed,
    /// The object does not prove what it should. A fresh attempt, with a new key, may succeed.
    Refused,
    /// The object is genuine, and its own words rule it out. A new attempt does not help.
    Denied,
}

impl ObjectError {
    pub(super) fn malformed(step: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: ObjectErrorKind::Malformed, step, reason: reason.into() }
    }

    pub(super) fn refused(step: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: ObjectErrorKind::Refused, step, reason: reason.into() }
    }

    pub(super) fn denied(step: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: ObjectErrorKind::Denied, step, reason: reason.into() }
    }

    /// The class of this error.
    #[must_use]
    pub const fn kind(&self) -> ObjectErrorKind {
        self.kind
    }

    /// The check that failed, as one stable word for logs and metrics.
    ///
    /// | step | fault |
    /// |---|---|
    /// | `size` | longer than any object of Apple |
    /// | `cbor` | not the CBOR of such an object |
    /// | `format` | an attestation whose `fmt` is not `apple-appattest` |
    /// | `certificates` | not two to four certificates, or one that cannot be read |
    /// | `auth_data` | the authenticator data is cut off, or has another shape |
    /// | `chain` | the certificates do not lead to the anchor |
    /// | `time` | they do, but one is not valid at this time. Look at the server's clock first |
    /// | `age` | the attestation is older than the caller admits |
    /// | `nonce` | made for other client data, or changed since |
    /// | `key_id` | the attested key has another id; also a text that is not a key id |
    /// | `rp_id` | made by another app |
    /// | `counter` | an attestation whose counter is not 0 |
    /// | `environment` | of an environment that the caller does not admit, or of none |
    /// | `credential_id` | the authenticator data names another key id |
    /// | `public_key` | the authenticator data holds another key; also bytes that are not a key |
    /// | `extensions` | the map behind the authenticator data has another shape, or contradicts itself |
    /// | `category` | a validation category that Apple calls invalid, or that is not known |
    /// | `access_list` | a Mac without full security |
    /// | `signature` | an assertion that another key signed, or for other client data |
    /// | `receipt_format` | not the CMS or the fields of a receipt |
    /// | `receipt_signature` | another signer, or changed since |
    /// | `receipt_chain`, `receipt_time` | as `chain` and `time`, of the receipt's signer |
    /// | `receipt_app_id`, `receipt_key`, `receipt_client_data_hash`, `receipt_age` | a receipt for something else |
    /// | `receipt_kind` | in place of a newer receipt, one of the kind inside attestations |
    /// | `app_id`, `bundle_version`, `anchor` | a setting that cannot be used |
    #[must_use]
    pub const fn step(&self) -> &'static str {
        self.step
    }

    /// A sentence about the fault, for operators.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl_error!(ObjectError, |error| None, "{}: {}", error.step, error.reason);
