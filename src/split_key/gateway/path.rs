//! Segments of paths that mean the same to every server.

/// Whether a segment of a path means the same to everybody. Servers disagree about empty segments, about dots
/// with parameters (`..;x`), and about when to decode `%2e`, `%2f` and `%5c`, or `%25` before those.
pub(super) fn is_plain(segment: &str) -> bool {
    if matches!(segment.split(';').next(), None | Some("" | "." | "..")) {
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
