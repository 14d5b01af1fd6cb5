//! The metadata of a client part.

use std::{fmt, str::FromStr, time::Duration};

use web_time::UNIX_EPOCH;

use crate::runtime::{SystemTime, millis, since_epoch};
use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};

/// A way to split a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Version {
    /// Version 1, the format of Proxed.AI, for migration: the key is cut in two, and each part holds the characters
    /// that the other lacks.
    ///
    /// # Danger
    ///
    /// Each part reveals its characters of the key.
    Cut,
    /// Version 2, the default: the key is sealed, and the client part opens it. Either part alone reveals
    /// nothing.
    #[default]
    Sealed,
}

impl Version {
    /// 1 or 2.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Cut => 1,
            Self::Sealed => 2,
        }
    }

    const fn from_number(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Cut),
            2 => Some(Self::Sealed),
            _ => None,
        }
    }
}

/// The version's number.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// The name of one split within its project: 8 lower-case hexadecimal digits. Not a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SplitId(u32);

impl SplitId {
    /// Makes the id with this number.
    pub(super) const fn new(number: u32) -> Self {
        Self(number)
    }
}

impl fmt::Display for SplitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for SplitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SplitId({self})")
    }
}

impl FromStr for SplitId {
    type Err = SplitKeyError;

    fn from_str(text: &str) -> Result<Self, SplitKeyError> {
        if text.len() != 8 {
            return Err(SplitKeyErrorKind::Malformed.into());
        }
        let number = hex(text.as_bytes()).and_then(|number| u32::try_from(number).ok());
        number.map(Self).ok_or(SplitKeyErrorKind::Malformed.into())
    }
}

/// The metadata at the end of a client part, in lower-case hexadecimal: version (8 digits), creation time (16 digits,
/// milliseconds since 1970; in an old form 8 digits, seconds) and split id (8 digits). Not a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Metadata {
    version: Version,
    time: CreationTime,
    split: SplitId,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum CreationTime {
    Millis(u64),
    Seconds(u32),
}

impl Metadata {
    pub(super) fn new(version: Version, created: SystemTime, split: SplitId) -> Self {
        Self { version, time: CreationTime::Millis(millis(since_epoch(created))), split }
    }

    /// The version of the split.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The time at which the key was split, by the clock of the machine that split it. If the platform's clock cannot
    /// express the time, this is the Unix epoch.
    #[must_use]
    pub fn created(&self) -> SystemTime {
        let since_epoch = match self.time {
            CreationTime::Millis(millis) => Duration::from_millis(millis),
            CreationTime::Seconds(seconds) => Duration::from_secs(seconds.into()),
        };
        UNIX_EPOCH.checked_add(since_epoch).unwrap_or(UNIX_EPOCH)
    }

    /// The name of the split within its project.
    #[must_use]
    pub const fn split(&self) -> SplitId {
        self.split
    }
}

impl FromStr for Metadata {
    type Err = SplitKeyError;

    /// Accepts one spelling of each value: lower case, with all leading zeros.
    fn from_str(text: &str) -> Result<Self, SplitKeyError> {
        let parse = || {
            let (version, rest) = text.as_bytes().split_at_checked(8)?;
            let (time, split) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
            let version = Version::from_number(hex(version)?)?;
            let split = SplitId(u32::try_from(hex(split)?).ok()?);
            let time = match time.len() {
                16 => CreationTime::Millis(hex(time)?),
                8 => CreationTime::Seconds(u32::try_from(hex(time)?).ok()?),
                _ => return None,
            };
            Some(Self { version, time, split })
        };
        parse().ok_or(SplitKeyErrorKind::Malformed.into())
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.version.number())?;
        match self.time {
            CreationTime::Millis(millis) => write!(f, "{millis:016x}")?,
            CreationTime::Seconds(seconds) => write!(f, "{seconds:08x}")?,
        }
        self.split.fmt(f)
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metadata({self})")
    }
}

/// Parses at most 16 lower-case hexadecimal digits.
fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number: u64, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing() {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        type Case = (&'static str, &'static str, Option<(Version, SystemTime, u32)>);
        let cases: &[Case] = &[
            (
                "of version 1",
                "00000001000001a2004e1d6f33d53640",
                Some((Version::Cut, at(0x01a2_004e_1d6f), 0x33d5_3640)),
            ),
            ("of version 2", "00000002000000000000000000000000", Some((Version::Sealed, at(0), 0))),
            (
                "seconds",
                "000000016744a3e133d53640",
                Some((Version::Cut, at(0x6744_a3e1 * 1000), 0x33d5_3640)),
            ),
            (
                "the end of time",
                "00000001fffffffffffffffff33d5364",
                Some((Version::Cut, at(u64::MAX), 0xf33d_5364)),
            ),
            ("version 0", "00000000000001a2004e1d6f33d53640", None),
            ("version 3", "00000003000001a2004e1d6f33d53640", None),
            ("upper case", "00000001000001A2004E1D6F33D53640", None),
            ("a sign", "+0000001000001a2004e1d6f33d53640", None),
            ("no digit", "0000000100000xa2004e1d6f33d53640", None),
            ("too short", "00000001000001a2004e1d6f33d5364", None),
            ("too long", "00000001000001a2004e1d6f33d536400", None),
            ("no time", "0000000133d53640", None),
            ("nothing", "", None),
            ("not ASCII", "00000001000001a2004e1d6f33d536é", None),
        ];
        for (name, text, expected) in cases {
            let metadata = text.parse::<Metadata>().ok();
            let found = metadata.map(|m| (m.version(), m.created(), m.split().0));
            assert_eq!(found, *expected, "{name}");
            if let Some(metadata) = metadata {
                assert_eq!(metadata.to_string(), *text, "{name}");
            }
        }
    }
}
