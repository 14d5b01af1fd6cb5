//! The methods of the client.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use tracing::{Level, event};

use crate::apple::bits::{BitsError, read_bits};
use crate::apple::breaker::Availability;
use crate::apple::call::{Caller, Check};
use crate::apple::credentials::{Credentials, CredentialsError};
use crate::apple::token::{DeviceToken, Verdict};
use crate::apple::wire::{Operation, Subject};
use crate::gate::bits::Bits;
use crate::gate::{decision::VerifiedDevice, error::VerifyError, observer::TARGET, routing::Environment};
use crate::quote::{quoted, shown_id};
use crate::runtime::{Instant, lock};

/// A client for Apple's DeviceCheck server.
///
/// One client serves both environments. Cloning is cheap: clones share connections, limits, credentials and the
/// provider token.
///
/// Each call has a deadline and takes one of a limited number of slots. [`AppleClientBuilder`] sets both and documents
/// the defaults. A call that is dropped before it has a slot sends nothing. A call whose request has been sent
/// continues without its caller, and keeps its slot until Apple answers or the deadline passes. Without a tokio
/// runtime, dropping the call ends it.
///
/// While Apple refuses the credentials, calls fail at once with Apple's last answer. A few calls still reach Apple: at
/// most one per second at first, later one every half minute. The back-off ends once Apple accepts the credentials.
///
/// Several tokio runtimes may share a client; each has its own connections. A runtime must keep running while its calls
/// are in flight, or be dropped: the calls of a stalled runtime keep their slots.
///
/// [`AppleClientBuilder`]: crate::AppleClientBuilder
///
/// Wrong credentials should stop a server at start-up. An outage at Apple should not:
///
/// ```
/// use tower_devicecheck::{AppleClient, BoxError, Credentials, Environment, VerifyErrorKind};
///
/// async fn start(apple: &AppleClient) -> Result<(), BoxError> {
///     match apple.check_credentials(Environment::Production).await {
///         Err(error) if error.kind() == VerifyErrorKind::Misconfigured => Err(error.into()),
///         Err(error) => Ok(eprintln!("Apple does not answer, so the credentials are not checked: {error}")),
///         Ok(()) => Ok(()),
///     }
/// }
///
/// # async fn example() -> Result<(), BoxError> {
/// # #[cfg(feature = "reqwest")] {
/// let apple = AppleClient::new(Credentials::from_env()?)?;
/// start(&apple).await?;
/// # }
/// # Ok(())
/// # }
/// # async fn a17_wrong_credentials_stop_the_start_and_an_outage_does_not() -> Result<(), BoxError> {
/// #     use tower_devicecheck::testing::{FakeApple, Reply};
/// #     for (status, starts) in [(503, true), (401, false)] {
/// #         let fake = FakeApple::new();
/// #         fake.always(Reply::status(status));
/// #         let apple = AppleClient::builder(fake.credentials()).transport(fake.transport()).build()?;
/// #         assert_eq!(start(&apple).await.is_ok(), starts, "{status}");
/// #     }
/// #     Ok(())
/// # }
/// # tokio::runtime::Runtime::new()
/// #     .and_then(|runtime| {
/// #         runtime
/// #             .block_on(a17_wrong_credentials_stop_the_start_and_an_outage_does_not())
/// #             .map_err(std::io::Error::other)
/// #     })
/// #     .expect("the example is right");
/// ```
#[derive(Clone)]
pub struct AppleClient {
    pub(super) caller: Arc<Caller>,
    /// Asks Apple's server for receipts. It has slots and a breaker of its own, so that trouble of a background task
    /// fails no request.
    #[cfg(feature = "app-attest")]
    pub(super) receipt_caller: Arc<Caller>,
}

impl AppleClient {
    /// Asks Apple whether a token is genuine.
    ///
    /// # Errors
    ///
    /// Returns an error if Apple gives no verdict. A refused token is a verdict, not an error.
    pub async fn validate(
        &self,
        token: &DeviceToken,
        environment: Environment,
    ) -> Result<Verdict, VerifyError> {
        self.validate_within(token, environment, Check::new()).await
    }

    pub(crate) async fn validate_within(
        &self,
        token: &DeviceToken,
        environment: Environment,
        check: Check,
    ) -> Result<Verdict, VerifyError> {
        // Apple promises nothing about the body beyond the checks in `wire`.
        let subject = Subject::Token(token.clone());
        Ok(match self.caller.ask(Operation::Validate, subject, environment, check).await? {
            Ok(_) => Verdict::Genuine,
            Err(_) => Verdict::Refused,
        })
    }

    /// Reads the two bits of a device. Bits that were never set are `false`.
    ///
    /// Apple asks servers to use a token once, soon after the app made it. Seen in practice: Apple accepts a token
    /// again for some seconds. A device that the layer admitted on a remembered verdict
    /// ([`Evidence::is_fresh`](crate::Evidence::is_fresh) is `false`) has a token that Apple may no longer accept;
    /// [`BitsError::is_likely_expired`] reports this. Let the app send a new token, and read bits on a route whose
    /// layer asks Apple about every token (`with_time_to_live(Verdict::Genuine, Duration::ZERO)`).
    ///
    /// # Errors
    ///
    /// Returns an error if Apple refuses the token or gives no answer, if the device was admitted without a device token,
    /// such as by a debug token or a session, or if [another team](Self::has_admitted) admitted it.
    pub async fn query_bits(&self, device: &VerifiedDevice) -> Result<Bits, BitsError> {
        let body = self.ask_about(Operation::QueryBits, device).await?;
        Ok(parsed(&body)?)
    }

    /// Asks Apple whether a token is genuine, and for the bits of its device, in one call. `None` if Apple refused the
    /// token.
    pub(crate) async fn query_within(
        &self,
        token: &DeviceToken,
        environment: Environment,
        check: Check,
    ) -> Result<Option<Bits>, VerifyError> {
        let subject = Subject::Token(token.clone());
        let body = self.caller.ask(Operation::QueryBits, subject, environment, check).await?;
        body.ok().map(|body| parsed(&body)).transpose()
    }

    /// Sets one or both bits of a device. `None` leaves a bit out of the update. If both are `None`, the client does
    /// not call Apple.
    ///
    /// If two handlers set one bit each, each should leave the other bit out: writing back the value that it read
    /// earlier would undo the other handler's update. Apple documents both bits as optional in an update, but not what
    /// happens to a bit that is left out; this crate's fake Apple keeps the bit's value. Apple has no conditional
    /// update: if two handlers set the same bit, the last write wins.
    ///
    /// A layer [with marks](crate::DeviceCheckLayer::with_marks) may remember the old bits: change them with a
    /// [`MarkWriter`](crate::MarkWriter) there.
    ///
    /// # Errors
    ///
    /// The same as for [`query_bits`](Self::query_bits). Without an answer, the bits may or may not be set.
    pub async fn update_bits(
        &self,
        device: &VerifiedDevice,
        bit0: impl Into<Option<bool>> + Send,
        bit1: impl Into<Option<bool>> + Send,
    ) -> Result<(), BitsError> {
        match (bit0.into(), bit1.into()) {
            (None, None) => Ok(()),
            (bit0, bit1) => self.ask_about(Operation::UpdateBits { bit0, bit1 }, device).await.map(|_| ()),
        }
    }

    async fn ask_about(&self, operation: Operation, device: &VerifiedDevice) -> Result<Bytes, BitsError> {
        let token = self.token_of(device)?;
        let subject = Subject::Token(token);
        let body = self.caller.ask(operation, subject, device.environment(), Check::new()).await?;
        body.map_err(|_| BitsError::refused_token(!device.evidence().is_fresh()))
    }

    /// The token of a device that this client's team admitted.
    pub(crate) fn token_of(&self, device: &VerifiedDevice) -> Result<DeviceToken, BitsError> {
        if !self.has_admitted(device) {
            return Err(BitsError::OTHER_TEAM);
        }
        let text = device.text().ok_or(BitsError::NO_DEVICE_TOKEN)?;
        DeviceToken::try_from(text).map_err(|_| BitsError::NO_DEVICE_TOKEN)
    }

    /// Whether this client's team admitted the device, as far as the device tells. The bits of a device belong to the
    /// team that admitted it. In a layer with one team, every device counts.
    ///
    /// ```
    /// use tower_devicecheck::{AppleClient, VerifiedDevice};
    ///
    /// /// The client that can ask for the bits of a device, in a layer with several teams.
    /// fn client_of<'a>(clients: &'a [AppleClient], device: &VerifiedDevice) -> Option<&'a AppleClient> {
    ///     clients.iter().find(|client| client.has_admitted(device))
    /// }
    /// ```
    #[must_use]
    pub fn has_admitted(&self, device: &VerifiedDevice) -> bool {
        device.evidence().team().is_none_or(|team| team == self.team_id())
    }

    /// Whether calls to the server of this environment are made at the moment, or fail at once.
    #[must_use]
    pub fn availability(&self, environment: Environment) -> Availability {
        self.caller.breaker.availability(environment, Instant::now())
    }

    pub(crate) fn team_id(&self) -> &str {
        &self.caller.team_id
    }

    /// Checks that Apple accepts the credentials, by asking about a made-up token. Seen in practice: Apple checks the
    /// credentials before the token.
    ///
    /// Use it at start-up, and in health checks that run rarely.
    ///
    /// # Errors
    ///
    /// Returns [`Misconfigured`](crate::VerifyErrorKind::Misconfigured) if Apple does not accept the credentials, or if
    /// the server calls the made-up token genuine. Such a server is not Apple's, and would admit everyone. An error of
    /// any other kind says nothing about the credentials.
    pub async fn check_credentials(&self, environment: Environment) -> Result<(), VerifyError> {
        let bogus: DeviceToken = "bm90IGEgZGV2aWNlIHRva2Vu".parse().map_err(VerifyError::unavailable)?;
        match self.validate(&bogus, environment).await? {
            Verdict::Refused => Ok(()),
            Verdict::Genuine => Err(VerifyError::misconfigured(
                "a made-up token was called genuine: the server is not Apple, and would admit everyone (check the \
                 base URL, and proxies in between)",
            )),
        }
    }

    /// Switches to another key of the same team, from the next request on. Calls in flight finish with the old key, or
    /// with the new key if Apple refuses the old one meanwhile.
    ///
    /// First create the new key in Apple's developer account, then rotate, then revoke the old key.
    ///
    /// # Errors
    ///
    /// Returns an error if the credentials are of another team: the team id is part of every cache key.
    pub fn rotate_credentials(&self, credentials: Credentials) -> Result<(), CredentialsError> {
        if credentials.team_id() != &*self.caller.team_id {
            return Err(CredentialsError::other_team(&self.caller.team_id, credentials.team_id()));
        }
        event!(target: TARGET, Level::DEBUG, key_id = shown_id(credentials.key_id()), "credentials rotated");
        *lock(&self.caller.credentials) = credentials;
        self.caller.refusals.forget();
        #[cfg(feature = "app-attest")]
        self.receipt_caller.refusals.forget();
        Ok(())
    }
}

fn parsed(body: &[u8]) -> Result<Bits, VerifyError> {
    read_bits(body).ok_or_else(|| VerifyError::unavailable("the answer to a query of bits cannot be parsed"))
}

impl fmt::Debug for AppleClient {
    // Omits the transport, which may be a closure and need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let caller = &self.caller;
        f.debug_struct("AppleClient")
            .field("credentials", &caller.credentials())
            .field("production", &format_args!("{}", quoted(&caller.production.validate.to_string())))
            .field("development", &format_args!("{}", quoted(&caller.development.validate.to_string())))
            .field("attempt_timeout", &caller.attempt_timeout)
            .field("total_timeout", &caller.total_timeout)
            .field("retry", &caller.retry)
            .finish_non_exhaustive()
    }
}
