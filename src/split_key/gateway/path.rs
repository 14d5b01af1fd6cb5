//! Segments of paths that mean the same to every server.

use crate::gate::path::name_of;

/// Whether a segment of a path means the same to everybody. Servers disagree about empty segments, about dots
/// before parameters (`..;x`, `..%3bx`), and about when to decode `%2e`, `%2f` and `%5c`, or `%25` before those.
pub(super) fn is_plain(segment: &str) -> bool {
    if matches!(name_of(segment), "" | "." | "..") {
        return false;
    }
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = match byte {
            b'\\' => return false,
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else { return false };
                high * 16 + low
            }
            _ => continue,
        };
        if matches!(decoded, 0x00..0x20 | 0x25 | 0x2e | 0x2f | 0x5c | 0x7f) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_before_an_encoded_end_are_not_plain() {
        for segment in ["", ".", "..", "..;x", "..%3bx", "..%3Bx", ".%3f", "..%23", ";x", "%3bx"] {
            assert!(!is_plain(segment), "{segment}");
        }
        for segment in ["a", "a;x", "a%3bx", "...", "..a%3b", ".a", "\u{e9}%3b"] {
            assert!(is_plain(segment), "{segment}");
        }
    }
}
