//! A writer of DER, and of the BER with indefinite lengths in which Apple writes most receipts. It shares no code with
//! the parser of this crate, so that the two check each other.

pub(super) const BOOLEAN_TRUE: [u8; 3] = [0x01, 0x01, 0xff];
pub(super) const NULL: [u8; 2] = [0x05, 0x00];

const END_OF_CONTENTS: [u8; 2] = [0x00, 0x00];

/// A tag, the length of all parts together, and the parts.
pub(super) fn tagged(tag: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = tag.to_vec();
    if length < 0x80 {
        out.extend(length.to_le_bytes().first());
    } else {
        let bytes = length.to_be_bytes();
        let significant: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
        out.extend((0x80 | significant.len()).to_le_bytes().first());
        out.extend(significant);
    }
    out.extend(parts.concat());
    out
}

/// A tag, the indefinite length, the parts, and the end of the contents: BER, not DER.
pub(super) fn indefinite(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&[tag, 0x80], parts.concat().as_slice(), &END_OF_CONTENTS].concat()
}

pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tagged(&[0x30], parts)
}

pub(super) fn set(parts: &[&[u8]]) -> Vec<u8> {
    tagged(&[0x31], parts)
}

/// An unsigned number. Leading zeros are left out, and a zero is added where the number would look negative.
pub(super) fn unsigned(big_endian: &[u8]) -> Vec<u8> {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    match big_endian.get(zeros..) {
        Some(number @ [first, ..]) if *first < 0x80 => tagged(&[0x02], &[number]),
        Some(number) => tagged(&[0x02], &[&[0], number]),
        None => tagged(&[0x02], &[&[0]]),
    }
}

pub(super) fn integer(number: u32) -> Vec<u8> {
    unsigned(&number.to_be_bytes())
}

pub(super) fn octets(content: &[u8]) -> Vec<u8> {
    tagged(&[0x04], &[content])
}

/// A bit string without unused bits.
pub(super) fn bits(content: &[u8]) -> Vec<u8> {
    tagged(&[0x03], &[&[0], content])
}

pub(super) fn utf8(text: &str) -> Vec<u8> {
    tagged(&[0x0c], &[text.as_bytes()])
}

/// A context-specific, constructed tag of any number. Numbers above 30 are written in groups of seven bits.
pub(super) fn context(number: u16, content: &[u8]) -> Vec<u8> {
    let number = u32::from(number);
    match number {
        0..=30 => tagged(&[0xa0 | low_bits(number, 0x1f)], &[content]),
        31..=127 => tagged(&[0xbf, low_bits(number, 0x7f)], &[content]),
        128..=16_383 => {
            tagged(&[0xbf, 0x80 | low_bits(number >> 7, 0x7f), low_bits(number, 0x7f)], &[content])
        }
        _ => {
            let high = [0x80 | low_bits(number >> 14, 0x7f), 0x80 | low_bits(number >> 7, 0x7f)];
            tagged(&[0xbf, high[0], high[1], low_bits(number, 0x7f)], &[content])
        }
    }
}

/// An object identifier from its arcs. The first two arcs share a number.
pub(super) fn oid(arcs: &[u32]) -> Vec<u8> {
    let [first, second, rest @ ..] = arcs else { return tagged(&[0x06], &[]) };
    let mut content = Vec::new();
    for arc in std::iter::once(first * 40 + second).chain(rest.iter().copied()) {
        let groups = [28, 21, 14, 7].map(|shift| arc >> shift);
        content
            .extend(groups.into_iter().filter(|group| *group > 0).map(|group| 0x80 | low_bits(group, 0x7f)));
        content.push(low_bits(arc, 0x7f));
    }
    tagged(&[0x06], &[&content])
}

fn low_bits(number: u32, mask: u8) -> u8 {
    number.to_le_bytes()[0] & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_numbers_and_tags_are_written_as_in_real_objects() {
        let cases: &[(&str, Vec<u8>, &[u8])] = &[
            ("short length", octets(&[7]), &[0x04, 1, 7]),
            ("long length", octets(&[0; 0x80])[..3].to_vec(), &[0x04, 0x81, 0x80]),
            ("longer length", octets(&[0; 824])[..4].to_vec(), &[0x04, 0x82, 0x03, 0x38]),
            ("zero", integer(0), &[0x02, 1, 0]),
            ("small number", integer(10), &[0x02, 1, 10]),
            ("looks negative", integer(0x80), &[0x02, 2, 0, 0x80]),
            ("large number", integer(0x00ff_ffff), &[0x02, 4, 0, 0xff, 0xff, 0xff]),
            ("[1]", context(1, &[]), &[0xa1, 0]),
            ("[1026]", context(1026, &[]), &[0xbf, 0x88, 0x02, 0]),
            ("[1204]", context(1204, &[]), &[0xbf, 0x89, 0x34, 0]),
            ("[1400]", context(1400, &[]), &[0xbf, 0x8a, 0x78, 0]),
            ("[1403]", context(1403, &[]), &[0xbf, 0x8a, 0x7b, 0]),
            (
                "Apple's nonce",
                oid(&[1, 2, 840, 113_635, 100, 8, 2]),
                &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x63, 0x64, 0x08, 0x02],
            ),
            ("common name", oid(&[2, 5, 4, 3]), &[0x06, 3, 0x55, 0x04, 0x03]),
            ("indefinite", indefinite(0x30, &[&NULL]), &[0x30, 0x80, 5, 0, 0, 0]),
        ];
        for (name, written, real) in cases {
            assert_eq!(written, real, "{name}");
        }
    }
}
