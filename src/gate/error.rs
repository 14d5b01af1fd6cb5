//! The error of a proof that could not tell: nothing is known about the credential.

use std::{error::Error, sync::Arc, time::Duration};

use crate::BoxError;

/// Implements `Error`, with this `source`, and `Display`, with what `write!` makes of the rest.
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

/// The reason for a missing verdict. It is never the client's fault.
///
/// Cloning is cheap: all requests that waited for one answer get the same error.
#[derive(Clone, Debug)]
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
    /// Apple answers that it is asked too often; `retry_after` is the waiting time that Apple names.
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

impl_error!(
    VerifyError,
    |error| Some(&*error.source),
    "{}",
    match error.kind {
        VerifyErrorKind::Throttled => "asked too often",
        VerifyErrorKind::Unavailable => "no verdict to be had",
        VerifyErrorKind::Misconfigured => "credentials or request not accepted",
    }
);
