//! Apple's answer about a token, and what the inner service sees of it.

use std::{fmt, sync::Arc};

use crate::{
    apple::DeviceToken, gate::credential::TokenDigest, gate::rejection::Rejection,
    gate::routing::Environment, runtime::SystemTime,
};

/// Apple's answer about a device token. That there was no answer is a
/// [`VerifyError`](crate::VerifyError), not a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a token is genuine or it is not")]
pub enum Verdict {
    /// The token is one that Apple made for your team's app on a genuine device.
    Genuine,
    /// It is not: forged, expired, of another team or of the other environment. Apple does not say which.
    Refused,
}

/// What a [`VerifiedDevice`] rests on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Evidence {
    /// Apple was asked for this request, or for another one with the same token at the same time.
    Apple,
    /// Apple was asked earlier, and the verdict was still good.
    Cache,
    /// No device at all: the debug token of this name.
    DebugToken(Arc<str>),
}

/// `apple`, `cache`, or `debug-token:` and its name.
impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apple => f.write_str("apple"),
            Self::Cache => f.write_str("cache"),
            Self::DebugToken(name) => write!(f, "debug-token:{name}"),
        }
    }
}

/// The request came from a genuine device: the extension that the inner service finds.
///
/// [`DeviceCheck`](crate::DeviceCheck) makes it, and removes any that is already in the request.
/// Cloning is cheap.
#[derive(Clone, Debug)]
pub struct VerifiedDevice {
    environment: Environment,
    evidence: Evidence,
    digest: TokenDigest,
    verified_at: SystemTime,
    /// `None` for a debug token.
    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    token: Option<DeviceToken>,
}

impl VerifiedDevice {
    pub(crate) const fn new(
        token: DeviceToken,
        digest: TokenDigest,
        environment: Environment,
        evidence: Evidence,
        verified_at: SystemTime,
    ) -> Self {
        Self { environment, evidence, digest, verified_at, token: Some(token) }
    }

    pub(crate) fn from_debug_token(name: Arc<str>, environment: Environment, now: SystemTime) -> Self {
        let evidence = Evidence::DebugToken(name);
        // The digest of the debug token itself would let readers of logs guess weak ones offline.
        let digest = TokenDigest::of(evidence.to_string().as_bytes());
        Self { environment, evidence, digest, verified_at: now, token: None }
    }

    /// Which of Apple's servers accepted the token.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// What the verification rests on.
    #[must_use]
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// SHA-256 of the token; of `debug-token:` and its name for a debug token. It identifies the token, not
    /// the device: the same device has another digest with its next token.
    #[must_use]
    pub const fn digest(&self) -> TokenDigest {
        self.digest
    }

    /// When the check with Apple began.
    #[must_use]
    pub const fn verified_at(&self) -> SystemTime {
        self.verified_at
    }

    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    pub(crate) const fn token(&self) -> Option<&DeviceToken> {
        self.token.as_ref()
    }
}

/// The extension that [`Enforcement::Monitor`](crate::Enforcement::Monitor) leaves in every request that is
/// not exempt: what [`Enforcement::Enforce`](crate::Enforcement::Enforce) would have done with it.
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
