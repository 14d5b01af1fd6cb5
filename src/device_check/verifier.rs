//! The `DeviceVerifier` trait, and `AppleClient` as one.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use crate::apple::token::{DeviceToken, Verdict};
#[cfg(feature = "_apple")]
use crate::apple::{AppleClient, Check};
use crate::gate::{bits::Bits, error::VerifyError, routing::Environment};
use crate::runtime::{Attendance, Instant};

/// Answers whether a device token is genuine. Servers use `AppleClient`; tests may implement their own.
///
/// ```
/// use tower_devicecheck::{DeviceVerifier, Environment, TokenQuestion, Verdict, VerifyError};
///
/// /// Believes every token of development builds and asks no server.
/// struct Gullible;
///
/// impl DeviceVerifier for Gullible {
///     async fn verify(&self, question: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
///         Ok(match question.environment() {
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
    /// The layer asks once for all concurrent requests with the same token. It drops the future when the last of these
    /// requests is dropped, unless the future has said that it [must finish](TokenQuestion::must_finish). If
    /// the future panics, all of them get [`Unavailable`](crate::Rejection::Unavailable). A request also gets `Unavailable` at the layer's [deadline](crate::DeviceCheckLayer::with_deadline).
    ///
    /// # Errors
    ///
    /// Returns an error if there is no verdict. A refused token is a verdict, not an error.
    fn verify(
        &self,
        question: TokenQuestion<'_>,
    ) -> impl Future<Output = Result<Verdict, VerifyError>> + Send;

    /// Asks about one token and the bits of its device. `None` means that the token is refused. A layer
    /// [with marks](crate::DeviceCheckLayer::with_marks) calls this instead of [`verify`](Self::verify), on the same
    /// terms. Default: [`Misconfigured`](crate::VerifyErrorKind::Misconfigured), so that a verifier without marks admits
    /// nobody there.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no verdict, or a verdict without bits.
    fn verify_marks(
        &self,
        question: TokenQuestion<'_>,
    ) -> impl Future<Output = Result<Option<Bits>, VerifyError>> + Send {
        let _ = question;
        std::future::ready(Err(VerifyError::misconfigured(
            "this verifier reads no marks: it does not implement `verify_marks`",
        )))
    }

    /// The owner of these verdicts, such as the Apple team id. The scope is part of every cache key, so that a cache
    /// shared by two teams keeps their verdicts apart.
    fn scope(&self) -> &str;
}

/// A question to a [`DeviceVerifier`]: is this token genuine in this environment?
#[derive(Clone, Copy, Debug)]
pub struct TokenQuestion<'a> {
    token: &'a DeviceToken,
    environment: Environment,
    started: Instant,
    attendance: &'a Attendance,
}

impl<'a> TokenQuestion<'a> {
    /// Makes the question about `token` in `environment`, of a check that began at `started`.
    pub(super) const fn new(
        token: &'a DeviceToken,
        environment: Environment,
        started: Instant,
        attendance: &'a Attendance,
    ) -> Self {
        Self { token, environment, started, attendance }
    }

    /// The token.
    #[must_use]
    pub const fn token(&self) -> &'a DeviceToken {
        self.token
    }

    /// The environment whose server must be asked.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }
}

impl TokenQuestion<'_> {
    /// The time that the check has taken so far, in shared caches. Deadlines of a verifier should count it.
    #[must_use]
    pub fn time_spent(&self) -> Duration {
        self.started.elapsed()
    }

    /// Lets the check finish, and its verdict be cached, even if all requests that wait for it are dropped. An
    /// `AppleClient` calls it when it sends the question: the answer costs no further call, and the next request with
    /// the token finds it. Needs a tokio runtime; elsewhere the check ends with the last request.
    pub fn must_finish(&self) {
        self.attendance.must_finish();
    }
}

#[cfg(feature = "_apple")]
impl TokenQuestion<'_> {
    fn check(&self) -> Check {
        Check { started: self.started, attendance: self.attendance.clone() }
    }
}

impl<V: DeviceVerifier> DeviceVerifier for Arc<V> {
    async fn verify(&self, question: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        V::verify(self, question).await
    }

    async fn verify_marks(&self, question: TokenQuestion<'_>) -> Result<Option<Bits>, VerifyError> {
        V::verify_marks(self, question).await
    }

    fn scope(&self) -> &str {
        V::scope(self)
    }
}

/// The scope is the team id.
#[cfg(feature = "_apple")]
impl DeviceVerifier for AppleClient {
    async fn verify(&self, question: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        self.validate_within(question.token, question.environment, question.check()).await
    }

    async fn verify_marks(&self, question: TokenQuestion<'_>) -> Result<Option<Bits>, VerifyError> {
        self.query_within(question.token, question.environment, question.check()).await
    }

    fn scope(&self) -> &str {
        self.team_id()
    }
}

type BoxedBits<'a> = BoxFuture<'a, Result<Option<Bits>, VerifyError>>;

/// A [`DeviceVerifier`] as a trait object.
pub(super) trait ErasedVerifier: Send + Sync {
    fn verify<'a>(&'a self, question: TokenQuestion<'a>) -> BoxFuture<'a, Result<Verdict, VerifyError>>;
    fn verify_marks<'a>(&'a self, question: TokenQuestion<'a>) -> BoxedBits<'a>;
    fn scope(&self) -> &str;
}

impl<V: DeviceVerifier> ErasedVerifier for V {
    fn verify<'a>(&'a self, question: TokenQuestion<'a>) -> BoxFuture<'a, Result<Verdict, VerifyError>> {
        Box::pin(DeviceVerifier::verify(self, question))
    }

    fn verify_marks<'a>(&'a self, question: TokenQuestion<'a>) -> BoxedBits<'a> {
        Box::pin(DeviceVerifier::verify_marks(self, question))
    }

    fn scope(&self) -> &str {
        DeviceVerifier::scope(self)
    }
}
