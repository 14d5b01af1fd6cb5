//! Version 1, the format of Proxed.AI: a cut.
//!
//! The server part is the head of the key and a salt. The client part is the tail of the key and the same salt. This is
//! not secret sharing: a part reveals its characters, and only the salt tells whether two parts belong together.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
use crate::split_key::metadata::{Metadata, Version};
use crate::split_key::parts::{ClientPart, ServerPart};
use crate::split_key::{api_key::KeyBytes, key_format::check_key, provider::Provider, random::Random};

/// The minimum number of secret characters of the key that each part must lack.
pub(super) const LACKING: usize = 12;
/// The length of a salt in lower-case hexadecimal digits.
const SALT: usize = 16;

/// Cuts a key at a random place, with at least [`LACKING`] secret characters before and after it.
pub(super) fn cut(
    key: &str,
    provider: &Provider,
    metadata: Metadata,
    random: &mut dyn Random,
) -> Result<(ServerPart, ClientPart), SplitKeyError> {
    let secrets = provider.secrets(key).ok_or(SplitKeyErrorKind::WrongFormat)?;
    let cuts = secrets.cuts_between(LACKING).ok_or(SplitKeyErrorKind::TooShort)?;
    let choices = u32::try_from(cuts.end() - cuts.start() + 1).map_err(|_| SplitKeyErrorKind::InvalidKey)?;
    let at = cuts.start() + random.below(choices)? as usize;
    let mut salt = [0; SALT / 2];
    random.fill(&mut salt)?;
    let salt = format!("{:016x}", u64::from_be_bytes(salt));

    let mut server = String::with_capacity(at + SALT);
    server.push_str(&key[..at]);
    server.push_str(&salt);
    let mut client = Zeroizing::new(Vec::with_capacity(key.len() - at + SALT));
    client.extend_from_slice(&key.as_bytes()[at..]);
    client.extend_from_slice(salt.as_bytes());
    Ok((ServerPart::new(server)?, ClientPart::new(&client, metadata)?))
}

/// Joins the parts. The cut may be anywhere, because Proxed's own code cuts anywhere.
pub(super) fn join(
    server: &ServerPart,
    client: &ClientPart,
    provider: Option<&Provider>,
) -> Result<KeyBytes, SplitKeyError> {
    let (head, tail) = halves(server, client)?;
    let mut key = Zeroizing::new(Vec::with_capacity(head.len() + tail.len()));
    key.extend_from_slice(head);
    key.extend_from_slice(tail);
    if let Some(provider) = provider {
        let text = std::str::from_utf8(&key).map_err(|_| SplitKeyErrorKind::NotOpened)?;
        if !provider.recognizes(text) {
            return Err(SplitKeyErrorKind::NotOpened.into());
        }
    }
    Ok(key)
}

/// Returns the head and the tail of the key.
fn halves<'a>(server: &'a ServerPart, client: &'a ClientPart) -> Result<(&'a [u8], &'a [u8]), SplitKeyError> {
    let unsalted = |part: &'a [u8]| part.split_last_chunk::<SALT>().ok_or(SplitKeyErrorKind::NotOpened);
    let (head, server_salt) = unsalted(server.expose().as_bytes())?;
    let (tail, client_salt) = unsalted(client.secret())?;
    // A check of the server's salt suffices, because the client's salt must be equal.
    let is_salt = server_salt.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let equal = bool::from(server_salt.ct_eq(client_salt));
    if is_salt && equal { Ok((head, tail)) } else { Err(SplitKeyErrorKind::NotOpened.into()) }
}

/// The numbers of characters of the key that a version 1 pair keeps secret from each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutLint {
    unknown_to_server: usize,
    unknown_to_client: usize,
}

impl CutLint {
    /// The number of characters of the key that neither the server part nor public knowledge reveals.
    #[must_use]
    pub const fn unknown_to_server(&self) -> usize {
        self.unknown_to_server
    }

    /// The number of characters of the key that neither the client part nor public knowledge reveals.
    #[must_use]
    pub const fn unknown_to_client(&self) -> usize {
        self.unknown_to_client
    }

    /// Whether each part lacks at least 12 characters. Every pair that this crate makes is sound.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.unknown_to_server >= LACKING && self.unknown_to_client >= LACKING
    }
}

/// Counts the characters that a version 1 pair keeps secret from each side. Prefixes and other texts that all keys of
/// the provider share do not count, because they are public.
///
/// # Errors
///
/// Returns [`NotOpened`](SplitKeyErrorKind::NotOpened) if the parts do not belong together;
/// [`WrongFormat`](SplitKeyErrorKind::WrongFormat) if their key has no format that is known of this provider;
/// [`Malformed`](SplitKeyErrorKind::Malformed) if the client part is not of version 1.
pub fn lint(server: &ServerPart, client: &ClientPart, provider: &Provider) -> Result<CutLint, SplitKeyError> {
    if client.metadata().version() != Version::Cut {
        return Err(SplitKeyErrorKind::Malformed.into());
    }
    let (head, _) = halves(server, client)?;
    let key = join(server, client, None)?;
    let text = std::str::from_utf8(&key).map_err(|_| SplitKeyErrorKind::NotOpened)?;
    check_key(text).map_err(|_| SplitKeyErrorKind::NotOpened)?;
    let secrets = provider.secrets(text).ok_or(SplitKeyErrorKind::WrongFormat)?;
    let (unknown_to_client, unknown_to_server) = secrets.around(head.len());
    Ok(CutLint { unknown_to_server, unknown_to_client })
}

#[cfg(test)]
mod tests;
