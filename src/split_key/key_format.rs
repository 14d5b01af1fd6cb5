//! The format of a provider's keys, and the characters that it makes public.

use std::ops::{Range, RangeInclusive};

use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
use crate::split_key::parts::{MAX_KEY_LENGTH, is_visible};

/// The texts that keys of one provider share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyFormat {
    /// Patterns, in which `#` stands for one digit and `@` for one or more letters. None: a key begins with anything.
    pub(super) prefixes: Vec<Box<str>>,
    pub(super) infixes: Vec<Box<str>>,
    pub(super) suffixes: Vec<Box<str>>,
}

impl KeyFormat {
    /// Finds the secret characters of a key. Returns `None` if the key does not have this format.
    pub(super) fn secrets(&self, key: &str) -> Option<Secrets> {
        let prefix = match &*self.prefixes {
            [] => 0,
            prefixes => prefixes.iter().filter_map(|pattern| matched(key, pattern)).max()?,
        };
        let mut secret = vec![true; key.len()];
        let mut publish =
            |range: Range<usize>| secret.get_mut(range).into_iter().for_each(|part| part.fill(false));
        publish(0..prefix);
        for infix in &self.infixes {
            key.match_indices(&**infix).for_each(|(at, text)| publish(at..at + text.len()));
        }
        for suffix in self.suffixes.iter().filter(|suffix| key.ends_with(&***suffix)) {
            publish(key.len() - suffix.len()..key.len());
        }
        let places: Vec<_> = (0..key.len()).filter(|at| secret[*at]).collect();
        (!places.is_empty()).then_some(Secrets(places))
    }
}

/// The places of a key's secret characters, in order.
pub(super) struct Secrets(Vec<usize>);

impl Secrets {
    /// The numbers of secret characters before and after a cut.
    pub(super) fn around(&self, cut: usize) -> (usize, usize) {
        let before = self.0.partition_point(|place| *place < cut);
        (before, self.0.len() - before)
    }

    /// The cuts that leave this many secret characters on both sides.
    pub(super) fn cuts_between(&self, count: usize) -> Option<RangeInclusive<usize>> {
        let last = self.0.len().checked_sub(count)?;
        let (first, last) = (self.0.get(count.checked_sub(1)?)? + 1, *self.0.get(last)?);
        (first <= last).then_some(first..=last)
    }
}

/// Checks that a text can be an API key at all.
pub(super) fn check_key(key: &str) -> Result<(), SplitKeyError> {
    if key.is_empty() || key.len() > MAX_KEY_LENGTH || !is_visible(key) {
        return Err(SplitKeyErrorKind::InvalidKey.into());
    }
    Ok(())
}

/// The length of the text at the beginning of the key that the pattern describes.
fn matched(key: &str, pattern: &str) -> Option<usize> {
    let mut rest = key.as_bytes();
    for expected in pattern.bytes() {
        let length = match expected {
            b'#' => usize::from(rest.first()?.is_ascii_digit()),
            b'@' => rest.iter().take_while(|byte| byte.is_ascii_alphabetic()).count(),
            _ => usize::from(*rest.first()? == expected),
        };
        rest = rest.get(length..).filter(|_| length > 0)?;
    }
    Some(key.len() - rest.len())
}
