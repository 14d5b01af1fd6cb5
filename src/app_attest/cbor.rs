//! A strict reader of CBOR (RFC 8949), for the few shapes that App Attest uses.
//!
//! Lengths are definite. Containers nest at most 4 deep and have at most 32 entries. Keys are text or integers, and no
//! key occurs twice. The head of an item may be longer than necessary.

const DEEPEST: u8 = 4;
const LARGEST: u64 = 32;

/// One item. A float, a simple value or a tagged item is only skipped.
#[derive(Debug, PartialEq)]
pub(super) enum Item<'a> {
    Unsigned(u64),
    /// `-1 - n`.
    Negative(u64),
    Bytes(&'a [u8]),
    Text(&'a str),
    Array(Vec<Self>),
    Map(Vec<(Self, Self)>),
    Skipped,
}

/// The fault of a text that is not such CBOR.
type Fault = &'static str;

impl<'a> Item<'a> {
    /// Reads the only item of these bytes.
    pub(super) fn only(bytes: &'a [u8]) -> Result<Self, Fault> {
        match Self::first(bytes)? {
            (item, []) => Ok(item),
            _ => Err("bytes follow the item"),
        }
    }

    /// Reads the first item, and returns the bytes that follow it.
    pub(super) fn first(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Fault> {
        let mut reader = Reader(bytes);
        Ok((reader.item(DEEPEST)?, reader.0))
    }

    /// The value of a key in a map. `None` if this is no map.
    pub(super) fn get(&self, key: &Item<'_>) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match self.get(&Item::Text(key)) {
            Some(Self::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn bytes(&self, key: &str) -> Option<&'a [u8]> {
        match self.get(&Item::Text(key)) {
            Some(Self::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn item(&mut self, depth: u8) -> Result<Item<'a>, Fault> {
        let (major, argument) = self.head()?;
        let inside = || depth.checked_sub(1).ok_or("containers nest too deep");
        Ok(match major {
            0 => Item::Unsigned(argument),
            1 => Item::Negative(argument),
            2 => Item::Bytes(self.take(argument)?),
            3 => Item::Text(std::str::from_utf8(self.take(argument)?).map_err(|_| "a text is not UTF-8")?),
            4 => {
                let inside = inside()?;
                let items = (0..bounded(argument)?).map(|_| self.item(inside));
                Item::Array(items.collect::<Result<_, _>>()?)
            }
            5 => self.map(bounded(argument)?, inside()?)?,
            6 => {
                self.item(inside()?)?;
                Item::Skipped
            }
            _ => Item::Skipped,
        })
    }

    fn map(&mut self, length: u64, inside: u8) -> Result<Item<'a>, Fault> {
        let mut entries = Vec::new();
        for _ in 0..length {
            let key = self.item(inside)?;
            if !matches!(key, Item::Text(_) | Item::Unsigned(_) | Item::Negative(_)) {
                return Err("a key of a map is neither text nor an integer");
            }
            if entries.iter().any(|(other, _)| *other == key) {
                return Err("a map has a key twice");
            }
            entries.push((key, self.item(inside)?));
        }
        Ok(Item::Map(entries))
    }

    /// The major type and the argument of an item's head.
    fn head(&mut self) -> Result<(u8, u64), Fault> {
        let [first] = self.array()?;
        let argument = match first & 0x1f {
            short @ 0..=23 => u64::from(short),
            24 => u64::from_be_bytes(self.padded::<1>()?),
            25 => u64::from_be_bytes(self.padded::<2>()?),
            26 => u64::from_be_bytes(self.padded::<4>()?),
            27 => u64::from_be_bytes(self.padded::<8>()?),
            28..=30 => return Err("a head is reserved"),
            _ => return Err("a length is indefinite"),
        };
        Ok((first >> 5, argument))
    }

    /// `N` bytes with zeros before them.
    fn padded<const N: usize>(&mut self) -> Result<[u8; 8], Fault> {
        let mut padded = [0; 8];
        padded[8 - N..].copy_from_slice(&self.array::<N>()?);
        Ok(padded)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (array, rest) = self.0.split_first_chunk().ok_or("cut off")?;
        self.0 = rest;
        Ok(*array)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Fault> {
        let length = usize::try_from(length).map_err(|_| "cut off")?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or("cut off")?;
        self.0 = rest;
        Ok(taken)
    }
}

fn bounded(length: u64) -> Result<u64, Fault> {
    if length > LARGEST { Err("a container has too many entries") } else { Ok(length) }
}
