//! The form of verdicts in Redis, and the seal that protects them.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use web_time::UNIX_EPOCH;

use crate::device_check::cache::{cached_verdict::CachedVerdict, verdict_key::VerdictKey};
use crate::gate::bits::{Bits, Month};
use crate::{apple::token::Verdict, runtime::millis};

/// The content of a value. In Redis: the version (1 byte), `G` or `R`, both times (8 bytes each, the most
/// significant first), the bits (4 bytes), and the seal (32 bytes).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StoredVerdict {
    pub(super) verdict: Verdict,
    /// Milliseconds since the Unix epoch.
    pub(super) checked_at: u64,
    /// Milliseconds since the Unix epoch.
    pub(super) expires_at: u64,
    pub(super) bits: Option<Bits>,
}

impl StoredVerdict {
    const VERSION: u8 = 2;
    const CONTENT_LENGTH: usize = 22;
    pub(super) const LENGTH: usize = Self::CONTENT_LENGTH + 32;

    /// Returns the verdict as of `now`, the time since the Unix epoch, unless it has expired.
    pub(super) fn at(&self, now: Duration, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        // A clock that is behind must not extend the time to live.
        let longest = self.expires_at.saturating_sub(self.checked_at);
        let left = self.expires_at.saturating_sub(millis(now)).min(longest);
        let checked_at = UNIX_EPOCH.checked_add(Duration::from_millis(self.checked_at))?;
        let left = (left > 0).then(|| Duration::from_millis(left))?;
        Some(CachedVerdict::new(self.verdict, key.digest(), checked_at, left).with_bits(self.bits))
    }
}

/// No bits: zeros. Otherwise 4, plus 1 for the first bit and 2 for the second; the year in two bytes; the month, 0 if the
/// bits were never set.
fn bytes_of(bits: Option<Bits>) -> [u8; 4] {
    let Some(bits) = bits else { return [0; 4] };
    let flags = 4 | u8::from(bits.bit0()) | u8::from(bits.bit1()) << 1;
    let (year, month) = bits.last_update().map_or((0, 0), |update| (update.year(), update.month()));
    let [high, low] = year.to_be_bytes();
    [flags, high, low, month]
}

fn bits_of([flags, high, low, month]: [u8; 4]) -> Option<Option<Bits>> {
    let last_update = match month {
        0 => None,
        _ => Some(Month::new(u16::from_be_bytes([high, low]), month)?),
    };
    match flags {
        0 => Some(None),
        4..8 => Some(Some(Bits::new(flags & 1 != 0, flags & 2 != 0, last_update))),
        _ => None,
    }
}

/// Binds a value to its key and, with a secret, to the replicas that know it.
#[derive(Clone)]
pub(super) struct Seal(Hmac<Sha256>);

impl Seal {
    pub(super) fn new(secret: &[u8]) -> Self {
        #[allow(clippy::expect_used, reason = "HMAC takes keys of any length")]
        Self(Hmac::new_from_slice(secret).expect("any length"))
    }

    /// All parts except the scope have fixed lengths, and the scope comes last.
    fn over(&self, key: &VerdictKey<'_>, content: &[u8]) -> Hmac<Sha256> {
        self.0
            .clone()
            .chain_update(b"tower-devicecheck verdict")
            .chain_update(content)
            .chain_update([key.letter()])
            .chain_update(key.digest().as_bytes())
            .chain_update(key.scope())
    }

    pub(super) fn close(&self, key: &VerdictKey<'_>, value: &StoredVerdict) -> [u8; StoredVerdict::LENGTH] {
        let mut bytes = [0; StoredVerdict::LENGTH];
        bytes[0] = StoredVerdict::VERSION;
        bytes[1] = match value.verdict {
            Verdict::Genuine => b'G',
            Verdict::Refused => b'R',
        };
        bytes[2..10].copy_from_slice(&value.checked_at.to_be_bytes());
        bytes[10..18].copy_from_slice(&value.expires_at.to_be_bytes());
        bytes[18..StoredVerdict::CONTENT_LENGTH].copy_from_slice(&bytes_of(value.bits));
        let seal = self.over(key, &bytes[..StoredVerdict::CONTENT_LENGTH]).finalize().into_bytes();
        bytes[StoredVerdict::CONTENT_LENGTH..].copy_from_slice(&seal);
        bytes
    }

    /// Opens a value that was sealed under this key with this secret. Returns `None` for anything else.
    pub(super) fn open(&self, key: &VerdictKey<'_>, bytes: &[u8]) -> Option<StoredVerdict> {
        let bytes: &[u8; StoredVerdict::LENGTH] = bytes.try_into().ok()?;
        let (content, seal) = bytes.split_first_chunk::<{ StoredVerdict::CONTENT_LENGTH }>()?;
        self.over(key, content).verify_slice(seal).ok()?;
        let [StoredVerdict::VERSION, verdict, rest @ ..] = content else { return None };
        let verdict = match verdict {
            b'G' => Verdict::Genuine,
            b'R' => Verdict::Refused,
            _ => return None,
        };
        let (checked_at, rest) = rest.split_first_chunk::<8>()?;
        let (expires_at, bits) = rest.split_first_chunk::<8>()?;
        Some(StoredVerdict {
            verdict,
            checked_at: u64::from_be_bytes(*checked_at),
            expires_at: u64::from_be_bytes(*expires_at),
            bits: bits_of(bits.try_into().ok()?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{apple::token::DeviceToken, gate::routing::Environment};

    fn value() -> StoredVerdict {
        let bits = Some(Bits::new(true, false, Month::new(2026, 4)));
        StoredVerdict { verdict: Verdict::Genuine, checked_at: 1_000, expires_at: 301_000, bits }
    }

    #[test]
    fn bits_survive() {
        let month = Month::new(9_999, 12);
        assert_eq!(bits_of(bytes_of(None)), Some(None));
        for (bit0, bit1) in [(false, false), (true, false), (false, true), (true, true)] {
            for last_update in [None, month, Month::new(0, 1)] {
                let bits = Bits::new(bit0, bit1, last_update);
                assert_eq!(bits_of(bytes_of(Some(bits))), Some(Some(bits)));
            }
        }
        for bytes in [[1, 0, 0, 0], [8, 0, 0, 0], [4, 0, 0, 13], [4, 255, 255, 1]] {
            assert_eq!(bits_of(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_value_opens_under_its_key_and_secret_only() {
        let token: DeviceToken = "AgAA".parse().unwrap();
        let other: DeviceToken = "AgAB".parse().unwrap();
        let key = VerdictKey::new("TEAM", Environment::Production, &token);
        for secret in [&b""[..], b"secret"] {
            let seal = Seal::new(secret);
            let bytes = seal.close(&key, &value());
            assert_eq!(seal.open(&key, &bytes), Some(value()));

            assert_eq!(Seal::new(b"another").open(&key, &bytes), None);
            assert_eq!(seal.open(&key.for_marks(true), &bytes), None);
            for (scope, environment, token) in [
                ("TEAN", Environment::Production, &token),
                ("TEAM", Environment::Development, &token),
                ("TEAM", Environment::Production, &other),
            ] {
                assert_eq!(seal.open(&VerdictKey::new(scope, environment, token), &bytes), None);
            }
            for index in 0..bytes.len() {
                let mut changed = bytes;
                changed[index] ^= 1;
                assert_eq!(seal.open(&key, &changed), None, "byte {index}");
                assert_eq!(seal.open(&key, &bytes[..index]), None, "{index} bytes");
            }
            assert_eq!(seal.open(&key, &[&bytes[..], b"!"].concat()), None, "more bytes");
        }
    }

    #[test]
    fn time_to_live() {
        let token: DeviceToken = "AgAA".parse().unwrap();
        let key = VerdictKey::new("TEAM", Environment::Production, &token);
        let cases: &[(&str, u64, Option<u64>)] = &[
            ("fresh", 1_000, Some(300_000)),
            ("later", 300_999, Some(1)),
            ("over", 301_000, None),
            ("long over", 999_999_999, None),
            ("a clock that is behind", 0, Some(300_000)),
        ];
        for (name, now, left) in cases {
            let found = value().at(Duration::from_millis(*now), &key);
            let expected = left.map(Duration::from_millis);
            assert_eq!(found.map(|verdict| verdict.time_to_live()), expected, "{name}");
        }
        let backwards = StoredVerdict { checked_at: 301_000, ..value() };
        assert_eq!(backwards.at(Duration::ZERO, &key), None, "checked after it ended");
        let endless = StoredVerdict { checked_at: u64::MAX, expires_at: u64::MAX, ..value() };
        assert_eq!(endless.at(Duration::ZERO, &key), None);
    }
}
