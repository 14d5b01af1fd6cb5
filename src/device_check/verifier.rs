//! The `DeviceVerifier` trait, and `AppleClient` as one.

use std::sync::Arc;

use futures_util::future::BoxFuture;

#[cfg(feature = "_apple")]
use crate::apple::AppleClient;
use crate::apple::token::{DeviceToken, Verdict};
use crate::gate::{error::VerifyError, routing::Environment};

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
    /// requests is dropped. If the future panics, all of them get [`Unavailable`](crate::Rejection::Unavailable). A
    /// request also gets `Unavailable` at the layer's [deadline](crate::DeviceCheckLayer::with_deadline).
    ///
    /// # Errors
    ///
    /// Returns an error if there is no verdict. A refused token is a verdict, not an error.
    fn verify(
        &self,
        question: TokenQuestion<'_>,
    ) -> impl Future<Output = Result<Verdict, VerifyError>> + Send;

    /// The owner of these verdicts, such as the Apple team id. The scope is part of every cache key, so that a cache
    /// shared by two teams keeps their verdicts apart.
    fn scope(&self) -> &str;
}

/// A question to a [`DeviceVerifier`]: is this token genuine in this environment?
#[derive(Clone, Copy, Debug)]
pub struct TokenQuestion<'a> {
    token: &'a DeviceToken,
    environment: Environment,
}

impl<'a> TokenQuestion<'a> {
    /// Makes the question about `token` in `environment`.
    pub(super) const fn new(token: &'a DeviceToken, environment: Environment) -> Self {
        Self { token, environment }
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

impl<V: DeviceVerifier> DeviceVerifier for Arc<V> {
    async fn verify(&self, question: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        V::verify(self, question).await
    }

    fn scope(&self) -> &str {
        V::scope(self)
    }
}

/// The scope is the team id.
#[cfg(feature = "_apple")]
impl DeviceVerifier for AppleClient {
    async fn verify(&self, question: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        self.validate(question.token, question.environment).await
    }

    fn scope(&self) -> &str {
        self.team_id()
    }
}

/// A [`DeviceVerifier`] as a trait object.
pub(super) trait ErasedVerifier: Send + Sync {
    fn verify<'a>(&'a self, question: TokenQuestion<'a>) -> BoxFuture<'a, Result<Verdict, VerifyError>>;
    fn scope(&self) -> &str;
}

impl<V: DeviceVerifier> ErasedVerifier for V {
    fn verify<'a>(&'a self, question: TokenQuestion<'a>) -> BoxFuture<'a, Result<Verdict, VerifyError>> {
        Box::pin(DeviceVerifier::verify(self, question))
    }

    fn scope(&self) -> &str {
        DeviceVerifier::scope(self)
    }
}
