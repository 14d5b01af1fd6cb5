//! Who is asked whether a token is genuine.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::{BoxError, apple::DeviceToken, gate::decision::Verdict, gate::routing::Environment};

/// Knows whether a device token is genuine. `AppleClient` is the one to use; tests bring their own.
///
/// ```
/// use tower_devicecheck::{DeviceToken, DeviceVerifier, Environment, Verdict, VerifyError};
///
/// /// Believes every token of development builds and asks nobody.
/// struct Gullible;
///
/// impl DeviceVerifier for Gullible {
///     async fn verify(&self, _: &DeviceToken, environment: Environment) -> Result<Verdict, VerifyError> {
///         Ok(match environment {
///             Environment::Production => Verdict::Refused,
///             Environment::Development => Verdict::Genuine,
///         })
///     }
///
///     fn scope(&self) -> &str {
///         "gullible"
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(note = "use `AppleClient`, or implement `verify` and `scope`")]
pub trait DeviceVerifier: Send + Sync + 'static {
    /// Asks about one token.
    ///
    /// The layer asks once for all concurrent requests with the same token. When none of them waits any
    /// longer, the future is dropped; when it panics, all of them get
    /// [`Unavailable`](crate::Rejection::Unavailable). It must end by itself: the layer sets no deadline.
    ///
    /// # Errors
    ///
    /// If there is no verdict. Never for a token that was refused.
    fn verify(
        &self,
        token: &DeviceToken,
        environment: Environment,
    ) -> impl Future<Output = Result<Verdict, VerifyError>> + Send;

    /// Whose verdicts these are, such as the Apple team id. It is part of every cache key, so that a cache
    /// shared by two teams keeps their verdicts apart.
    fn scope(&self) -> &str;
}

impl<V: DeviceVerifier> DeviceVerifier for Arc<V> {
    fn verify(
        &self,
        token: &DeviceToken,
        environment: Environment,
    ) -> impl Future<Output = Result<Verdict, VerifyError>> + Send {
        V::verify(self, token, environment)
    }

    fn scope(&self) -> &str {
        V::scope(self)
    }
}

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
    /// No answer, or none that says anything about the token.
    Unavailable,
    /// Apple does not accept the server's credentials or its request.
    Misconfigured,
}

impl VerifyError {
    /// Apple answers that it is asked too often; `retry_after` is what it says about when to come back.
    pub fn throttled(retry_after: Option<Duration>, source: impl Into<BoxError>) -> Self {
        Self::new(VerifyErrorKind::Throttled, retry_after, source.into())
    }

    /// No answer, or none that says anything about the token.
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

    /// The same, with what the other side said about when to come back.
    #[must_use]
    pub const fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// Which of the three reasons it is.
    #[must_use]
    pub const fn kind(&self) -> VerifyErrorKind {
        self.kind
    }

    /// What the other side said about when to come back, as it said it.
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
