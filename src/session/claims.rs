//! The content of a session, and the part of it that a handler may see.

use std::{fmt, str::FromStr, time::Duration};

use sha2::{Digest, Sha256};
use web_time::UNIX_EPOCH;

use crate::gate::credential::TokenDigest;
use crate::gate::decision::VerifiedDevice;
use crate::gate::routing::Environment;
use crate::runtime::SystemTime;
use crate::session::error::SessionError;

/// The content of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) is_limited_use: bool,
    pub(super) environment: Environment,
    pub(super) bought_with: BoughtWith,
    /// Unix seconds.
    pub(super) issued: u32,
    /// Unix seconds.
    pub(super) expires: u32,
    pub(super) id: SessionId,
    /// Zero if the proof has no subject.
    pub(super) subject: [u8; 16],
    /// The hash of the header value to which the session is bound.
    pub(super) binding: Option<[u8; 16]>,
}

pub(super) const NO_SUBJECT: [u8; 16] = [0; 16];

/// The 16 bytes of a subject in a session. A subject of 32 lower-case hexadecimal digits is carried as it is, so that a
/// handler sees the same subject under both proofs. Any other subject is hashed.
pub(super) fn subject_bytes(subject: Option<&str>) -> [u8; 16] {
    let Some(subject) = subject else { return NO_SUBJECT };
    from_hex(subject).unwrap_or_else(|| shortened(subject.as_bytes()))
}

/// The first half of a SHA-256.
pub(super) fn shortened(text: &[u8]) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(text).into();
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

pub(super) fn time(seconds: u32) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::from(seconds))
}

/// The proof that bought a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BoughtWith {
    /// A device token.
    DeviceCheck,
    /// An attestation or assertion of App Attest.
    AppAttest,
    /// A debug token. There is no device.
    DebugToken,
    /// A verdict of Google's Play Integrity.
    PlayIntegrity,
}

impl BoughtWith {
    /// One lower-case word: `device-check`, `app-attest`, `debug-token` or `play-integrity`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DeviceCheck => "device-check",
            Self::AppAttest => "app-attest",
            Self::DebugToken => "debug-token",
            Self::PlayIntegrity => "play-integrity",
        }
    }

    #[cfg(feature = "jwt")]
    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::DeviceCheck, Self::AppAttest, Self::DebugToken, Self::PlayIntegrity]
            .into_iter()
            .find(|bought_with| bought_with.as_str() == word)
    }

    pub(super) const fn number(self) -> u8 {
        match self {
            Self::DeviceCheck => 0,
            Self::AppAttest => 1,
            Self::DebugToken => 2,
            Self::PlayIntegrity => 3,
        }
    }

    pub(super) const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::DeviceCheck),
            1 => Some(Self::AppAttest),
            2 => Some(Self::DebugToken),
            3 => Some(Self::PlayIntegrity),
            _ => None,
        }
    }
}

/// The random name of a session. Not a secret: it opens nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// The digest by which a session is known to handlers, logs and replay guards.
    pub(super) fn digest(&self) -> TokenDigest {
        TokenDigest::of(&self.0)
    }

    /// The id's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl From<[u8; 16]> for SessionId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// Parses 32 lower-case hexadecimal digits, as `Display` writes them.
impl FromStr for SessionId {
    type Err = SessionError;

    fn from_str(text: &str) -> Result<Self, SessionError> {
        from_hex(text).map(Self).ok_or(SessionError::new("a session id has 32 lower-case hexadecimal digits"))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// The session with which a request came.
///
/// ```
/// use tower_devicecheck::{VerifiedDevice, session::Session};
///
/// /// Sign-out: the route revokes the session that it was called with.
/// async fn sign_out(device: &VerifiedDevice, sessions: &tower_devicecheck::session::Sessions) {
///     if let Some(session) = Session::of(device) {
///         // With grace, add it.
///         let revoked = sessions.revocations().revoke_session(session.id(), session.expires_at()).await;
///         // Report an error to the operator.
///         drop(revoked);
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    id: SessionId,
    expires: u32,
    bought_with: BoughtWith,
    is_limited_use: bool,
    is_degraded: bool,
}

impl Session {
    /// The session of a device, if the device was admitted by one.
    #[must_use]
    pub fn of(device: &VerifiedDevice) -> Option<Self> {
        let bytes = device.bytes()?;
        let (id, rest) = bytes.split_first_chunk()?;
        let (expires, rest) = rest.split_first_chunk()?;
        Some(Self {
            id: SessionId(*id),
            expires: u32::from_be_bytes(*expires),
            bought_with: BoughtWith::from_number(rest[0])?,
            is_limited_use: rest[1] != 0,
            is_degraded: rest[2] != 0,
        })
    }

    pub(super) const fn new(claims: &Claims, is_degraded: bool) -> Self {
        let Claims { id, expires, bought_with, is_limited_use, .. } = *claims;
        Self { id, expires, bought_with, is_limited_use, is_degraded }
    }

    /// The form that a [`VerifiedDevice`] carries, which [`of`](Self::of) reads.
    pub(super) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&self.id.0);
        bytes[16..20].copy_from_slice(&self.expires.to_be_bytes());
        bytes[20..23].copy_from_slice(&[
            self.bought_with.number(),
            u8::from(self.is_limited_use),
            u8::from(self.is_degraded),
        ]);
        bytes
    }

    /// The id, by which the session can be revoked.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// The end of the session, in whole seconds. The session began at
    /// [`VerifiedDevice::verified_at`](crate::VerifiedDevice::verified_at).
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        time(self.expires)
    }

    /// The proof that bought the session.
    #[must_use]
    pub const fn bought_with(&self) -> BoughtWith {
        self.bought_with
    }

    /// Whether the session admits one request only.
    #[must_use]
    pub const fn is_limited_use(&self) -> bool {
        self.is_limited_use
    }

    /// Whether the session is over, and was accepted only because Apple is known to be down: see
    /// [`SessionProof::with_grace`](crate::session::SessionProof::with_grace).
    #[must_use]
    pub const fn is_degraded(&self) -> bool {
        self.is_degraded
    }
}

/// Reads lower-case hexadecimal digits, two for each byte.
pub(super) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// The lower-case hexadecimal digits of 16 bytes.
pub(super) fn to_hex(bytes: &[u8; 16]) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}
