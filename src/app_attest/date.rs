//! Dates of certificates and receipts, as times since the Unix epoch; and back, for operators.

use std::time::Duration;

use crate::runtime::date;

/// A date of a certificate: UTCTime (tag 23) or GeneralizedTime (tag 24), as RFC 5280 limits them.
pub(super) fn certificate_date(tag: u32, text: &[u8]) -> Option<Duration> {
    let (year, rest) = match (tag, text.len()) {
        (23, 13) => {
            let year = number(&text[..2])?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (24, 15) => (number(&text[..4])?, &text[4..]),
        _ => return None,
    };
    let parts = rest.strip_suffix(b"Z")?;
    let part = |index: usize| number(parts.get(2 * index..2 * index + 2)?);
    since_epoch([year, part(0)?, part(1)?, part(2)?, part(3)?, part(4)?])
}

/// A date of a receipt: ISO 8601 in UTC, such as `2020-11-22T09:48:12.863Z`, with up to 9 digits of a second's fraction.
pub(super) fn receipt_date(text: &[u8]) -> Option<Duration> {
    let (seconds, fraction) = text.strip_suffix(b"Z")?.split_at_checked(19)?;
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.iter().any(|(index, separator)| seconds[*index] != *separator) {
        return None;
    }
    let part = |index: usize| number(&seconds[index..index + 2]);
    let whole = since_epoch([number(&seconds[..4])?, part(5)?, part(8)?, part(11)?, part(14)?, part(17)?])?;
    let nanoseconds = match fraction {
        [] => 0,
        [b'.', digits @ ..] if (1..=9).contains(&digits.len()) => {
            digits.iter().fold(number(digits)?, |value, _| value)
                * 10_u64.pow(9 - u32::try_from(digits.len()).ok()?)
        }
        _ => return None,
    };
    Some(whole + Duration::from_nanos(nanoseconds))
}

/// A time as ISO 8601 in whole seconds.
pub(super) fn shown(time: Duration) -> String {
    let seconds = time.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A number of at most 9 decimal digits.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| 10 * value + u64::from(digit - b'0')))
}

/// The time of year, month, day, hour, minute and second. `None` before 1970.
fn since_epoch([year, month, day, hour, minute, second]: [u64; 6]) -> Option<Duration> {
    if year < 1970 || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Years are counted from March here, so that a leap day is the last of its year.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day;
    let days = days.checked_sub(719_469)?;
    // A day that its month does not have, such as February 30, comes back as another one.
    (date(days) == (year, month, day))
        .then(|| Duration::from_secs(days * 86_400 + hour * 3_600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let of = |tag, text: &str| certificate_date(tag, text.as_bytes()).map(|time| time.as_secs());
        assert_eq!(of(23, "700101000000Z"), Some(0));
        assert_eq!(of(23, "240229235959Z"), Some(1_709_251_199));
        assert_eq!(of(24, "20500101000000Z"), Some(2_524_608_000));
        for other in [
            "230229000000Z",
            "241301000000Z",
            "2401010000Z",
            "240101000000",
            "24010100000+Z",
            "690101000000Z",
        ] {
            assert_eq!(of(23, other), None, "{other}");
        }
        let of = |text: &str| receipt_date(text.as_bytes()).map(|time| time.as_millis());
        assert_eq!(of("1970-01-01T00:00:01Z"), Some(1_000));
        assert_eq!(of("2020-11-22T09:48:12.863Z"), Some(1_606_038_492_863));
        assert_eq!(of("2020-11-22T09:48:12.86Z"), Some(1_606_038_492_860));
        for other in
            ["", "2020-11-22T09:48:12.Z", "2020-11-22 09:48:12Z", "2020-11-22T09:48:12.8630000000Z", "Z"]
        {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(shown(Duration::from_millis(1_606_038_492_863)), "2020-11-22T09:48:12Z");
    }
}
