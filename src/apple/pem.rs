//! The parser of private keys. It repairs the damage that environment variables do to a `.p8` file.

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet::STANDARD};
use zeroize::Zeroizing;

use crate::quote::may_hold_secret;

/// A decoder that ignores wrong padding and trailing bits. The check of the decoded DER describes such damage better.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The reason why a text or DER is not one of Apple's keys. `as_str` names the cause and the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyFault {
    Empty,
    Path,
    NotBase64,
    CutOff,
    Sec1,
    Encrypted,
    Certificate,
    PublicKey,
    Rsa,
    OtherArmour,
    NotPkcs8,
    NotEllipticCurve,
    OtherCurve,
    Damaged,
}

impl KeyFault {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "it is empty: give the text of the .p8 file that Apple made",
            Self::Path => {
                "it is the path to a file: give the text in the file, or give the path as \
                 APPLE_JWT_PRIVATE_KEY_FILE or to `from_pem_file`"
            }
            Self::NotBase64 => {
                "it is not base64: give the text of the .p8 file as it is, from `-----BEGIN PRIVATE KEY-----` \
                 to `-----END PRIVATE KEY-----`"
            }
            Self::CutOff => {
                "it is cut off: give all lines of the .p8 file; a variable that holds only the first line needs \
                 quotes, or `\\n` for its line ends"
            }
            Self::Sec1 => {
                "it is an EC key in SEC 1 form (`EC PRIVATE KEY`): use the .p8 file as Apple made it, or convert \
                 the key with `openssl pkcs8 -topk8 -nocrypt`"
            }
            Self::Encrypted => {
                "it is encrypted: use the .p8 file as Apple made it, or decrypt the key with `openssl pkcs8`"
            }
            Self::Certificate => {
                "it is a certificate, and DeviceCheck uses none: create a key with the DeviceCheck service under \
                 Certificates, Identifiers & Profiles > Keys, and use its .p8 file"
            }
            Self::PublicKey => "it is a public key: use the private one, the .p8 file that Apple made",
            Self::Rsa => "it is an RSA key, and Apple's are P-256: use the .p8 file that Apple made",
            Self::OtherArmour => {
                "its first line is not `-----BEGIN PRIVATE KEY-----`: use the .p8 file that Apple made"
            }
            Self::NotPkcs8 => "it is not a private key in PKCS#8 form: use the .p8 file that Apple made",
            Self::NotEllipticCurve => {
                "it is not an elliptic curve key, and Apple's are P-256: use the .p8 file that Apple made"
            }
            Self::OtherCurve => {
                "it is a key on another curve, and Apple's are P-256: use the .p8 file that Apple made"
            }
            Self::Damaged => {
                "it is a P-256 key in PKCS#8 form, but a damaged one: copy the .p8 file that Apple made again"
            }
        }
    }
}

/// Removes the white space and quotes that env files and dashboards leave around a text.
pub(super) fn unquoted(text: &str) -> &str {
    let mut text = text.trim_start_matches('\u{feff}').trim();
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            text = inner.trim();
        }
    }
    text
}

/// Decodes a key to DER. The text may be PEM, PEM with damaged line ends, the base64 inside the PEM, or base64 of any
/// of these, including UTF-16 text.
pub(super) fn der_of_text(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    der_within(text, 3).map_err(|fault| if is_path(unquoted(text)) { KeyFault::Path } else { fault })
}

fn der_within(text: &str, layers: u8) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    let decoded = decode_text(text)?;
    let Err(fault) = check_der(&decoded) else {
        return Ok(decoded);
    };
    let Some(inner) = text_of(&decoded).filter(|_| layers > 0) else {
        return Err(fault);
    };
    der_within(&inner, layers - 1).map_err(|within| if inner.contains(BEGIN) { within } else { fault })
}

/// Decodes text: UTF-8, or the UTF-16 that PowerShell writes.
pub(super) fn text_of(bytes: &[u8]) -> Option<Zeroizing<String>> {
    let number: fn([u8; 2]) -> u16 = match bytes {
        [0xff, 0xfe, ..] | [_, 0, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] | [0, _, ..] => u16::from_be_bytes,
        _ => return std::str::from_utf8(bytes).ok().map(|text| Zeroizing::new(text.to_owned())),
    };
    // Reserves room for the whole text at once: growing would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * bytes.len()));
    let units = bytes.chunks_exact(2).map(|pair| number([pair[0], pair[1]]));
    for letter in char::decode_utf16(units) {
        text.push(letter.ok()?);
    }
    Some(text)
}

fn is_path(text: &str) -> bool {
    let starts = ["/", "./", "../", "~", "\\\\"].iter().any(|start| text.starts_with(start));
    let has_drive = text.get(1..3).is_some_and(|drive| matches!(drive, ":\\" | ":/"));
    let ends = [".p8", ".pem", ".key", ".der", ".txt"].iter().any(|end| text.ends_with(end));
    (starts || has_drive || ends) && !may_hold_secret(text)
}

const BEGIN: &str = "-----BEGIN";
const END: &str = "-----END";
const DASHES: &str = "-----";

fn decode_text(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    let text = unquoted(text);
    if text.is_empty() {
        return Err(KeyFault::Empty);
    }
    let Some((_, armoured)) = text.split_once(BEGIN) else {
        return decode(text);
    };
    let (label, rest) = armoured.split_once(DASHES).ok_or(KeyFault::CutOff)?;
    // The comparison ignores spaces, because some tools remove every space from a value.
    let label: String = label.split_ascii_whitespace().collect();
    match label.as_str() {
        "PRIVATEKEY" => {}
        "ECPRIVATEKEY" | "ECPARAMETERS" => return Err(KeyFault::Sec1),
        "ENCRYPTEDPRIVATEKEY" => return Err(KeyFault::Encrypted),
        "CERTIFICATE" | "CERTIFICATEREQUEST" => return Err(KeyFault::Certificate),
        "PUBLICKEY" => return Err(KeyFault::PublicKey),
        "RSAPRIVATEKEY" => return Err(KeyFault::Rsa),
        _ => return Err(KeyFault::OtherArmour),
    }
    let (body, _) = rest.split_once(END).ok_or(KeyFault::CutOff)?;
    decode(body)
}

fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    let compact = without_line_ends(text.as_bytes());
    if compact.is_empty() {
        return Err(KeyFault::CutOff);
    }
    let unpadded = compact.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let in_alphabet = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    if !compact[..unpadded].iter().all(in_alphabet) {
        return Err(KeyFault::NotBase64);
    }
    let mut decoded = Zeroizing::new(vec![0; base64::decoded_len_estimate(unpadded)]);
    let length = LENIENT.decode_slice(&compact[..unpadded], &mut decoded).map_err(|_| KeyFault::CutOff)?;
    decoded.truncate(length);
    Ok(decoded)
}

/// Removes white space, and line ends written as `\n` or `\r`, escaped any number of times.
fn without_line_ends(text: &[u8]) -> Zeroizing<Vec<u8>> {
    // Reserves room for the whole key at once: growing would leave copies of it behind.
    let mut compact = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut escaped = false;
    for byte in text {
        match byte {
            b'\\' => escaped = true,
            b'n' | b'r' if escaped => escaped = false,
            _ => {
                escaped = false;
                if !byte.is_ascii_whitespace() {
                    compact.push(*byte);
                }
            }
        }
    }
    compact
}

const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const PRIME256V1: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// The arc of PKCS#5, which holds the algorithms that encrypt private keys.
const PKCS5: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05];

/// Checks the outer structure of a DER, so that an error can name the fault. The first signature then shows whether the
/// key works.
pub(super) fn check_der(der: &[u8]) -> Result<(), KeyFault> {
    if der.is_empty() {
        return Err(KeyFault::Empty);
    }
    let (header, length) = match *der {
        [0x30, length @ 0..=0x7f, ..] => (2, usize::from(length)),
        [0x30, 0x81, length, ..] => (3, usize::from(length)),
        [0x30, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [0x30] | [0x30, 0x81] | [0x30, 0x82] | [0x30, 0x82, _] => return Err(KeyFault::CutOff),
        _ => return Err(KeyFault::NotPkcs8),
    };
    let content = &der[header..];
    if content.len() < length {
        return Err(KeyFault::CutOff);
    }
    // The algorithm follows the version, so that the first bytes hold it.
    let head = &content[..content.len().min(64)];
    let holds = |oid: &[u8]| head.windows(oid.len()).any(|window| window == oid);
    match head {
        [0x02, 0x01, 0x00 | 0x01, 0x30, ..] if !holds(EC_PUBLIC_KEY) => Err(KeyFault::NotEllipticCurve),
        [0x02, 0x01, 0x00 | 0x01, 0x30, ..] if !holds(PRIME256V1) => Err(KeyFault::OtherCurve),
        [0x02, 0x01, 0x00 | 0x01, 0x30, ..] => Ok(()),
        [0x02, 0x01, 0x01, 0x04, ..] => Err(KeyFault::Sec1),
        [0x30, ..] if holds(PKCS5) => Err(KeyFault::Encrypted),
        [0x30, ..] if holds(EC_PUBLIC_KEY) => Err(KeyFault::PublicKey),
        _ => Err(KeyFault::NotPkcs8),
    }
}
