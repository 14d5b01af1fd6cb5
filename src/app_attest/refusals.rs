//! The rejections of the endpoint and of the proof.

use crate::app_attest::error::{ObjectError, ObjectErrorKind};
use crate::app_attest::keys::store::AttestKeyStoreError;
use crate::gate::decision::Rejected;
use crate::gate::error::VerifyError;
use crate::gate::rejection::{MalformedToken, Rejection};

/// The rejection for an object that does not verify. The client learns its class only.
pub(super) fn rejected(error: &ObjectError) -> Rejected {
    let rejection = match error.kind() {
        ObjectErrorKind::Malformed => MalformedToken::Unreadable.into(),
        ObjectErrorKind::Refused => Rejection::RefusedToken,
        ObjectErrorKind::Denied => Rejection::Denied,
    };
    Rejected::from(rejection).with_reason(error.step())
}

pub(super) fn refused(reason: &'static str) -> Rejected {
    Rejected::from(Rejection::RefusedToken).with_reason(reason)
}

pub(super) fn no_answer(error: AttestKeyStoreError) -> Rejected {
    VerifyError::unavailable(error).into()
}
