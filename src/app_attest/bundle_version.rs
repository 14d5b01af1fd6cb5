//! The version of an app's build.

use std::{cmp::Ordering, fmt, str::FromStr};

use crate::app_attest::error::ObjectError;

const LONGEST: usize = 255;

/// The version of a build, `CFBundleVersion`, as the device says since iOS 27 and macOS 27.
///
/// Source: Apple, "Validating apps that connect to your server", on `apple_bundle_version_01`. Equality is that of the
/// texts; [`compare`](Self::compare) compares the numbers in them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BundleVersion(Box<str>);

impl BundleVersion {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Compares the versions number by number: `1.10` is greater than `1.9`, and `1.0` equals `1`.
    ///
    /// Returns `None` if one of the texts is not numbers with dots between them. Such a version is unknown.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        let (mine, theirs) = (self.numbers()?, other.numbers()?);
        let at = |numbers: &[&str], index: usize| {
            let number = numbers.get(index).copied().unwrap_or_default();
            // Without leading zeros, the longer number is the greater one.
            (number.len(), number.to_owned())
        };
        let length = mine.len().max(theirs.len());
        let unequal =
            (0..length).map(|index| at(&mine, index).cmp(&at(&theirs, index))).find(|order| order.is_ne());
        Some(unequal.unwrap_or(Ordering::Equal))
    }

    /// The numbers, without leading zeros.
    fn numbers(&self) -> Option<Vec<&str>> {
        let number = |part: &'_ str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        self.0.split('.').map(|part| number(part).then(|| part.trim_start_matches('0'))).collect()
    }
}

impl FromStr for BundleVersion {
    type Err = ObjectError;

    /// Takes a text of 1 to 255 bytes. Any other length is an error of the step `bundle_version`.
    fn from_str(text: &str) -> Result<Self, ObjectError> {
        if text.is_empty() || text.len() > LONGEST {
            return Err(ObjectError::malformed("bundle_version", "empty, or longer than 255 bytes"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for BundleVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let cases = [
            ("1314", "1314", Some(Ordering::Equal)),
            ("1314", "99", Some(Ordering::Greater)),
            ("1.9", "1.10", Some(Ordering::Less)),
            ("1", "1.0.0", Some(Ordering::Equal)),
            ("1.0.1", "1", Some(Ordering::Greater)),
            ("007", "7", Some(Ordering::Equal)),
            ("99999999999999999999999", "100000000000000000000000", Some(Ordering::Less)),
            ("1.0b2", "1.0", None),
            ("1..2", "1", None),
            ("1.", "1", None),
            ("-1", "1", None),
            ("١", "1", None),
        ];
        for (left, right, order) in cases {
            let [left, right]: [BundleVersion; 2] = [left, right].map(|text| text.parse().unwrap());
            assert_eq!(left.compare(&right), order, "{left} and {right}");
            assert_eq!(right.compare(&left), order.map(Ordering::reverse), "{right} and {left}");
        }
        assert!("".parse::<BundleVersion>().is_err() && "1".repeat(256).parse::<BundleVersion>().is_err());
    }
}
