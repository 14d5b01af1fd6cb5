//! A reader of BER, in which Apple writes most receipts: lengths may be indefinite, and an octet string may come in
//! pieces.
//!
//! Elements nest at most 16 deep. Tags have one byte, as all tags of CMS do.

const DEEPEST: u8 = 16;
const CONSTRUCTED: u8 = 0x20;
const OCTET_STRING: u8 = 0x04;
const LONG_TAG: u8 = 0x1f;
const END_OF_CONTENTS: &[u8] = &[0, 0];

/// Elements one after the other. A method returns `None` if there is no such element.
#[derive(Clone, Copy)]
pub(super) struct Ber<'a> {
    rest: &'a [u8],
    depth: u8,
}

/// One element.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// The element with its tag and length.
    pub(super) whole: &'a [u8],
    /// How deep elements may nest inside of this one.
    depth: u8,
}

impl<'a> Ber<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, depth: DEEPEST }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next element.
    pub(super) fn any(&mut self) -> Option<Element<'a>> {
        let depth = self.depth.checked_sub(1)?;
        let (tag, length, behind) = match *self.rest {
            [tag, length, ref behind @ ..] if tag & LONG_TAG != LONG_TAG => (tag, length, behind),
            _ => return None,
        };
        let (content, rest) = match length {
            0..=0x7f => behind.split_at_checked(length.into())?,
            0x80 if tag & CONSTRUCTED != 0 => Self { rest: behind, depth }.until_end()?,
            0x81..=0x84 => {
                let (length, behind) = behind.split_at_checked((length & 0x7f).into())?;
                let length = length.iter().fold(0_usize, |value, byte| value << 8 | usize::from(*byte));
                behind.split_at_checked(length)?
            }
            _ => return None,
        };
        let whole = &self.rest[..self.rest.len() - rest.len()];
        self.rest = rest;
        Some(Element { tag, content, whole, depth })
    }

    /// The elements inside of the next one, which must have this tag.
    pub(super) fn open(&mut self, tag: u8) -> Option<Self> {
        self.any().filter(|element| element.tag == tag).map(Element::inside)
    }

    /// The content up to the end-of-contents octets, and the bytes behind them.
    fn until_end(mut self) -> Option<(&'a [u8], &'a [u8])> {
        let begin = self.rest;
        loop {
            if let Some(behind) = self.rest.strip_prefix(END_OF_CONTENTS) {
                return Some((&begin[..begin.len() - self.rest.len()], behind));
            }
            self.any()?;
        }
    }
}

impl<'a> Element<'a> {
    /// The elements inside of this one.
    pub(super) const fn inside(self) -> Ber<'a> {
        Ber { rest: self.content, depth: self.depth }
    }

    /// Appends an octet string, whole or in pieces.
    pub(super) fn octets(self, joined: &mut Vec<u8>) -> Option<()> {
        if self.tag == OCTET_STRING {
            joined.extend_from_slice(self.content);
            return Some(());
        }
        if self.tag != OCTET_STRING | CONSTRUCTED {
            return None;
        }
        let mut pieces = self.inside();
        while !pieces.is_empty() {
            pieces.any()?.octets(joined)?;
        }
        Some(())
    }
}
