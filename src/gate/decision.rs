//! Decisions about requests, and the request extensions that carry them to the inner service.

use std::{any::Any, fmt, sync::Arc};

use bytes::Bytes;
use http::HeaderValue;

use crate::gate::credential::{Candidate, TokenDigest};
use crate::gate::evidence::Evidence;
use crate::gate::{
    error::VerifyError, marks::Marks, rejection::Rejection, routing::Environment, tenant::name::TenantName,
};
use crate::runtime::SystemTime;

/// A request extension for the inner service: the request came from a genuine device.
///
/// A [proof](crate::Proof) makes a verified device with [`Facts::verified`](crate::Facts::verified). The gate inserts
/// it into the request, and removes any that is already there. Cloning is cheap.
///
/// # With axum
///
/// With the feature `axum` (`cargo add tower-devicecheck --features axum`), handlers can take a `VerifiedDevice` or an
/// `Option<VerifiedDevice>` as an argument. Without the feature, the compiler only says that the trait bound
/// `Handler<_, _>` is not satisfied; axum's `#[debug_handler]` names the argument. `Extension<VerifiedDevice>` works
/// without the feature.
#[derive(Clone, Debug)]
pub struct VerifiedDevice {
    environment: Environment,
    evidence: Evidence,
    digest: TokenDigest,
    verified_at: SystemTime,
    keepsake: Keepsake,
    subject: Option<Subject>,
    tenant: Option<TenantName>,
    marks: Option<Marks>,
}

#[derive(Clone)]
enum Subject {
    Text(Arc<str>),
    /// A subject of 32 hexadecimal digits, which needs no allocation.
    #[cfg(feature = "session")]
    Digits([u8; 32]),
}

impl Subject {
    fn as_str(&self) -> &str {
        match self {
            Self::Text(text) => text,
            #[cfg(feature = "session")]
            Self::Digits(digits) => std::str::from_utf8(digits).unwrap_or_default(),
        }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// The part of a credential that its proof needs later.
#[derive(Clone)]
enum Keepsake {
    Nothing,
    /// A copy of the text that the client sent.
    Text(Bytes),
    Value(Arc<dyn Any + Send + Sync>),
    /// A few bytes, which need no allocation.
    #[cfg(feature = "session")]
    Bytes([u8; 24]),
}

impl fmt::Debug for Keepsake {
    // Omits the value, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl VerifiedDevice {
    pub(crate) const fn new(
        digest: TokenDigest,
        environment: Environment,
        evidence: Evidence,
        verified_at: SystemTime,
    ) -> Self {
        Self {
            environment,
            evidence,
            digest,
            verified_at,
            keepsake: Keepsake::Nothing,
            subject: None,
            tenant: None,
            marks: None,
        }
    }

    pub(crate) fn of_tenant(mut self, tenant: Option<&TenantName>) -> Self {
        self.tenant = tenant.cloned();
        self
    }

    /// Adds a copy of the text that the client sent. The text itself may be a slice of the request's read buffer, and
    /// would keep the whole buffer in memory for as long as a handler keeps the device.
    pub(crate) fn with_text(mut self, text: &Candidate) -> Self {
        self.keepsake = Keepsake::Text(Bytes::copy_from_slice(text.as_bytes()));
        self
    }

    pub(crate) const fn with_marks(mut self, marks: Marks) -> Self {
        self.marks = Some(marks);
        self
    }

    /// Attaches a few bytes that the proof needs later.
    #[cfg(feature = "session")]
    pub(crate) fn with_bytes(mut self, bytes: [u8; 24]) -> Self {
        self.keepsake = Keepsake::Bytes(bytes);
        self
    }

    /// Sets a subject of hexadecimal digits, without an allocation.
    #[cfg(feature = "session")]
    pub(crate) fn with_subject_digits(mut self, digits: [u8; 32]) -> Self {
        self.subject = Some(Subject::Digits(digits));
        self
    }

    /// Sets the environment. Default: the first environment that the route admits.
    #[must_use]
    pub fn with_environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Sets the time of the verification. Default: the time of the request.
    #[must_use]
    pub fn with_verified_at(mut self, verified_at: SystemTime) -> Self {
        self.verified_at = verified_at;
        self
    }

    /// Sets the subject: a stable pseudonym of the device, if the proof has one.
    #[must_use]
    pub fn with_subject(mut self, subject: Arc<str>) -> Self {
        self.subject = Some(Subject::Text(subject));
        self
    }

    /// Attaches a value that the proof needs later. `Debug` does not show the value.
    #[must_use]
    pub fn with_value(mut self, value: Arc<dyn Any + Send + Sync>) -> Self {
        self.keepsake = Keepsake::Value(value);
        self
    }

    /// The environment in which the device was verified. For a device token, its server accepted the token.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// The evidence for the device.
    #[must_use]
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// The SHA-256 of the credential. For a debug token, the SHA-256 of `debug-token:` and its name.
    ///
    /// The digest identifies the token, not the device: the device's next token has another digest.
    #[must_use]
    pub const fn digest(&self) -> TokenDigest {
        self.digest
    }

    /// The start of the check.
    #[must_use]
    pub const fn verified_at(&self) -> SystemTime {
        self.verified_at
    }

    /// The tenant whose gate admitted the request; `None` in a layer without [tenants](crate::tenant). A handler must
    /// take the tenant from here, and never from the request again.
    #[must_use]
    pub const fn tenant(&self) -> Option<&TenantName> {
        self.tenant.as_ref()
    }

    /// The subject: a stable pseudonym of the device or its key. `None` for a device token, which has no subject.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_ref().map(Subject::as_str)
    }

    /// The marks of the device, in a layer [with marks](crate::DeviceCheckLayer::with_marks). `None` for a device
    /// without a device token, such as that of a debug token or a session.
    #[must_use]
    pub const fn marks(&self) -> Option<Marks> {
        self.marks
    }

    /// The value that the proof attached with [`with_value`](Self::with_value), if it is a `T`.
    #[must_use]
    pub fn value<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        match &self.keepsake {
            Keepsake::Value(value) => Arc::clone(value).downcast().ok(),
            _ => None,
        }
    }

    #[cfg(feature = "session")]
    pub(crate) const fn bytes(&self) -> Option<&[u8; 24]> {
        match &self.keepsake {
            Keepsake::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    pub(crate) fn text(&self) -> Option<Candidate> {
        match &self.keepsake {
            Keepsake::Text(text) => HeaderValue::from_maybe_shared(text.clone()).ok().map(Candidate::new),
            _ => None,
        }
    }
}

/// A rejection, with details for observers and logs only.
#[derive(Clone, Debug)]
pub struct Rejected {
    pub(super) rejection: Rejection,
    pub(super) environment: Option<Environment>,
    pub(super) digest: Option<TokenDigest>,
    pub(super) error: Option<VerifyError>,
    pub(super) reason: Option<&'static str>,
    /// Whether an earlier check is the ground.
    pub(super) is_remembered: bool,
}

impl Rejected {
    pub(crate) const fn rejection(&self) -> Rejection {
        self.rejection
    }

    #[cfg(feature = "app-attest")]
    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    pub(crate) const fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    #[cfg(feature = "app-attest")]
    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    pub(crate) const fn error(&self) -> Option<&VerifyError> {
        self.error.as_ref()
    }

    /// Sets whether an earlier check is the ground, and not one for this request.
    pub(crate) const fn with_remembered(mut self, is_remembered: bool) -> Self {
        self.is_remembered = is_remembered;
        self
    }

    /// Sets the digest of the judged credential.
    #[must_use]
    pub fn with_digest(mut self, digest: TokenDigest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// Sets a reason for operators, in a few lower-case words. The reason is logged, so it must hold no secret.
    /// Default: the reason of a [malformed token](Rejection::MalformedToken), which the client also sees; for other
    /// rejections, no reason.
    #[must_use]
    pub fn with_reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Sets the environment that answered last. Default: the first environment that the route admits.
    #[must_use]
    pub fn with_environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }
}

impl From<Rejection> for Rejected {
    fn from(rejection: Rejection) -> Self {
        let reason = match rejection {
            Rejection::MalformedToken(reason) => Some(reason.as_str()),
            _ => None,
        };
        Self { rejection, environment: None, digest: None, error: None, reason, is_remembered: false }
    }
}

/// The client gets the [rejection of the error](Rejection#impl-From<%26VerifyError>-for-Rejection); observers get the
/// error.
impl From<VerifyError> for Rejected {
    fn from(error: VerifyError) -> Self {
        Self { error: Some(error.clone()), ..Rejection::from(&error).into() }
    }
}

/// A request extension that the layer leaves in every request that is not exempt and not
/// [enforced](crate::Enforcement::Enforce). It tells what the layer would have done with the request in enforce mode.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "a device is moved a few times; a box would cost an allocation")]
pub enum DeviceOutcome {
    /// The request would have reached the inner service.
    Verified(VerifiedDevice),
    /// The layer would have answered with this rejection.
    Rejected(Rejection),
    /// Nobody knows yet: in [shadow mode](crate::Enforcement::Shadow), the check is still under way, or was left out.
    Unknown,
}

impl DeviceOutcome {
    /// `verified`, `unknown`, or the rejection's [`code`](Rejection::code).
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Verified(_) => "verified",
            Self::Rejected(rejection) => rejection.code(),
        }
    }
}
