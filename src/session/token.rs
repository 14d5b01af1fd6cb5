//! The text of a session, format version 1: 94 bytes, as 126 characters.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 4 | number of the key |
//! | 5 | 1 | flags: bit 0 limited use, bit 1 development, bit 2 bound, bits 3 to 5 what the session was bought with |
//! | 6 | 4 | issued, Unix seconds |
//! | 10 | 4 | expires, Unix seconds |
//! | 14 | 16 | id |
//! | 30 | 16 | subject, or zero |
//! | 46 | 16 | binding, or zero |
//! | 62 | 32 | HMAC-SHA-256 over bytes 0 to 61 |
//!
//! Numbers have their most significant byte first. The text is base64url without padding.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::gate::routing::Environment;
use crate::session::claims::{BoughtWith, Claims, SessionId};
use crate::session::key::SessionKey;

const VERSION: u8 = 1;
const LENGTH: usize = 94;
const SIGNED: usize = 62;
/// 94 bytes make 125 whole characters and 2 bits of the last one.
const TEXT_LENGTH: usize = 126;

const LIMITED_USE: u8 = 1;
const DEVELOPMENT: u8 = 1 << 1;
const BOUND: u8 = 1 << 2;
const BOUGHT_WITH: u8 = 0b111 << BOUGHT_WITH_SHIFT;
const BOUGHT_WITH_SHIFT: u32 = 3;

/// A text of the right form. Nobody has checked yet who wrote it.
pub(super) struct Token([u8; LENGTH]);

impl Token {
    /// Parses the only spelling of a token: base64url without padding, unused bits zero.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != TEXT_LENGTH {
            return None;
        }
        let mut bytes = [0; LENGTH];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (length == LENGTH && bytes[0] == VERSION).then_some(Self(bytes))
    }

    pub(super) fn key_number(&self) -> u32 {
        u32::from_be_bytes(self.part(1))
    }

    /// Compares the authenticators in constant time.
    pub(super) fn is_signed_by(&self, key: &SessionKey) -> bool {
        let (signed, tag) = self.0.split_at(SIGNED);
        key.has_signed(signed, tag)
    }

    /// Returns `None` if a flag is unknown.
    pub(super) fn claims(&self) -> Option<Claims> {
        let flags = self.0[5];
        if flags & !(LIMITED_USE | DEVELOPMENT | BOUND | BOUGHT_WITH) != 0 {
            return None;
        }
        let is_development = flags & DEVELOPMENT != 0;
        Some(Claims {
            is_limited_use: flags & LIMITED_USE != 0,
            environment: if is_development { Environment::Development } else { Environment::Production },
            bought_with: BoughtWith::from_number((flags & BOUGHT_WITH) >> BOUGHT_WITH_SHIFT)?,
            issued: u32::from_be_bytes(self.part(6)),
            expires: u32::from_be_bytes(self.part(10)),
            id: SessionId::from(self.part::<16>(14)),
            subject: self.part(30),
            binding: (flags & BOUND != 0).then(|| self.part(46)),
        })
    }

    /// `N` bytes from this offset. All callers stay within the token.
    fn part<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut part = [0; N];
        part.copy_from_slice(&self.0[offset..offset + N]);
        part
    }
}

/// Writes and signs a token.
pub(super) fn mint(claims: &Claims, key: &SessionKey) -> String {
    let mut bytes = [0; LENGTH];
    let flag = |flag: u8, is_set: bool| if is_set { flag } else { 0 };
    bytes[0] = VERSION;
    bytes[1..5].copy_from_slice(&key.number().to_be_bytes());
    bytes[5] = flag(LIMITED_USE, claims.is_limited_use)
        | flag(DEVELOPMENT, claims.environment == Environment::Development)
        | flag(BOUND, claims.binding.is_some())
        | claims.bought_with.number() << BOUGHT_WITH_SHIFT;
    bytes[6..10].copy_from_slice(&claims.issued.to_be_bytes());
    bytes[10..14].copy_from_slice(&claims.expires.to_be_bytes());
    bytes[14..30].copy_from_slice(claims.id.as_bytes());
    bytes[30..46].copy_from_slice(&claims.subject);
    bytes[46..SIGNED].copy_from_slice(&claims.binding.unwrap_or_default());
    let (signed, tag) = bytes.split_at_mut(SIGNED);
    tag.copy_from_slice(&key.sign(signed));
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests;
