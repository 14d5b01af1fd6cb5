//! Challenges: random texts that this server knows as its own, without a store.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 4 | number of the key |
//! | 5 | 4 | expires, Unix seconds |
//! | 9 | 16 | random |
//! | 25 | 16 | the first half of an HMAC-SHA-256 over a label, the purpose, bytes 0 to 24, and the tenant |
//!
//! Numbers have their most significant byte first. The text is base64url without padding: 55 characters.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::BoxError;
use crate::gate::credential::TokenDigest;
use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::error::impl_error;
use crate::gate::rejection::Rejection;
use crate::replay::{Claim, ErasedReplayGuard, ReplayGuard, ReplayKey, admit_once, owner::Owner};
use crate::runtime::{SystemTime, since_epoch, wall_clock};

const VERSION: u8 = 1;
const SIGNED: usize = 25;
const LENGTH: usize = 41;
const TEXT_LENGTH: usize = 55;
const LABEL: &[u8] = b"tower-devicecheck/challenge/v1\0";
const DEFAULT_LIFETIME: Duration = Duration::from_secs(5 * 60);
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// The use that a challenge is made for. A challenge for one is none for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChallengePurpose {
    /// To attest a key.
    Attestation,
    /// To make an assertion.
    Assertion,
}

impl ChallengePurpose {
    const fn number(self) -> u8 {
        match self {
            Self::Attestation => 1,
            Self::Assertion => 2,
        }
    }
}

/// A secret of 32 bytes, and its number. Challenges are authenticated with it. A key is wiped on drop; `Debug` shows only
/// the number.
///
/// As text, a key is its number, a colon and its secret, in lower-case hexadecimal digits, as the keys of sessions are:
///
/// ```sh
/// echo "$(openssl rand -hex 4):$(openssl rand -hex 32)"
/// ```
#[derive(Clone)]
pub struct ChallengeKey {
    number: u32,
    /// hmac and sha2 wipe it on drop.
    mac: Hmac<Sha256>,
}

impl ChallengeKey {
    /// Makes a key from 32 random bytes. The number is not a secret: each challenge holds it. The caller must wipe the bytes
    /// that it passed in.
    #[must_use]
    pub fn new(number: u32, secret: [u8; 32]) -> Self {
        let secret = Zeroizing::new(secret);
        // A whole block, so that there is no length to be wrong. HMAC itself adds the same zeros to a shorter key.
        let mut block = Zeroizing::new([0; 64]);
        block[..32].copy_from_slice(&*secret);
        Self { number, mac: Hmac::new((&*block).into()) }
    }

    /// Makes a random key, for tests and for a single server, whose clients ask again after a restart.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system gives no random bytes.
    pub fn random() -> Result<Self, ChallengeError> {
        let (mut number, mut secret) = ([0; 4], Zeroizing::new([0; 32]));
        getrandom::fill(&mut number).map_err(ChallengeError::of_system)?;
        getrandom::fill(&mut *secret).map_err(ChallengeError::of_system)?;
        Ok(Self::new(u32::from_be_bytes(number), *secret))
    }

    /// The number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    fn signing(&self, tenant: &str, purpose: ChallengePurpose, signed: &[u8]) -> Hmac<Sha256> {
        let mac = self.mac.clone().chain_update(LABEL).chain_update([purpose.number()]);
        mac.chain_update(signed).chain_update(tenant)
    }
}

impl FromStr for ChallengeKey {
    type Err = ChallengeError;

    fn from_str(text: &str) -> Result<Self, ChallengeError> {
        let key = text.split_once(':').and_then(|(number, secret)| {
            let mut bytes = Zeroizing::new([0; 32]);
            for (place, byte) in bytes.iter_mut().enumerate() {
                *byte = u8::try_from(from_hex(secret, place * 2, 2)?).ok()?;
            }
            (number.len() == 8 && secret.len() == 64).then_some((from_hex(number, 0, 8)?, bytes))
        });
        let fault = "not 8 hexadecimal digits, a colon and 64 hexadecimal digits, all lower-case";
        let (number, secret) = key.ok_or_else(|| ChallengeError::new(fault))?;
        Ok(Self::new(number, *secret))
    }
}

/// The number that these lower-case hexadecimal digits are.
fn from_hex(text: &str, from: usize, length: usize) -> Option<u32> {
    let digits = text.as_bytes().get(from..from + length)?;
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u32::from(digit))
    })
}

impl fmt::Debug for ChallengeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChallengeKey")
            .field("number", &format_args!("{:08x}", self.number))
            .finish_non_exhaustive()
    }
}

/// The challenges of a server: made without a store, checked by arithmetic, and each good for one use.
///
/// A [`ChallengeEndpoint`](crate::app_attest::ChallengeEndpoint) issues them. A challenge is 55 characters, bound to one
/// tenant and one [purpose](ChallengePurpose), and good for 5 minutes. All servers share the keys, and the guard that
/// remembers the challenges that were used:
///
/// ```
/// use tower_devicecheck::app_attest::{ChallengeKey, ChallengePurpose, Challenges};
/// use tower_devicecheck::replay::MemoryReplayGuard;
///
/// # fn challenges() -> Result<(), Box<dyn std::error::Error>> {
/// let challenges = Challenges::new(ChallengeKey::random()?, MemoryReplayGuard::new());
/// let challenge = challenges.issue("", ChallengePurpose::Attestation)?;
/// assert_eq!(challenge.len(), 55);
/// # Ok(())
/// # }
/// # challenges().unwrap();
/// ```
///
/// # Rotation
///
/// A challenge is known only where its key is. Give the new key to all servers with
/// [`add_verifying`](Self::add_verifying); then make it the first one everywhere; and after the lifetime of a challenge,
/// remove the old one.
#[derive(Clone)]
#[must_use]
pub struct Challenges {
    /// The first one signs.
    keys: Vec<ChallengeKey>,
    guard: Arc<dyn ErasedReplayGuard>,
    lifetime: Duration,
}

/// A challenge of ours that is not over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Presented(TokenDigest);

impl Challenges {
    /// Makes challenges with this key. All replicas must share the guard, and it must remember what was used for longer
    /// than a challenge lives, as the guards of this crate do by default.
    pub fn new(key: ChallengeKey, guard: impl ReplayGuard) -> Self {
        Self { keys: vec![key], guard: Arc::new(guard), lifetime: DEFAULT_LIFETIME }
    }

    /// Adds a key that only verifies. Each key has another number: of two with one number, only the first verifies.
    pub fn add_verifying(mut self, key: ChallengeKey) -> Self {
        self.keys.push(key);
        self
    }

    /// Sets the life of a challenge, from 1 second to 1 hour. Default: 5 minutes.
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime.clamp(Duration::from_secs(1), LONGEST);
        self
    }

    /// The life of a challenge.
    #[must_use]
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Issues a challenge for a tenant; for no tenant, if the name is empty. Costs one HMAC.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system gives no random bytes.
    pub fn issue(&self, tenant: &str, purpose: ChallengePurpose) -> Result<String, ChallengeError> {
        self.issue_at(tenant, purpose, wall_clock())
    }

    fn issue_at(
        &self,
        tenant: &str,
        purpose: ChallengePurpose,
        now: SystemTime,
    ) -> Result<String, ChallengeError> {
        let key = self.keys.first().ok_or_else(|| ChallengeError::new("no key"))?;
        let expires = u32::try_from((since_epoch(now) + self.lifetime).as_secs()).unwrap_or(u32::MAX);
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(ChallengeError::of_system)?;
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.push(VERSION);
        bytes.extend(key.number.to_be_bytes());
        bytes.extend(expires.to_be_bytes());
        bytes.extend(random);
        let tag = key.signing(tenant, purpose, &bytes).finalize().into_bytes();
        bytes.extend(&tag[..LENGTH - SIGNED]);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Checks that a text is a challenge of ours, for this tenant and purpose, and not over. The authenticator is compared
    /// in constant time.
    pub(super) fn check(
        &self,
        tenant: &str,
        purpose: ChallengePurpose,
        text: &[u8],
        now: SystemTime,
    ) -> Result<Presented, Rejected> {
        let mut bytes = [0; LENGTH];
        let is_whole = text.len() == TEXT_LENGTH
            && URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).is_ok_and(|length| length == LENGTH);
        let (signed, tag) = bytes.split_at(SIGNED);
        let [VERSION, number @ .., _, _, _, _] = &signed[..9] else { return Err(refused("not a challenge")) };
        if !is_whole {
            return Err(refused("not a challenge"));
        }
        let number = number.try_into().map_or(0, u32::from_be_bytes);
        let key = self.keys.iter().find(|key| key.number == number);
        let key = key.ok_or_else(|| refused("unknown key of a challenge"))?;
        if key.signing(tenant, purpose, signed).verify_truncated_left(tag).is_err() {
            return Err(refused("forged challenge, or for another tenant or purpose"));
        }
        let expires = signed[5..9].try_into().map_or(0, u32::from_be_bytes);
        if since_epoch(now).as_secs() >= u64::from(expires) {
            return Err(refused("challenge expired"));
        }
        Ok(Presented(TokenDigest::of(text)))
    }

    /// Reserves a challenge, runs the check, and spends the challenge if it succeeds. A fault of the server gives the
    /// challenge back.
    pub(super) async fn once(
        &self,
        tenant: &str,
        challenge: Presented,
        check: impl Future<Output = Result<VerifiedDevice, Rejected>>,
    ) -> Result<VerifiedDevice, Rejected> {
        let scope = format!("app-attest:{tenant}");
        let claim = Claim::new(Owner::random());
        admit_once(&self.guard, ReplayKey::new(&scope, challenge.0), &claim, true, check).await
    }
}

fn refused(reason: &'static str) -> Rejected {
    Rejected::from(Rejection::RefusedToken).with_reason(reason)
}

impl fmt::Debug for Challenges {
    // A guard need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenges")
            .field("keys", &self.keys)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// The error of a challenge that could not be made, or of a key that cannot be used. The text holds no secret.
#[derive(Debug)]
pub struct ChallengeError {
    source: BoxError,
}

impl ChallengeError {
    fn new(source: impl Into<BoxError>) -> Self {
        Self { source: source.into() }
    }

    fn of_system(error: getrandom::Error) -> Self {
        Self::new(format!("the operating system gives no random bytes: {error}"))
    }
}

impl_error!(ChallengeError, |error| Some(&*error.source), "no challenge can be made");

#[cfg(test)]
mod tests {
    use web_time::UNIX_EPOCH;

    use super::*;
    use crate::replay::MemoryReplayGuard;

    fn key(number: u32) -> ChallengeKey {
        ChallengeKey::new(number, [7; 32])
    }

    fn challenges(number: u32) -> Challenges {
        Challenges::new(key(number), MemoryReplayGuard::new())
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_790_000_000 + seconds)
    }

    #[test]
    fn a_challenge_is_good_for_its_tenant_purpose_key_and_time_only() {
        use ChallengePurpose::{Assertion, Attestation};
        let text = challenges(1).issue_at("a", Attestation, at(0)).unwrap();
        assert_eq!(text.len(), TEXT_LENGTH);
        let rotated = challenges(2).add_verifying(key(1));
        type Case<'a> = (&'a str, &'a Challenges, &'a str, ChallengePurpose, u64, Option<&'a str>);
        let ours = challenges(1);
        let other_secret = Challenges::new(ChallengeKey::new(1, [8; 32]), MemoryReplayGuard::new());
        let forged = Some("forged challenge, or for another tenant or purpose");
        let cases: [Case<'_>; 9] = [
            ("at once", &ours, "a", Attestation, 0, None),
            ("at the end", &ours, "a", Attestation, 299, None),
            ("after a rotation", &rotated, "a", Attestation, 1, None),
            ("over", &ours, "a", Attestation, 300, Some("challenge expired")),
            ("of another tenant", &ours, "b", Attestation, 0, forged),
            ("of no tenant", &ours, "", Attestation, 0, forged),
            ("for another purpose", &ours, "a", Assertion, 0, forged),
            ("by another secret", &other_secret, "a", Attestation, 0, forged),
            ("by an unknown key", &challenges(2), "a", Attestation, 0, Some("unknown key of a challenge")),
        ];
        for (name, by, tenant, purpose, seconds, reason) in cases {
            let answer = by.check(tenant, purpose, text.as_bytes(), at(seconds));
            assert_eq!(answer.as_ref().err().and_then(Rejected::reason), reason, "{name}");
            let rejection = answer.err().map(|rejected| rejected.rejection());
            assert_eq!(rejection, reason.map(|_| Rejection::RefusedToken), "{name}");
        }
        let other = challenges(1).issue_at("a", Attestation, at(0)).unwrap();
        assert_ne!(text, other);
    }

    #[test]
    fn any_change_to_a_challenge_is_refused() {
        let ours = challenges(1);
        let text = ours.issue_at("", ChallengePurpose::Assertion, at(0)).unwrap();
        let check = |text: &[u8]| ours.check("", ChallengePurpose::Assertion, text, at(0)).is_ok();
        assert!(check(text.as_bytes()));
        for place in 0..text.len() {
            for other in [b'A', b'B', b'_', b'=', b' ', 0xff] {
                let mut changed = text.clone().into_bytes();
                changed[place] = other;
                assert!(changed == text.as_bytes() || !check(&changed), "{place}");
            }
        }
        for changed in ["", "A", &text[1..], &format!("{text}A"), &format!("{text}=")] {
            assert!(!check(changed.as_bytes()), "{changed}");
        }
    }

    #[test]
    fn keys_as_text() {
        let secret = "0123456789abcdef".repeat(4);
        let parsed: ChallengeKey = format!("0a0b0c0d:{secret}").parse().unwrap();
        assert_eq!(parsed.number(), 0x0a0b_0c0d);
        assert_eq!(format!("{parsed:?}"), "ChallengeKey { number: 0a0b0c0d, .. }");
        for text in ["", ":", "0a0b0c0d", "0A0b0c0d:", &format!("0a0b0c0d:{secret}0"), &format!("a:{secret}")]
        {
            let error = text.parse::<ChallengeKey>().unwrap_err();
            assert!(!format!("{error:?}").contains(&secret), "{text}");
        }
    }
}
