//! The handle with which tests control the fake Apple.

use std::sync::{Arc, Mutex, MutexGuard};
use std::{fmt, time::Duration};

use http::request;

#[cfg(feature = "app-attest")]
use crate::testing::app_attest::FakeAttestCa;
use crate::testing::rules::{Apple, FakeDevice};
use crate::testing::script::{Fault, Reply};
use crate::testing::state::{CallCounts, FakeAppleState, Played};
use crate::testing::{endpoint::Endpoint, keys::PrivateKey, tokens::token_of_length};
use crate::{apple::Credentials, gate::routing::Environment, runtime::lock};

/// A fake of Apple's DeviceCheck for tests, in the process ([`transport`](Self::transport)) or on the loopback
/// interface ([`serve`](Self::serve)).
///
/// The fake knows one team, the team's keys, and the genuine device tokens of each environment. It verifies requests as
/// Apple does, keeps two bits per device, and counts calls. [`script`](Self::script), [`share`](Self::share) and
/// [`always`](Self::always) override its answers.
///
/// Clones are the same fake Apple. The [module's docs](crate::testing) have examples and a table of the
/// answers.
#[derive(Clone)]
pub struct FakeApple {
    shared: Arc<FakeAppleShared>,
}

struct FakeAppleShared {
    key: PrivateKey,
    team_id: Box<str>,
    key_id: Box<str>,
    state: Mutex<FakeAppleState>,
}

impl FakeApple {
    /// Makes a fake Apple that knows one new throw-away key, `KEY1234567` of the team `TEAM123456`, and no device
    /// token.
    ///
    /// # Panics
    ///
    /// Panics if the operating system gives no random bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::with_key(&PrivateKey::generate(), "TEAM123456", "KEY1234567")
    }

    /// Makes a fake Apple that knows the given key, for a server under test that has its own key.
    ///
    /// ```
    /// use tower_devicecheck::testing::{FakeApple, PrivateKey};
    ///
    /// # fn main() -> Result<(), tower_devicecheck::testing::InvalidKey> {
    /// # let pem = PrivateKey::generate().to_pem();
    /// let key = PrivateKey::from_pem(&pem)?; // the contents of the server's .p8 file
    /// let apple = FakeApple::with_key(&key, "A1B2C3D4E5", "F6G7H8I9J0");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_key(key: &PrivateKey, team_id: &str, key_id: &str) -> Self {
        let mut apple = Apple::new(team_id);
        apple.accept_key(key_id, key.verifying_key());
        Self {
            shared: Arc::new(FakeAppleShared {
                key: key.clone(),
                team_id: team_id.into(),
                key_id: key_id.into(),
                state: Mutex::new(FakeAppleState::new(apple)),
            }),
        }
    }

    /// The team id that this fake was made with.
    #[must_use]
    pub fn team_id(&self) -> &str {
        &self.shared.team_id
    }

    /// The id of the key that this fake was made with.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.shared.key_id
    }

    /// The key that this fake was made with.
    #[must_use]
    pub fn private_key(&self) -> &PrivateKey {
        &self.shared.key
    }

    /// Makes credentials that this fake accepts: its team, and the key that it was made with.
    ///
    /// # Panics
    ///
    /// Panics if the team id or the key id given to [`with_key`](Self::with_key) is not one that Apple could have made.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        #[allow(clippy::expect_used, reason = "see Panics")]
        Credentials::from_pem(self.team_id(), self.key_id(), &self.private_key().to_pem())
            .expect("the key is well-formed, and so are the ids of a fake Apple by default")
    }

    /// Accepts provider tokens of another key of the team. If the key id is known, the new key replaces the old one.
    pub fn accept_key(&self, key_id: &str, key: &PrivateKey) {
        self.state().apple.accept_key(key_id, key.verifying_key());
    }

    /// Refuses provider tokens of this key from now on, with status 401.
    pub fn revoke_key(&self, key_id: &str) {
        self.state().apple.revoke_key(key_id);
    }

    /// Makes a realistic token of a new device. As with Apple, it is genuine only in `environment`.
    ///
    /// Tokens alternately have 2,952 and 2,936 characters, because both lengths were seen in practice. The shorter ones
    /// end in padding.
    ///
    /// # Panics
    ///
    /// Panics if the operating system gives no random bytes.
    #[must_use]
    pub fn genuine_token(&self, environment: Environment) -> String {
        let token = self.forged_token();
        let mut state = self.state();
        let device = state.apple.new_device();
        state.apple.know(&token, device, environment);
        token
    }

    /// Makes a new token of the device that the test calls `device`. All tokens of a device read and write the same
    /// bits.
    ///
    /// # Panics
    ///
    /// Panics if the operating system gives no random bytes.
    #[must_use]
    pub fn genuine_token_of(&self, device: &str, environment: Environment) -> String {
        let token = self.forged_token();
        self.accept_token(&token, device, environment);
        token
    }

    /// Makes the given token a genuine token of `device` in `environment`, for tests with their own tokens.
    ///
    /// The text must be standard base64 with padding, as Apple receives a token.
    pub fn accept_token(&self, token: &str, device: &str, environment: Environment) {
        let device = FakeDevice::Named(device.into());
        self.state().apple.know(token, device, environment);
    }

    /// Makes a realistic token that this fake does not know: a forged token, or one of another team.
    ///
    /// # Panics
    ///
    /// Panics if the operating system gives no random bytes.
    #[must_use]
    pub fn forged_token(&self) -> String {
        let length = self.state().next_token_length();
        token_of_length(length)
    }

    /// Makes a genuine token expire. Apple refuses an expired token like a forged one.
    pub fn expire(&self, token: &str) {
        self.state().apple.forget(token);
    }

    /// Expires all tokens of the device that the test calls `device`. The device keeps its bits.
    pub fn expire_device(&self, device: &str) {
        self.state().apple.forget_device(&FakeDevice::Named(device.into()));
    }

    /// The bits of the device of a genuine token. `None` if they were never set, or if the token is not
    /// genuine.
    #[must_use]
    pub fn bits(&self, token: &str) -> Option<(bool, bool)> {
        self.state().apple.bits(token).map(|[bit0, bit1]| (bit0, bit1))
    }

    /// Exchanges receipts that this authority has signed for newer ones with this risk metric, from now on. Call it again
    /// to change the metric. Without this call, there are no data about any receipt (status 404).
    ///
    /// Unlike Apple, the fake does not check whether a receipt is due or has expired: [script](Self::script) the status
    /// 304 or 404 instead. A newer receipt has the time of the fake's clock.
    #[cfg(feature = "app-attest")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "app-attest")))]
    pub fn exchange_receipts(&self, ca: &FakeAttestCa, risk_metric: u32) {
        self.state().apple.receipts = Some((ca.clone(), risk_metric));
    }

    /// Sets the time for which tokens are genuine, including tokens made earlier. The time runs on tokio's clock, which
    /// tests can pause. Default: 2 minutes, which is less than the time for which the layer remembers a verdict.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.state().apple.token_lifetime = lifetime;
    }

    /// Sets Apple's clock ahead of the machine's, by whole seconds. One hour makes every provider token too old; two
    /// days make every time stamp wrong. Default: zero.
    pub fn set_clock_ahead(&self, ahead: Duration) {
        self.state().apple.clock_ahead = i64::try_from(ahead.as_secs()).unwrap_or(i64::MAX);
    }

    /// Sets Apple's clock behind the machine's, by whole seconds. A server with a fast clock sees the same. Apple then
    /// refuses provider tokens that were issued in its future. Default: zero.
    pub fn set_clock_behind(&self, behind: Duration) {
        self.state().apple.clock_ahead = i64::try_from(behind.as_secs()).map_or(i64::MIN, |behind| -behind);
    }

    /// Adds a reply to the queue. The reply answers one call: the next call to its [endpoint](Reply::for_endpoint) and
    /// [environment](Reply::for_environment).
    pub fn script(&self, reply: Reply) {
        self.state().script.push(reply);
    }

    /// Answers a share of the calls with the reply, from 0 (no call) to 1 (all calls). The queue has precedence.
    ///
    /// Calls are picked evenly, not at random: 0.25 picks every fourth call from now on. Each share has its own count.
    pub fn share(&self, fraction: f64, reply: Reply) {
        self.state().script.share(fraction, reply);
    }

    /// Answers every call with the reply. The queue and the shares have precedence.
    pub fn always(&self, reply: Reply) {
        self.state().script.always(reply);
    }

    /// Removes the queue, the shares and the reply to every call, so that the fake works normally again.
    pub fn clear(&self) {
        self.state().script.clear();
    }

    /// The number of replies that are still in the queue.
    #[cfg(test)]
    pub(super) fn scripted(&self) -> usize {
        self.state().script.pending()
    }

    /// The number of calls that have arrived, answered or not.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.state().counts.calls(|_, _| true)
    }

    /// The number of calls that have arrived for one endpoint.
    #[must_use]
    pub fn calls_to(&self, endpoint: Endpoint) -> usize {
        self.state().counts.calls(|_, to| to == Some(endpoint))
    }

    /// The number of calls that have arrived in one environment.
    #[must_use]
    pub fn calls_in(&self, environment: Environment) -> usize {
        self.state().counts.calls(|of, _| of == environment)
    }

    /// The number of different provider tokens that have arrived, valid or not.
    #[must_use]
    pub fn provider_tokens(&self) -> usize {
        self.state().counts.provider_tokens()
    }

    /// Sets the counts of calls and provider tokens to zero.
    pub fn reset_counts(&self) {
        self.state().counts = CallCounts::default();
    }

    /// Counts a call and picks the reply to it.
    pub(super) fn arrive(&self, environment: Environment, head: &request::Parts) -> Reply {
        self.state().arrive(environment, head)
    }

    /// Plays a reply. The fake judges the call before the delay, as if the answer travelled slowly.
    pub(super) async fn play(
        &self,
        reply: Reply,
        environment: Environment,
        head: &request::Parts,
        body: &[u8],
    ) -> Played {
        let response = self.state().respond(&reply, environment, head, body);
        if !reply.delay.is_zero() {
            tokio::time::sleep(reply.delay).await;
        }
        match reply.fault {
            None => Played::Whole(response),
            Some(Fault::CutShort) => Played::CutShort(response),
            Some(Fault::Reset) => Played::Reset,
            Some(Fault::Hang) => std::future::pending().await,
        }
    }

    fn state(&self) -> MutexGuard<'_, FakeAppleState> {
        lock(&self.shared.state)
    }
}

impl Default for FakeApple {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FakeApple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeApple")
            .field("team_id", &self.shared.team_id)
            .field("key_id", &self.shared.key_id)
            .field("calls", &self.calls())
            .finish_non_exhaustive()
    }
}
