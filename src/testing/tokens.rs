//! Device tokens that look real.

use base64::{Engine, engine::general_purpose::STANDARD};
use p256::{AffinePoint, elliptic_curve::sec1::ToEncodedPoint};

/// The length of format number, varying bytes, two points, and length.
const ENVELOPE: usize = 4 + 16 + 65 + 65 + 4;
/// The length of one published token in bytes: 2,952 characters, no padding.
pub(super) const LONG: usize = 2_214;
/// The length of the other one in bytes: 2,936 characters, of which two are padding.
pub(super) const SHORT: usize = 2_200;

/// Makes a new token of 2,952 characters, with the size and structure of a real one, filled with random bytes.
///
/// Each call makes another token. No [`FakeApple`](crate::testing::FakeApple) knows it: a fake Apple accepts only its
/// own tokens, such as those of [`genuine_token`](crate::testing::FakeApple::genuine_token).
///
/// Apple documents a token as opaque bytes, to be sent as base64. Published real tokens have 2,214 bytes (2,952
/// characters) and 2,200 bytes (2,936 characters with padding). They begin with `AgAAA`, and consist of a format number
/// of four bytes, sixteen varying bytes, a point on the curve P-256 that is the same in all of them, another point that
/// varies, a length, and bytes of that length. In tokens of this function, the second point is random bytes. Apple
/// documents none of this structure: a server must not rely on it.
///
/// # Panics
///
/// Panics if the operating system gives no random bytes.
#[must_use]
pub fn realistic_token() -> String {
    token_of_length(LONG)
}

/// Makes a token like a [realistic one](realistic_token), but with the given length in bytes. The minimum is 154, the
/// length of a real token before its varying part. Three bytes make four characters of standard base64 with padding.
///
/// # Panics
///
/// Panics if the operating system gives no random bytes.
#[must_use]
pub fn token_of_length(bytes: usize) -> String {
    let mut token = vec![0; bytes.max(ENVELOPE)];
    #[allow(clippy::expect_used, reason = "see Panics")]
    getrandom::fill(&mut token).expect("the operating system gives random bytes");
    let rest = u32::try_from(token.len() - ENVELOPE).unwrap_or(u32::MAX);
    token[..4].copy_from_slice(&[2, 0, 0, 0]);
    token[20..85].copy_from_slice(AffinePoint::GENERATOR.to_encoded_point(false).as_bytes());
    // This byte marks an uncompressed point.
    token[85] = 4;
    token[150..ENVELOPE].copy_from_slice(&rest.to_le_bytes());
    STANDARD.encode(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceToken;

    #[test]
    fn tokens_have_the_shape_of_real_ones() {
        let cases: &[(&str, usize, usize, usize)] = &[
            ("default", LONG, 2_952, 0),
            ("short", SHORT, 2_936, 2),
            ("tiny", 0, 208, 2),
            ("one padding", 155, 208, 1),
        ];
        for (name, bytes, characters, padding) in cases {
            let token = token_of_length(*bytes);
            assert_eq!(token.len(), *characters, "{name}");
            assert!(token.starts_with("AgAAA"), "{name}");
            assert_eq!(token.matches('=').count(), *padding, "{name}");
            assert!(token.parse::<DeviceToken>().is_ok(), "{name}");
            assert_ne!(token, token_of_length(*bytes), "{name}");
        }
    }
}
