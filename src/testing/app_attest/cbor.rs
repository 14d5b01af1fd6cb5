//! A writer of the CBOR that devices send: maps, arrays, texts and byte strings of definite lengths. It shares no code
//! with the parser of this crate, so that the two check each other.

pub(super) fn text(text: &str) -> Vec<u8> {
    [head(3, text.len()), text.as_bytes().to_vec()].concat()
}

pub(super) fn bytes(bytes: &[u8]) -> Vec<u8> {
    [head(2, bytes.len()), bytes.to_vec()].concat()
}

/// An array of items that are written already.
pub(super) fn array(items: &[Vec<u8>]) -> Vec<u8> {
    [head(4, items.len()), items.concat()].concat()
}

/// A map with text keys, in the given order. The values are written already.
pub(super) fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries_text = entries.iter().flat_map(|(key, value)| [text(key), value.clone()]);
    std::iter::once(head(5, entries.len())).chain(entries_text).flatten().collect()
}

/// The type of an item, and its length in as few bytes as possible.
fn head(major: u8, length: usize) -> Vec<u8> {
    let major = major << 5;
    let [.., b3, b2, b1, b0] = length.to_be_bytes();
    match length {
        0..=23 => vec![major | b0],
        24..=0xff => vec![major | 24, b0],
        0x100..=0xffff => vec![major | 25, b1, b0],
        _ => vec![major | 26, b3, b2, b1, b0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_written_as_in_real_objects() {
        // Each is the beginning of an item in an object of a real device.
        let cases: &[(&str, Vec<u8>, &[u8])] = &[
            ("fmt", text("fmt"), b"\x63fmt"),
            ("long key", text("apple_validation_category_01")[..3].to_vec(), b"\x78\x1ca"),
            ("value", bytes(&[3, 0, 0, 0]), b"\x44\x03\0\0\0"),
            ("authData", bytes(&[0; 164])[..2].to_vec(), b"\x58\xa4"),
            ("leaf", bytes(&[0; 762])[..3].to_vec(), b"\x59\x02\xfa"),
            ("x5c", array(&[bytes(&[]), bytes(&[])]), b"\x82\x40\x40"),
            ("map", map(&[("a", text("b")), ("c", bytes(&[]))]), b"\xa2\x61a\x61b\x61c\x40"),
        ];
        for (name, written, real) in cases {
            assert_eq!(written, real, "{name}");
        }
    }
}
