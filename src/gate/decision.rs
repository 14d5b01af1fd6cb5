//! Decisions about requests, and the extensions in which the inner service finds them.

use std::{any::Any, fmt, sync::Arc};

use bytes::Bytes;
use http::HeaderValue;

use crate::gate::credential::{Candidate, TokenDigest};
use crate::gate::{error::VerifyError, rejection::Rejection, routing::Environment};
use crate::runtime::SystemTime;

/// The layer's treatment of rejected requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Enforcement {
    /// The layer answers the request, which does not reach the inner service. The default.
    #[default]
    Enforce,
    /// The request reaches the inner service all the same. Every request that is not exempt carries a
    /// [`DeviceOutcome`]. For a roll-out.
    ///
    /// A request still waits for the check, during an outage of Apple's for all of its deadline. With the feature
    /// `axum`, a handler that takes a [`VerifiedDevice`] still refuses requests without one: take an `Option`.
    ///
    /// # Danger
    ///
    /// Nothing is protected: every request reaches the inner service.
    Monitor,
}

/// The grounds on which a [`VerifiedDevice`] was verified: by which proof, and on what basis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Evidence {
    proof: &'static str,
    basis: &'static str,
    name: Option<Arc<str>>,
    grade: Grade,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Grade {
    Fresh,
    Remembered,
    StandIn,
}

impl Evidence {
    const fn new(proof: &'static str, basis: &'static str, grade: Grade) -> Self {
        Self { proof, basis, name: None, grade }
    }

    /// `proof` checked the credential for this request, or for another one with the same credential at the
    /// same time. `basis` is one lower-case word for logs, such as `apple`.
    #[must_use]
    pub const fn fresh(proof: &'static str, basis: &'static str) -> Self {
        Self::new(proof, basis, Grade::Fresh)
    }

    /// `proof` remembered an earlier check.
    #[must_use]
    pub const fn remembered(proof: &'static str, basis: &'static str) -> Self {
        Self::new(proof, basis, Grade::Remembered)
    }

    /// `proof` accepted a secret called `name`, behind which there is no device at all. The default observer
    /// warns of each such admission.
    #[must_use]
    pub const fn stand_in(proof: &'static str, basis: &'static str, name: Arc<str>) -> Self {
        Self { proof, basis, name: Some(name), grade: Grade::StandIn }
    }

    /// The [scheme](crate::Proof::scheme) of the proof that decided.
    #[must_use]
    pub const fn proof(&self) -> &'static str {
        self.proof
    }

    /// The basis in one word: `apple`, `cache` or `debug-token` for a device token.
    #[must_use]
    pub const fn basis(&self) -> &'static str {
        self.basis
    }

    /// The name of the secret, where a secret stands in for a device.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether the credential was checked just now, not remembered, and a device stands behind it.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        matches!(self.grade, Grade::Fresh)
    }

    /// Whether a secret stands in for a device.
    #[must_use]
    pub const fn is_stand_in(&self) -> bool {
        matches!(self.grade, Grade::StandIn)
    }
}

/// The basis, followed by a colon and the name where there is one: `debug-token:ci`.
impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.basis)?;
        match &self.name {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}

/// The request came from a genuine device: the extension that the inner service finds.
///
/// A [proof](crate::Proof) makes it by [`Facts::verified`](crate::Facts::verified); the gate inserts it, and
/// removes any that is already in the request. Cloning is cheap.
///
/// # With axum
///
/// With the feature `axum` (`cargo add tower-devicecheck --features axum`) it is an argument of handlers, and so is
/// `Option<VerifiedDevice>`. Without that feature the compiler says of such a handler no more than that the trait bound
/// `Handler<_, _>` is not satisfied. axum's `#[debug_handler]` names the argument.
/// `Extension<VerifiedDevice>` does without the feature.
#[derive(Clone, Debug)]
pub struct VerifiedDevice {
    environment: Environment,
    evidence: Evidence,
    digest: TokenDigest,
    verified_at: SystemTime,
    keepsake: Keepsake,
    subject: Option<Arc<str>>,
}

/// The part of a credential that its proof needs later.
#[derive(Clone)]
enum Keepsake {
    Nothing,
    /// A copy of the text that the client showed.
    Text(Bytes),
    Value(Arc<dyn Any + Send + Sync>),
}

impl fmt::Debug for Keepsake {
    // It may be a secret.
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
        Self { environment, evidence, digest, verified_at, keepsake: Keepsake::Nothing, subject: None }
    }

    /// The same device, which keeps a copy of the text that the client showed: the text itself may be a part of
    /// the request's whole read buffer, and would keep that in memory for as long as a handler keeps the device.
    pub(crate) fn with_text(mut self, text: &Candidate) -> Self {
        self.keepsake = Keepsake::Text(Bytes::copy_from_slice(text.as_bytes()));
        self
    }

    /// The same device in another environment. Default: the first one that the route admits.
    #[must_use]
    pub fn with_environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// The same device, verified at another time. Default: the time of the request.
    #[must_use]
    pub fn with_verified_at(mut self, verified_at: SystemTime) -> Self {
        self.verified_at = verified_at;
        self
    }

    /// The same device with a stable pseudonym, where the proof has one.
    #[must_use]
    pub fn with_subject(mut self, subject: Arc<str>) -> Self {
        self.subject = Some(subject);
        self
    }

    /// The same device with a value that its proof needs later. `Debug` does not show it.
    #[must_use]
    pub fn with_value(mut self, value: Arc<dyn Any + Send + Sync>) -> Self {
        self.keepsake = Keepsake::Value(value);
        self
    }

    /// The environment in which the device was verified: for a device token, the one whose server accepted it.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// The grounds on which the device was verified.
    #[must_use]
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// SHA-256 of the credential; of `debug-token:` and its name for a debug token.
    ///
    /// It identifies the token, not the device: the same device has another digest with its next token.
    #[must_use]
    pub const fn digest(&self) -> TokenDigest {
        self.digest
    }

    /// The time at which the check began.
    #[must_use]
    pub const fn verified_at(&self) -> SystemTime {
        self.verified_at
    }

    /// A stable pseudonym of the device or its key; `None` for a device token, which has none.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// The value that the proof left with [`with_value`](Self::with_value), if it is a `T`.
    #[must_use]
    pub fn value<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        match &self.keepsake {
            Keepsake::Value(value) => Arc::clone(value).downcast().ok(),
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

/// A rejection, with details that only observers and logs may see.
#[derive(Clone, Debug)]
pub struct Rejected {
    pub(super) rejection: Rejection,
    pub(super) environment: Option<Environment>,
    pub(super) digest: Option<TokenDigest>,
    pub(super) error: Option<VerifyError>,
    pub(super) reason: Option<&'static str>,
}

impl Rejected {
    pub(crate) const fn rejection(&self) -> Rejection {
        self.rejection
    }

    /// The same with the digest of the credential that was judged.
    #[must_use]
    pub fn with_digest(mut self, digest: TokenDigest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// The same with a reason for the operator's eyes, in a few lower-case words. It must hold no secret: it is logged.
    /// Default: that of a [malformed token](Rejection::MalformedToken), which its client sees too.
    #[must_use]
    pub fn with_reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// The same with the environment that answered last. Default: the first one that the route admits.
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
        Self { rejection, environment: None, digest: None, error: None, reason }
    }
}

/// The client gets the [rejection of the error](Rejection#impl-From<%26VerifyError>-for-Rejection), the operator the error.
impl From<VerifyError> for Rejected {
    fn from(error: VerifyError) -> Self {
        Self { error: Some(error.clone()), ..Rejection::from(&error).into() }
    }
}

/// The extension that [`Enforcement::Monitor`] leaves in every request that is not exempt: what
/// [`Enforcement::Enforce`] would have done with it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DeviceOutcome {
    /// It would have reached the inner service.
    Verified(VerifiedDevice),
    /// It would have been answered with this rejection.
    Rejected(Rejection),
}

impl DeviceOutcome {
    /// `verified`, or the rejection's [`code`](Rejection::code).
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Verified(_) => "verified",
            Self::Rejected(rejection) => rejection.code(),
        }
    }
}
