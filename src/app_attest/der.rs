//! A strict reader of DER, for certificates and the fields of receipts.

pub(super) const INTEGER: u32 = 0x02;
pub(super) const BIT_STRING: u32 = 0x03;
pub(super) const OCTET_STRING: u32 = 0x04;
pub(super) const OBJECT_ID: u32 = 0x06;
pub(super) const SEQUENCE: u32 = 0x30;
pub(super) const SET: u32 = 0x31;

/// The tag `[number]`, constructed.
pub(super) const fn context(number: u32) -> u32 {
    if number < LONG_FORM { 0xa0 | number } else { LONG_TAG | number }
}

/// The low bits of a tag whose number follows in bytes of its own.
const LONG_FORM: u32 = 0x1f;
const LONG_TAG: u32 = 0xbf << 24;

/// Elements one after the other. A method returns `None` if there is no such element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Der<'a>(pub(super) &'a [u8]);

impl<'a> Der<'a> {
    pub(super) const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The content of the next element, which must have this tag.
    pub(super) fn take(&mut self, tag: u32) -> Option<&'a [u8]> {
        let (found, content) = self.any()?;
        (found == tag).then_some(content)
    }

    /// The elements inside of the next one, which must have this tag.
    pub(super) fn open(&mut self, tag: u32) -> Option<Self> {
        self.take(tag).map(Self)
    }

    /// The content of the only element, which must have this tag.
    pub(super) fn only(mut self, tag: u32) -> Option<&'a [u8]> {
        let content = self.take(tag)?;
        self.is_empty().then_some(content)
    }

    /// The tag and the content of the next element.
    pub(super) fn any(&mut self) -> Option<(u32, &'a [u8])> {
        let mut tag = u32::from(self.byte()?);
        if tag & LONG_FORM == LONG_FORM {
            let mut number = 0;
            loop {
                let byte = u32::from(self.byte()?);
                number = number << 7 | byte & 0x7f;
                if number >= 1 << 21 {
                    return None;
                }
                if byte < 0x80 {
                    break;
                }
            }
            tag = tag << 24 | number;
        }
        let length = match self.byte()? {
            short @ 0..=0x7f => usize::from(short),
            0x81 => usize::from(self.byte().filter(|length| *length >= 0x80)?),
            0x82 => usize::from(u16::from_be_bytes([self.byte().filter(|high| *high != 0)?, self.byte()?])),
            // Longer lengths are beyond any object, and an indefinite one is not DER.
            _ => return None,
        };
        let (content, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }
}

/// A number from the content of an INTEGER that is not negative and has at most 3 significant bytes.
pub(super) fn small_number(content: &[u8]) -> Option<u32> {
    match *content {
        [low @ 0..=0x7f] => Some(u32::from(low)),
        [high @ 0..=0x7f, low] => Some(u32::from_be_bytes([0, 0, high, low])),
        [high @ 0..=0x7f, middle, low] => Some(u32::from_be_bytes([0, high, middle, low])),
        _ => None,
    }
}
