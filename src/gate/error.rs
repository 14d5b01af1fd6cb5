//! The error of a proof that could not tell: nothing is known about the credential.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::BoxError;

/// Why there is no verdict. Never the client's fault.
///
/// Cloning is cheap: all requests that waited for one answer get the same error.
#[derive(Clone)]
pub struct VerifyError {
    kind: VerifyErrorKind,
    retry_after: Option<Duration>,
    source: Arc<dyn Error + Send + Sync>,
}

/// The three reasons to have no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VerifyErrorKind {
    /// Apple answers that it is asked too often.
    Throttled,
    /// There is no answer, or one that says nothing about the credential.
    Unavailable,
    /// Apple does not accept the server's credentials or its request, or the server is put together wrongly.
    Misconfigured,
}

impl VerifyError {
    /// Apple answers that it is asked too often; `retry_after` is what it says about when to come back.
    pub fn throttled(retry_after: Option<Duration>, source: impl Into<BoxError>) -> Self {
        Self::new(VerifyErrorKind::Throttled, retry_after, source.into())
    }

    /// There is no answer, or one that says nothing about the credential.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::new(VerifyErrorKind::Unavailable, None, source.into())
    }

    /// Apple does not accept the server's credentials or its request.
    pub fn misconfigured(source: impl Into<BoxError>) -> Self {
        Self::new(VerifyErrorKind::Misconfigured, None, source.into())
    }

    fn new(kind: VerifyErrorKind, retry_after: Option<Duration>, source: BoxError) -> Self {
        Self { kind, retry_after, source: source.into() }
    }

    /// The same error with what the other side said about when to come back.
    #[must_use]
    pub const fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// The reason, one of three.
    #[must_use]
    pub const fn kind(&self) -> VerifyErrorKind {
        self.kind
    }

    /// The time after which the other side wants to be asked again, as it said it.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            VerifyErrorKind::Throttled => "asked too often",
            VerifyErrorKind::Unavailable => "no verdict to be had",
            VerifyErrorKind::Misconfigured => "credentials or request not accepted",
        })
    }
}

impl fmt::Debug for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyError")
            .field("kind", &self.kind)
            .field("retry_after", &self.retry_after)
            .field("source", &self.source)
            .finish()
    }
}

impl Error for VerifyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
