//! Evidence that an assertion was made for this request, and not kept from another one.

use std::{fmt, time::Duration};

use http::{HeaderName, HeaderValue, request};

use crate::app_attest::challenge::{ChallengePurpose, Challenges, Presented};
use crate::gate::decision::Rejected;
use crate::gate::proof::Facts;
use crate::gate::rejection::{MalformedToken, Rejection};
use crate::gate::tenant::name::TenantName;
use crate::runtime::since_epoch;
#[cfg(feature = "session")]
use crate::session::{Companion, SessionProof, Sessions};

pub(super) const CHALLENGE: HeaderName = HeaderName::from_static("x-app-attest-challenge");
pub(super) const TIME: HeaderName = HeaderName::from_static("x-app-attest-time");
#[cfg(feature = "session")]
const SESSION: HeaderName = HeaderName::from_static("x-device-session");
const DEFAULT_TOLERANCE: Duration = Duration::from_secs(120);

/// The way in which a request shows that its assertion is fresh. The text of the header must be part of what the app
/// [signs](crate::app_attest::ClientData). In every mode, the counter of the key makes an assertion count once.
#[derive(Clone)]
#[must_use]
pub struct Freshness(Mode);

#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one for each layer")]
enum Mode {
    Challenge(Challenges),
    Time(Duration),
    #[cfg(feature = "session")]
    Session(Box<SessionProof>),
}

/// A header of freshness that has been checked.
pub(super) enum Fresh {
    Challenge(Presented),
    Time,
    #[cfg(feature = "session")]
    Session(Companion),
}

impl Freshness {
    /// A challenge of this server in `X-App-Attest-Challenge`, each for one request. This is Apple's way, and costs the
    /// client a round trip before each request.
    pub const fn challenge(challenges: Challenges) -> Self {
        Self(Mode::Challenge(challenges))
    }

    /// The time in `X-App-Attest-Time`: Unix seconds in decimal digits, within 120 seconds of this server's clock. It needs
    /// no round trip, but a device whose clock is right.
    ///
    /// # Danger
    ///
    /// If the store loses its counters, an assertion that was captured in the last 2 minutes counts once more.
    pub const fn time() -> Self {
        Self::time_within(DEFAULT_TOLERANCE)
    }

    /// The same as [`time`](Self::time), within this much of the server's clock, in whole seconds.
    pub const fn time_within(tolerance: Duration) -> Self {
        Self(Mode::Time(tolerance))
    }

    /// A [session](crate::session) in `X-Device-Session`, which this proof checks and takes away. It needs no round trip
    /// and no clock. A session that a key has bought counts beside assertions of this key only. Sessions with limited use
    /// are refused.
    ///
    /// Leave [`with_sessions`](crate::DeviceCheckLayer::with_sessions) off the layer, or a request without an assertion is
    /// admitted by its session alone.
    #[cfg(feature = "session")]
    #[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "session")))]
    pub fn session(sessions: Sessions) -> Self {
        Self(Mode::Session(Box::new(SessionProof::new(sessions))))
    }

    /// The header whose text is signed.
    pub(super) const fn header(&self) -> HeaderName {
        match &self.0 {
            Mode::Challenge(_) => CHALLENGE,
            Mode::Time(_) => TIME,
            #[cfg(feature = "session")]
            Mode::Session(_) => SESSION,
        }
    }

    pub(super) fn check(
        &self,
        text: &HeaderValue,
        head: &request::Parts,
        facts: &Facts,
    ) -> Result<Fresh, Rejected> {
        let _ = head;
        match &self.0 {
            Mode::Challenge(challenges) => {
                let tenant = facts.tenant().map_or("", TenantName::as_str);
                let purpose = ChallengePurpose::Assertion;
                challenges.check(tenant, purpose, text.as_bytes(), facts.now()).map(Fresh::Challenge)
            }
            Mode::Time(tolerance) => {
                let time = seconds(text.as_bytes()).ok_or(Rejection::from(MalformedToken::NotCanonical))?;
                let apart = time.abs_diff(since_epoch(facts.now()).as_secs());
                if apart > tolerance.as_secs() {
                    return Err(Rejected::from(Rejection::RefusedToken)
                        .with_reason("the time is too far from the server's clock"));
                }
                Ok(Fresh::Time)
            }
            #[cfg(feature = "session")]
            Mode::Session(proof) => proof.check_companion(text.as_bytes(), head, facts).map(Fresh::Session),
        }
    }

    /// The challenges, if this is their mode.
    pub(super) const fn challenges(&self) -> Option<&Challenges> {
        match &self.0 {
            Mode::Challenge(challenges) => Some(challenges),
            _ => None,
        }
    }
}

/// The only spelling of a number: digits, and no zero before others.
fn seconds(text: &[u8]) -> Option<u64> {
    let is_canonical =
        text.iter().all(u8::is_ascii_digit) && text.first().is_some_and(|first| *first != b'0');
    std::str::from_utf8(text).ok().filter(|_| is_canonical && text.len() <= 12)?.parse().ok()
}

impl fmt::Debug for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Mode::Challenge(challenges) => f.debug_tuple("Challenge").field(challenges).finish(),
            Mode::Time(tolerance) => f.debug_tuple("Time").field(tolerance).finish(),
            #[cfg(feature = "session")]
            Mode::Session(proof) => f.debug_tuple("Session").field(proof).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_one_spelling() {
        assert_eq!(seconds(b"1790000000"), Some(1_790_000_000));
        for text in
            ["", "0", "01790000000", "+1790000000", "-1", "1.5", " 1", "1e9", "1790000000000", "\u{661}"]
        {
            assert_eq!(seconds(text.as_bytes()), None, "{text}");
        }
    }
}
