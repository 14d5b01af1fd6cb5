//! Paths that mean the same to every server.

/// Whether all servers read a path in the same way. A path may have empty segments, which mean something everywhere.
pub(crate) fn is_plain(path: &str) -> bool {
    path.split('/').all(is_plain_segment)
}

/// Whether a segment of a path means the same to everybody. Servers disagree about:
///
/// * dots with anything that some of them cut off: `..;x`, `..%3bx`, `..%20`, `..%00`, `...`;
/// * when to decode `%2e`, `%2f` and `%5c`, or `%25` before those;
/// * escapes that are none, overlong UTF-8, and letters that some of them take for a dot or a slash.
pub(crate) fn is_plain_segment(segment: &str) -> bool {
    if let Some(rest) = segment.strip_prefix('.') {
        let rest = rest.trim_start_matches('.');
        if rest.is_empty() || rest.starts_with([';', '%', '?', '#', ' ']) {
            return false;
        }
    }
    if !segment.bytes().any(|byte| matches!(byte, b'%' | b'\\' | 0..0x20 | 0x7f..)) {
        return true;
    }
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'\\' | 0..0x20 | 0x7f => return false,
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else { return false };
                let byte = (high * 16 + low) as u8;
                if matches!(byte, 0x00..0x20 | b'%' | b'.' | b'/' | b'\\' | 0x7f) {
                    return false;
                }
                byte
            }
            _ => byte,
        };
        decoded.push(byte);
    }
    // Fullwidth and other forms of `.`, `/` and `\`.
    const LOOK_ALIKES: [char; 8] =
        ['\u{ff0e}', '\u{ff0f}', '\u{ff3c}', '\u{2024}', '\u{2025}', '\u{2026}', '\u{2044}', '\u{2215}'];
    std::str::from_utf8(&decoded).is_ok_and(|text| !text.contains(LOOK_ALIKES))
}
