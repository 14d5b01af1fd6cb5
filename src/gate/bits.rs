//! The two bits that Apple keeps for a device and a team.

use std::{fmt, num::NonZeroU8};

use crate::runtime::{SystemTime, date, since_epoch};

/// The two bits that Apple keeps for each device and team. Apple gives them no meaning; you choose one.
///
/// All apps of a team share them. They survive deletion of the app and erasure of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bits {
    bit0: bool,
    bit1: bool,
    last_update: Option<Month>,
}

impl Bits {
    /// Makes bits, for a verifier of your own and for tests of a policy. `last_update` is the month in which a bit was
    /// last set; `None` if the bits were never set.
    #[must_use]
    pub const fn new(bit0: bool, bit1: bool, last_update: Option<Month>) -> Self {
        Self { bit0, bit1, last_update }
    }

    /// The first bit; `false` if it was never set.
    #[must_use]
    pub const fn bit0(&self) -> bool {
        self.bit0
    }

    /// The second bit; `false` if it was never set.
    #[must_use]
    pub const fn bit1(&self) -> bool {
        self.bit1
    }

    /// The month in which a bit was last set; `None` if the bits were never set.
    #[must_use]
    pub const fn last_update(&self) -> Option<Month> {
        self.last_update
    }

    /// The number of months from the last update to the month of `now`, in UTC: 0 within one month, 1 from the last day
    /// of a month to the first day of the next. 0 if the update is in the future, which a clock that is behind causes.
    /// `None` if the bits were never set.
    #[must_use]
    pub fn months_since_update(&self, now: SystemTime) -> Option<u32> {
        self.last_update.map(|update| Month::of(now).number().saturating_sub(update.number()))
    }
}

/// A month of a year, in the Gregorian calendar.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: u16,
    month: NonZeroU8,
}

impl Month {
    /// Makes a month. `None` if the year has more than four digits, or the month is not from 1 to 12.
    #[must_use]
    pub const fn new(year: u16, month: u8) -> Option<Self> {
        match NonZeroU8::new(month) {
            Some(number) if year <= 9_999 && month <= 12 => Some(Self { year, month: number }),
            _ => None,
        }
    }

    /// The month of this time, in UTC.
    fn of(time: SystemTime) -> Self {
        let (year, month, _) = date(since_epoch(time).as_secs() / (24 * 60 * 60));
        let last = Self { year: 9_999, month: NonZeroU8::MIN };
        let month = u16::try_from(year).ok().zip(u8::try_from(month).ok());
        month.and_then(|(year, month)| Self::new(year, month)).unwrap_or(last)
    }

    /// Reads `YYYY-MM`.
    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let are_digits = text.len() == 7 && text.bytes().filter(u8::is_ascii_digit).count() == 6;
        if !are_digits || year.len() != 4 {
            return None;
        }
        Self::new(year.parse().ok()?, month.parse().ok()?)
    }

    /// The year.
    #[must_use]
    pub const fn year(&self) -> u16 {
        self.year
    }

    /// The month of the year, from 1 to 12.
    #[must_use]
    pub const fn month(&self) -> u8 {
        self.month.get()
    }

    const fn number(self) -> u32 {
        self.year as u32 * 12 + self.month.get() as u32
    }
}

/// `YYYY-MM`.
impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl fmt::Debug for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use web_time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn months() {
        let cases = [
            ("2024-02", Some("2024-02")),
            ("0000-01", Some("0000-01")),
            ("9999-12", Some("9999-12")),
            ("2024-00", None),
            ("2024-13", None),
            ("2024-2", None),
            ("24-0002", None),
            ("+024-02", None),
            ("2024-+2", None),
            ("2024 02", None),
            ("20240-2", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let month = Month::read(text).map(|month| month.to_string());
            assert_eq!(month.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn months_since_the_update() {
        // Seconds since 1970, from `date -ud`.
        let (last_of_march, first_of_april) = (1_774_994_399, 1_775_001_600);
        let cases = [
            (None, first_of_april, None),
            (Month::new(2026, 4), first_of_april, Some(0)),
            (Month::new(2026, 3), last_of_march, Some(0)),
            (Month::new(2026, 3), first_of_april, Some(1)),
            (Month::new(2025, 12), first_of_april, Some(4)),
            (Month::new(2025, 3), last_of_march, Some(12)),
            (Month::new(2026, 5), first_of_april, Some(0)),
            (Month::new(9_999, 12), 0, Some(0)),
        ];
        for (last_update, seconds, expected) in cases {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            let bits = Bits::new(true, false, last_update);
            assert_eq!(bits.months_since_update(now), expected, "{last_update:?} {seconds}");
        }
    }

    #[test]
    fn bits_are_small() {
        assert!(size_of::<Option<Bits>>() <= 6);
    }
}
