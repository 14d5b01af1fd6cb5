//! The methods of the client.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use tracing::{Level, event};

use crate::apple::bits::{Bits, BitsError};
use crate::apple::credentials::{Credentials, CredentialsError};
use crate::apple::token::{DeviceToken, Verdict};
use crate::apple::{call::Caller, wire::Operation};
use crate::gate::{decision::VerifiedDevice, error::VerifyError, observer::TARGET, routing::Environment};
use crate::runtime::lock;

/// A client for Apple's DeviceCheck server.
///
/// One client serves both environments. Cloning is cheap; clones share connections, limits, credentials and
/// the provider token.
///
/// Each call has a deadline and takes one of a limited number of slots. [`AppleClientBuilder`] sets both and
/// names the defaults. Dropping a call gives its slot back and ends the request, which Apple may have received.
///
/// [`AppleClientBuilder`]: crate::AppleClientBuilder
///
/// ```no_run
/// use tower_devicecheck::{AppleClient, Credentials, Environment};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(feature = "reqwest")] {
/// let apple = AppleClient::new(Credentials::from_env()?)?;
/// apple.check_credentials(Environment::Production).await?;
/// # }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AppleClient {
    pub(super) caller: Arc<Caller>,
}

impl AppleClient {
    /// Asks whether a token is genuine.
    ///
    /// # Errors
    ///
    /// If Apple gives no verdict. A refused token is a verdict, not an error.
    pub async fn validate(
        &self,
        token: &DeviceToken,
        environment: Environment,
    ) -> Result<Verdict, VerifyError> {
        // Apple promises nothing about the body but what `wire` knows.
        let body = self.caller.ask(Operation::Validate, token, environment).await?;
        Ok(match body {
            Some(_) => Verdict::Genuine,
            None => Verdict::Refused,
        })
    }

    /// Reads the two bits of a device. Bits that were never set are `false`.
    ///
    /// Apple asks that a token be used once, soon after it was made, and accepts it again for a short while. That
    /// time may be over if the device was admitted on a cached verdict.
    ///
    /// # Errors
    ///
    /// If Apple refuses the token or gives no answer, or if the device was admitted by a debug token.
    pub async fn query_bits(&self, device: &VerifiedDevice) -> Result<Bits, BitsError> {
        let body = self.ask_about(Operation::QueryBits, device).await?;
        Bits::read(&body)
            .ok_or_else(|| VerifyError::unavailable("the answer to a query of bits is not understood").into())
    }

    /// Sets the two bits of a device.
    ///
    /// # Errors
    ///
    /// As for [`query_bits`](Self::query_bits). Without an answer, the bits may or may not be set.
    pub async fn update_bits(
        &self,
        device: &VerifiedDevice,
        bit0: bool,
        bit1: bool,
    ) -> Result<(), BitsError> {
        self.ask_about(Operation::UpdateBits { bit0, bit1 }, device).await.map(|_| ())
    }

    async fn ask_about(&self, operation: Operation, device: &VerifiedDevice) -> Result<Bytes, BitsError> {
        let text = device.text().ok_or(BitsError::NO_DEVICE_TOKEN)?;
        let token = &DeviceToken::try_from(text).map_err(|_| BitsError::NO_DEVICE_TOKEN)?;
        self.caller.ask(operation, token, device.environment()).await?.ok_or(BitsError::REFUSED_TOKEN)
    }

    pub(crate) fn team_id(&self) -> &str {
        &self.caller.team_id
    }

    /// Checks that Apple accepts the credentials, by asking about a token that no device made. Apple judges the
    /// credentials before the token, as seen in practice.
    ///
    /// Use it when a server starts, and in health checks that run rarely.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`](crate::VerifyErrorKind::Misconfigured) if Apple does not accept the credentials, or if the
    /// token is called genuine: what says so is not Apple, and it would let everybody in. Any other kind says nothing
    /// about the credentials.
    pub async fn check_credentials(&self, environment: Environment) -> Result<(), VerifyError> {
        let bogus: DeviceToken = "bm90IGEgZGV2aWNlIHRva2Vu".parse().map_err(VerifyError::unavailable)?;
        match self.validate(&bogus, environment).await? {
            Verdict::Refused => Ok(()),
            Verdict::Genuine => Err(VerifyError::misconfigured(
                "a made-up token was called genuine: what answers is not Apple, and would let everybody in (check \
                 the base URL, and proxies in between)",
            )),
        }
    }

    /// Uses another key of the same team from the next request on. Calls under way finish with the old key, or
    /// with the new one if Apple has refused the old one meanwhile.
    ///
    /// Make the new key at Apple first, then rotate, then revoke the old key.
    ///
    /// # Errors
    ///
    /// If the credentials are of another team: the team id is part of every cache key.
    pub fn rotate_credentials(&self, credentials: Credentials) -> Result<(), CredentialsError> {
        if credentials.team_id() != &*self.caller.team_id {
            return Err(CredentialsError::other_team(&self.caller.team_id, credentials.team_id()));
        }
        event!(target: TARGET, Level::DEBUG, key_id = credentials.key_id(), "credentials rotated");
        *lock(&self.caller.credentials) = credentials;
        Ok(())
    }
}

impl fmt::Debug for AppleClient {
    // Without the transport, which may be a closure, and need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let caller = &self.caller;
        f.debug_struct("AppleClient")
            .field("credentials", &caller.credentials())
            .field("production", &caller.production.validate)
            .field("development", &caller.development.validate)
            .field("attempt_timeout", &caller.attempt_timeout)
            .field("total_timeout", &caller.total_timeout)
            .field("retry", &caller.retry)
            .finish_non_exhaustive()
    }
}
