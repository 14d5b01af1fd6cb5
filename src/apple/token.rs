//! Device tokens, and their syntax check.

use std::{fmt, str::FromStr};

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet::STANDARD};
use http::HeaderValue;

use crate::gate::credential::{Candidate, TokenDigest};
use crate::gate::rejection::MalformedToken;

/// The longest device token that is accepted, in characters. Real ones have about 2,950.
const MAX_TOKEN_LENGTH: usize = 8 * 1024;

/// Decodes the standard alphabet, with zero trailing bits. [`unpadded`] has already checked the padding.
const CANONICAL: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// Apple's answer about a device token. A missing answer is a [`VerifyError`](crate::VerifyError), not a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a token is genuine or it is not")]
pub enum Verdict {
    /// Apple made the token for an app of your team on a genuine device.
    Genuine,
    /// The token is not genuine: it is forged, expired, of another team, or of the other environment. Apple does not
    /// say which.
    Refused,
}

/// A device token in its one accepted spelling: standard base64, canonical padding or none, zero trailing
/// bits, at most 8,192 characters.
///
/// Any other spelling of the same bytes is refused rather than normalised, so that no alias of a token has its own
/// cache entry.
///
/// `Debug` reveals nothing of the token. Cloning is cheap. This crate cannot wipe the text, because it lies in the
/// buffer into which the HTTP server read the request.
#[derive(Clone)]
pub struct DeviceToken(Candidate);

impl DeviceToken {
    /// The token's text, without padding. The text is a secret while the token lives: send it only to Apple.
    #[must_use]
    pub fn expose(&self) -> &str {
        // Canonical base64 is ASCII, so this is never the empty string.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// SHA-256 of [`expose`](Self::expose), computed at each call.
    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.as_bytes())
    }

    /// The bytes of [`expose`](Self::expose), without another check that they are UTF-8.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        unpadded(&self.0).unwrap_or_default()
    }

    /// The text as the client sent it, padding included.
    pub(crate) const fn text(&self) -> &Candidate {
        &self.0
    }

    pub(crate) fn into_text(self) -> Candidate {
        self.0
    }
}

impl TryFrom<Candidate> for DeviceToken {
    type Error = MalformedToken;

    fn try_from(candidate: Candidate) -> Result<Self, MalformedToken> {
        let text = unpadded(&candidate)?;
        // A fold over all bytes, because the compiler vectorizes it. It does not vectorize a loop that may stop early.
        let in_alphabet = text
            .iter()
            .fold(true, |all, byte| all & (byte.is_ascii_alphanumeric() | (*byte == b'+') | (*byte == b'/')));
        // Any other fault is in the characters after the last whole group of four.
        let (_, tail) = text.split_at(text.len() / 4 * 4);
        let mut decoded = [0; 3];
        if in_alphabet && CANONICAL.decode_slice(tail, &mut decoded).is_ok() {
            Ok(Self(candidate))
        } else {
            Err(MalformedToken::NotCanonical)
        }
    }
}

impl FromStr for DeviceToken {
    type Err = MalformedToken;

    fn from_str(text: &str) -> Result<Self, MalformedToken> {
        let value = HeaderValue::from_str(text).map_err(|_| MalformedToken::NotCanonical)?;
        Candidate::new(value).try_into()
    }
}

impl fmt::Debug for DeviceToken {
    // Omits the text, which can be replayed while the token lives.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceToken(..)")
    }
}

/// The text without its padding, if its length and padding are possible for a canonical token.
///
/// The rest of the syntax check covers the alphabet and the trailing bits. Both depend only on the returned bytes, so
/// the same bytes need that check only once.
pub(crate) fn unpadded(candidate: &Candidate) -> Result<&[u8], MalformedToken> {
    let text = candidate.as_bytes();
    if text.is_empty() {
        return Err(MalformedToken::Empty);
    }
    if text.len() > MAX_TOKEN_LENGTH {
        return Err(MalformedToken::TooLong);
    }
    let ([unpadded @ .., b'=', b'='] | [unpadded @ .., b'=']) = text else {
        return Ok(text);
    };
    let canonical_padding = text.len().is_multiple_of(4) && !unpadded.is_empty();
    if canonical_padding { Ok(unpadded) } else { Err(MalformedToken::NotCanonical) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax() {
        use MalformedToken::*;
        let cases: &[(&str, &str, Result<&str, MalformedToken>)] = &[
            ("no padding needed", "AgAA", Ok("AgAA")),
            ("canonical padding, two", "Ag==", Ok("Ag")),
            ("canonical padding, one", "AgA=", Ok("AgA")),
            ("padding left out", "Ag", Ok("Ag")),
            ("all of the alphabet's extras", "+/+/", Ok("+/+/")),
            ("white space around", " AgAA\t", Ok("AgAA")),
            ("nothing", "", Err(Empty)),
            ("only white space", "  ", Err(Empty)),
            ("only padding", "==", Err(NotCanonical)),
            ("only padding, a whole group", "====", Err(NotCanonical)),
            ("padding after a whole group", "AgAA=", Err(NotCanonical)),
            ("padding of a whole group's length", "AgAA====", Err(NotCanonical)),
            ("one padding where two belong", "Ag=", Err(NotCanonical)),
            ("two paddings where one belongs", "AgA==", Err(NotCanonical)),
            ("three paddings", "A===", Err(NotCanonical)),
            ("padding inside", "Ag==AgAA", Err(NotCanonical)),
            ("trailing bits, one byte", "Ah==", Err(NotCanonical)),
            ("trailing bits, unpadded", "Ah", Err(NotCanonical)),
            ("trailing bits, two bytes", "AgB=", Err(NotCanonical)),
            ("a lone character", "A", Err(NotCanonical)),
            ("URL-safe alphabet", "-_-_", Err(NotCanonical)),
            ("white space inside", "Ag AA", Err(NotCanonical)),
            ("a dot", "Ag.AA", Err(NotCanonical)),
            ("joined by a proxy", "AgAA, AgAA", Err(NotCanonical)),
        ];
        for (name, text, expected) in cases {
            let token = text.parse::<DeviceToken>();
            assert_eq!(token.as_ref().map(DeviceToken::expose), expected.as_ref().copied(), "{name}");
        }
    }

    #[test]
    fn the_limit_is_exact() {
        assert!("A".repeat(MAX_TOKEN_LENGTH).parse::<DeviceToken>().is_ok());
        let too_long = "A".repeat(MAX_TOKEN_LENGTH + 4).parse::<DeviceToken>();
        assert_eq!(too_long.err(), Some(MalformedToken::TooLong));
    }

    #[test]
    fn bytes_beyond_ascii_are_refused() {
        let value = HeaderValue::from_bytes(b"Ag\xffA").unwrap();
        assert_eq!(DeviceToken::try_from(Candidate::new(value)).err(), Some(MalformedToken::NotCanonical));
    }

    #[test]
    fn padding_is_not_part_of_the_digest() {
        let digest = |text: &str| text.parse::<DeviceToken>().unwrap().digest();
        assert_eq!(digest("Ag=="), digest("Ag"));
        assert_eq!(
            digest("AgAA").to_string(),
            "0f2586d0b356299d329104bb4001c66e2410c491980c1384b1bf8d114d063e3d".to_owned(),
        );
    }

    #[test]
    fn a_part_outside_of_the_value_is_empty() {
        let value = HeaderValue::from_static("AgAA");
        assert_eq!(unpadded(&Candidate::part(value.clone(), 9..12)), Err(MalformedToken::Empty));
        assert_eq!(unpadded(&Candidate::part(value, 2..usize::MAX)), Ok(&b"AA"[..]));
    }

    #[test]
    fn debug_shows_no_token() {
        let token: DeviceToken = "SECRETSECRET".parse().unwrap();
        assert!(!format!("{token:?} {:?}", token.0).contains("SECRET"));
    }
}
