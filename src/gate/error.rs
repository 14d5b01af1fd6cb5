//! The error of a proof that reached no verdict about a credential.

use std::{error::Error, sync::Arc, time::Duration};

use crate::BoxError;

/// Implements `Error` with this `source`, and `Display` by passing the remaining arguments to `write!`.
macro_rules! impl_error {
    ($error:ty, |$this:ident| $source:expr, $($text:tt)+) => {
        #[allow(unused_variables, reason = "many a text is constant, and many an error has no source")]
        impl std::fmt::Display for $error {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let $this = self;
                write!(f, $($text)+)
            }
        }

        #[allow(unused_variables, reason = "many a text is constant, and many an error has no source")]
        impl std::error::Error for $error {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                let $this = self;
                $source
            }
        }
    };
}
pub(crate) use impl_error;

/// The error of a check without a verdict. It is never the client's fault.
///
/// Cloning is cheap, because all requests that waited for one answer get the same error.
#[derive(Clone, Debug)]
pub struct VerifyError {
    kind: VerifyErrorKind,
    retry_after: Option<Duration>,
    is_known_outage: bool,
    source: Arc<dyn Error + Send + Sync>,
}

/// The kinds of [`VerifyError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VerifyErrorKind {
    /// Apple throttles this server (status 429).
    Throttled,
    /// Apple, or another server that a proof asked, gave no answer, or one that says nothing about the credential.
    Unavailable,
    /// Apple does not accept the server's credentials or its request, or the layer is set up incorrectly.
    Misconfigured,
}

impl VerifyError {
    /// Makes an error of the kind [`Throttled`](VerifyErrorKind::Throttled). `retry_after` is the waiting time that
    /// Apple names.
    pub fn throttled(retry_after: Option<Duration>, source: impl Into<BoxError>) -> Self {
        Self::new(VerifyErrorKind::Throttled, retry_after, source.into())
    }

    /// Makes an error of the kind [`Unavailable`](VerifyErrorKind::Unavailable).
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::new(VerifyErrorKind::Unavailable, None, source.into())
    }

    /// Makes an error of the kind [`Misconfigured`](VerifyErrorKind::Misconfigured).
    pub fn misconfigured(source: impl Into<BoxError>) -> Self {
        Self::new(VerifyErrorKind::Misconfigured, None, source.into())
    }

    fn new(kind: VerifyErrorKind, retry_after: Option<Duration>, source: BoxError) -> Self {
        Self { kind, retry_after, is_known_outage: false, source: source.into() }
    }

    /// Sets the waiting time that the other side names.
    #[must_use]
    pub const fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// Marks the error of a verifier that did not ask, because the other side is known to be down. A layer
    /// [with stale verdicts](crate::DeviceCheckLayer::with_stale_verdicts) then honours an expired verdict.
    #[must_use]
    pub const fn with_known_outage(mut self) -> Self {
        self.is_known_outage = true;
        self
    }

    /// Whether the other side is known to be down, and was not asked.
    #[must_use]
    pub const fn is_known_outage(&self) -> bool {
        self.is_known_outage
    }

    /// The kind of this error.
    #[must_use]
    pub const fn kind(&self) -> VerifyErrorKind {
        self.kind
    }

    /// The waiting time that the other side names, unchanged.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl_error!(
    VerifyError,
    |error| Some(&*error.source),
    "{}",
    match error.kind {
        VerifyErrorKind::Throttled => "asked too often",
        VerifyErrorKind::Unavailable => "no verdict available",
        VerifyErrorKind::Misconfigured => "credentials or request not accepted",
    }
);
