//! Version 2: the key is sealed, and the client part opens it.
//!
//! The client part is the key of an AEAD, XChaCha20-Poly1305, and seals one API key only. The server part is
//! nonce, ciphertext and tag. Metadata and project are associated data. Both parts are base64url without
//! padding. Only the canonical spelling opens.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce, aead::AeadInOut};
use zeroize::Zeroizing;

use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
use crate::split_key::parts::{ClientPart, ServerPart};
use crate::split_key::{api_key::KeyBytes, metadata::Metadata, random::Random};
use crate::wipe::{self, wiping_the_stack};

const SECRET: usize = 32;
const NONCE: usize = 24;
const TAG: usize = 16;
/// The sealed text is padded to a multiple of this length, because the length of a key would reveal its provider.
const BLOCK: usize = 256;
/// The byte that ends the key in the sealed text. Zeros follow.
const END: u8 = 0x80;

/// Seals a key under a new client part.
pub(super) fn seal(
    key: &str,
    project: &str,
    metadata: Metadata,
    random: &mut dyn Random,
) -> Result<(ServerPart, ClientPart), SplitKeyError> {
    let mut secret = Zeroizing::new([0; SECRET]);
    random.fill(&mut *secret)?;
    let mut nonce = [0; NONCE];
    random.fill(&mut nonce)?;

    let padded = (key.len() + 1).next_multiple_of(BLOCK);
    let mut sealed = Zeroizing::new(Vec::with_capacity(padded + TAG));
    sealed.extend_from_slice(key.as_bytes());
    sealed.push(END);
    sealed.resize(padded, 0);
    XChaCha20Poly1305::new((&*secret).into())
        .encrypt_in_place(&nonce.into(), &associated_data(project, metadata), &mut *sealed)
        .map_err(|_| SplitKeyErrorKind::InvalidKey)?;

    let server = URL_SAFE_NO_PAD.encode([&nonce, sealed.as_slice()].concat());
    let mut client = Zeroizing::new([0; SECRET.div_ceil(3) * 4]);
    let length = URL_SAFE_NO_PAD
        .encode_slice(secret.as_slice(), client.as_mut_slice())
        .map_err(|_| SplitKeyErrorKind::Malformed)?;
    let client = ClientPart::new(&client[..length], metadata)?;
    Ok((ServerPart::new(server)?, client))
}

/// Opens a key that was sealed under `client` for this project.
pub(super) fn open(
    server: &ServerPart,
    client: &ClientPart,
    project: &str,
) -> Result<KeyBytes, SplitKeyError> {
    let not_opened = SplitKeyErrorKind::NotOpened;
    let mut decoded = Zeroizing::new([0; SECRET + 3]);
    let length = URL_SAFE_NO_PAD.decode_slice(client.secret(), &mut *decoded).map_err(|_| not_opened)?;
    let secret: &[u8; SECRET] = decoded[..length].try_into().map_err(|_| not_opened)?;

    let text = server.expose().as_bytes();
    let mut sealed = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut sealed).map_err(|_| not_opened)?;
    sealed.truncate(length);
    let nonce = *sealed.first_chunk::<NONCE>().ok_or(not_opened)?;
    sealed.drain(..NONCE);
    let opened = wiping_the_stack::<{ wipe::CIPHER }, _>(|| {
        XChaCha20Poly1305::new(secret.into()).decrypt_in_place(
            &XNonce::from(nonce),
            &associated_data(project, client.metadata()),
            &mut *sealed,
        )
    });
    opened.map_err(|_| not_opened)?;
    let end = sealed.iter().rposition(|byte| *byte != 0).ok_or(not_opened)?;
    if sealed[end] != END {
        return Err(not_opened.into());
    }
    sealed.truncate(end);
    Ok(sealed)
}

/// The associated data of the seal. The metadata has no dot, so no two pairs of metadata and project give the same
/// bytes.
fn associated_data(project: &str, metadata: Metadata) -> Vec<u8> {
    format!("tower-devicecheck split key\n{metadata}.{project}").into_bytes()
}

/// Makes a server part that no client part opens. Requests for unknown keys try to open it, so that they take as long
/// as others.
pub(super) fn decoy() -> ServerPart {
    let text = "A".repeat((NONCE + BLOCK + TAG) / 3 * 4 + 3);
    #[allow(clippy::expect_used, reason = "a text that depends on no input")]
    ServerPart::new(text).expect("letters are visible")
}

#[cfg(test)]
mod tests;
