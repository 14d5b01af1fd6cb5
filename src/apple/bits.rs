//! The answer to a query of bits, and the errors of reading and setting them.

use std::sync::Arc;

use crate::gate::bits::{Bits, Month};
use crate::gate::error::{VerifyError, VerifyErrorKind, impl_error};
use crate::gate::observer::CacheError;
use crate::gate::rejection::Rejection;

/// Reads the body of an answer to a query with status 200. Returns `None` if Apple is not known to use its format.
///
/// For bits that were never set, Apple documents the plain text `Bit State Not Found`. Seen in practice: `Failed to find
/// bit state`.
pub(super) fn read_bits(body: &[u8]) -> Option<Bits> {
    let text = std::str::from_utf8(body).ok()?;
    let lower = text.to_ascii_lowercase();
    if lower.contains("bit state not found") || lower.contains("failed to find bit state") {
        return Some(Bits::default());
    }
    let object: serde_json::Value = serde_json::from_str(text).ok()?;
    let last_update = match object.get("last_update_time") {
        None | Some(serde_json::Value::Null) => None,
        Some(month) => Some(Month::read(month.as_str()?)?),
    };
    Some(Bits::new(object.get("bit0")?.as_bool()?, object.get("bit1")?.as_bool()?, last_update))
}

/// An error from reading or setting the bits.
#[derive(Clone, Debug)]
pub struct BitsError {
    reason: Reason,
}

#[derive(Clone, Debug)]
enum Reason {
    RefusedToken { is_likely_expired: bool },
    NoDeviceToken,
    OtherTeam,
    NoAnswer(VerifyError),
    StillRemembered(Arc<CacheError>),
}

/// The kinds of [`BitsError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BitsErrorKind {
    /// Apple refused the device token. Apple also refuses a token that it accepted before, once it has expired.
    RefusedToken,
    /// The device was admitted without a device token, such as by a debug token or a session.
    NoDeviceToken,
    /// Another team admitted the device: see [`has_admitted`](crate::AppleClient::has_admitted). Apple was not asked.
    OtherTeam,
    /// Apple throttles this server (status 429).
    Throttled,
    /// Apple gave no answer, or an unknown one. An update may have taken effect.
    Unavailable,
    /// Apple does not accept the server's credentials or its request.
    Misconfigured,
    /// The bits are set, but the cache of a layer with marks did not forget the old ones: see
    /// [`MarkWriter::update`](crate::MarkWriter::update).
    StillRemembered,
}

impl BitsError {
    pub(super) const NO_DEVICE_TOKEN: Self = Self { reason: Reason::NoDeviceToken };

    pub(super) const OTHER_TEAM: Self = Self { reason: Reason::OtherTeam };

    pub(super) const fn refused_token(is_likely_expired: bool) -> Self {
        Self { reason: Reason::RefusedToken { is_likely_expired } }
    }

    pub(crate) fn still_remembered(error: CacheError) -> Self {
        Self { reason: Reason::StillRemembered(Arc::new(error)) }
    }

    /// Whether Apple refused the token of a device that the layer had admitted on a remembered verdict. Such a token
    /// was genuine and has most likely expired since. The device is not at fault; a new token helps.
    #[must_use]
    pub const fn is_likely_expired(&self) -> bool {
        matches!(self.reason, Reason::RefusedToken { is_likely_expired: true })
    }

    /// The kind of this error.
    #[must_use]
    pub const fn kind(&self) -> BitsErrorKind {
        match &self.reason {
            Reason::RefusedToken { .. } => BitsErrorKind::RefusedToken,
            Reason::NoDeviceToken => BitsErrorKind::NoDeviceToken,
            Reason::OtherTeam => BitsErrorKind::OtherTeam,
            Reason::NoAnswer(error) => match error.kind() {
                VerifyErrorKind::Throttled => BitsErrorKind::Throttled,
                VerifyErrorKind::Unavailable => BitsErrorKind::Unavailable,
                VerifyErrorKind::Misconfigured => BitsErrorKind::Misconfigured,
            },
            Reason::StillRemembered(_) => BitsErrorKind::StillRemembered,
        }
    }

    /// The layer's rejection for this kind of error. For a device without a device token: [`Rejection::MissingToken`].
    /// For a device of another team: [`Rejection::Misconfigured`]. For bits that are set but
    /// [still remembered](BitsErrorKind::StillRemembered): [`Rejection::Unavailable`].
    #[must_use]
    pub fn rejection(&self) -> Rejection {
        match &self.reason {
            Reason::RefusedToken { .. } => Rejection::RefusedToken,
            Reason::NoDeviceToken => Rejection::MissingToken,
            Reason::OtherTeam => Rejection::Misconfigured,
            Reason::NoAnswer(error) => error.into(),
            Reason::StillRemembered(_) => (&VerifyError::unavailable("still remembered")).into(),
        }
    }
}

impl From<VerifyError> for BitsError {
    fn from(error: VerifyError) -> Self {
        Self { reason: Reason::NoAnswer(error) }
    }
}

/// Feature `axum`. Responds with the error's [`rejection`](BitsError::rejection). Unless the token is at fault, this
/// logs the error and its causes as a warning.
#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for BitsError {
    fn into_response(self) -> axum_core::response::Response {
        if matches!(self.reason, Reason::NoAnswer(_) | Reason::StillRemembered(_) | Reason::OtherTeam) {
            crate::gate::extract::warn(&self);
        }
        self.rejection().into_response()
    }
}

impl_error!(
    BitsError,
    |error| match &error.reason {
        Reason::NoAnswer(error) => error.source(),
        Reason::StillRemembered(error) => Some(&**error),
        _ => None,
    },
    "{}",
    match error.kind() {
        BitsErrorKind::RefusedToken if error.is_likely_expired() => {
            "Apple refused the device token, which has most likely expired since it was checked"
        }
        BitsErrorKind::RefusedToken => "Apple refused the device token",
        BitsErrorKind::NoDeviceToken => "the device was admitted without a device token",
        BitsErrorKind::OtherTeam => "another team admitted the device",
        BitsErrorKind::Throttled => "Apple is asked too often",
        BitsErrorKind::Unavailable => "no answer available",
        BitsErrorKind::Misconfigured => "credentials or request not accepted",
        BitsErrorKind::StillRemembered => "the bits are set, but the old ones are still remembered",
    }
);

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn a_bits_query_answered_in_plain_text_means_never_set() {
        let bits = |bit0, bit1, month: Option<&str>| Some(Bits::new(bit0, bit1, month.and_then(Month::read)));
        let never = bits(false, false, None);
        let cases: &[(&str, &str, Option<Bits>)] = &[
            ("as documented", "Bit State Not Found", never),
            ("as seen", "Failed to find bit state", never),
            ("white space and case", "  failed to find BIT state\r\n", never),
            (
                "both set",
                r#"{"bit0":true,"bit1":false,"last_update_time":"2024-02"}"#,
                bits(true, false, Some("2024-02")),
            ),
            (
                "more members",
                r#" {"bit1":true,"bit0":false,"x":[],"last_update_time":"2024-12"}"#,
                bits(false, true, Some("2024-12")),
            ),
            ("no month", r#"{"bit0":true,"bit1":true}"#, bits(true, true, None)),
            ("month null", r#"{"bit0":true,"bit1":true,"last_update_time":null}"#, bits(true, true, None)),
            ("no such month", r#"{"bit0":true,"bit1":true,"last_update_time":"2024-13"}"#, None),
            ("month odd", r#"{"bit0":true,"bit1":true,"last_update_time":"today"}"#, None),
            ("month a number", r#"{"bit0":true,"bit1":true,"last_update_time":202402}"#, None),
            ("a bit missing", r#"{"bit0":true,"last_update_time":"2024-02"}"#, None),
            ("a bit a number", r#"{"bit0":1,"bit1":0,"last_update_time":"2024-02"}"#, None),
            ("empty", "", None),
            ("an array", "[]", None),
            ("a page", "<html>", None),
            ("cut off", r#"{"bit0":true,"#, None),
        ];
        for (name, body, expected) in cases {
            assert_eq!(read_bits(body.as_bytes()), *expected, "{name}");
        }
        assert_eq!(read_bits(b"\xff"), None);
    }

    #[test]
    fn kinds() {
        let cases = [
            (BitsError::refused_token(true), BitsErrorKind::RefusedToken, 401, false),
            (BitsError::NO_DEVICE_TOKEN, BitsErrorKind::NoDeviceToken, 401, false),
            (BitsError::OTHER_TEAM, BitsErrorKind::OtherTeam, 500, false),
            (VerifyError::throttled(None, "x").into(), BitsErrorKind::Throttled, 503, true),
            (VerifyError::unavailable("x").into(), BitsErrorKind::Unavailable, 503, true),
            (VerifyError::misconfigured("x").into(), BitsErrorKind::Misconfigured, 500, true),
            (BitsError::still_remembered(CacheError::new("x")), BitsErrorKind::StillRemembered, 503, true),
        ];
        for (error, kind, status, has_source) in cases {
            assert_eq!(error.kind(), kind);
            assert_eq!(error.rejection().status(), status, "{kind:?}");
            assert_eq!(error.source().is_some(), has_source, "{kind:?}");
        }
    }
}
