//! Device tokens that look real.

use base64::{Engine, engine::general_purpose::STANDARD};
use p256::{AffinePoint, elliptic_curve::sec1::ToEncodedPoint};

/// A token of [`TokenBuilder`]'s default size, 2,952 characters.
///
/// No two are the same, and no [`FakeApple`](crate::testing::FakeApple) knows it. A fake Apple accepts its
/// own [`genuine_token`](crate::testing::FakeApple::genuine_token)s.
///
/// # Panics
///
/// If the operating system gives no random bytes.
#[must_use]
pub fn realistic() -> String {
    TokenBuilder::new().build()
}

/// Builds device tokens with the size and shape of real ones, full of random bytes.
///
/// Apple documents a token as opaque bytes, to be sent as base64. Published real tokens have 2,214 and 2,200
/// bytes, that is 2,952 characters, and 2,936 with padding. They begin with `AgAAA` and consist of a format
/// number of four bytes, sixteen varying bytes, a point of the curve P-256 that is the same in all of them,
/// another point that varies, a length, and bytes of that length. Here, the second point is random bytes.
/// Apple documents none of this: a server must not rely on it.
#[derive(Clone, Debug)]
#[must_use]
pub struct TokenBuilder {
    length: usize,
}

/// The length of format number, varying bytes, two points, and length.
const ENVELOPE: usize = 4 + 16 + 65 + 65 + 4;

impl TokenBuilder {
    /// The length of one published token in bytes: 2,952 characters, no padding.
    pub const LONG: usize = 2_214;
    /// The length of the other one in bytes: 2,936 characters, of which two are padding.
    pub const SHORT: usize = 2_200;

    /// A token of [`LONG`](Self::LONG) bytes.
    pub const fn new() -> Self {
        Self { length: Self::LONG }
    }

    /// Sets the token's length in bytes, at least 154, the bytes before the varying part of a real token.
    /// Four characters of text stand for three bytes. Default: [`LONG`](Self::LONG).
    pub const fn length(mut self, bytes: usize) -> Self {
        self.length = bytes;
        self
    }

    /// A new token, in standard base64 with padding.
    ///
    /// # Panics
    ///
    /// If the operating system gives no random bytes.
    #[must_use]
    pub fn build(&self) -> String {
        let mut bytes = vec![0; self.length.max(ENVELOPE)];
        #[allow(clippy::expect_used, reason = "see Panics")]
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        let rest = u32::try_from(bytes.len() - ENVELOPE).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&[2, 0, 0, 0]);
        bytes[20..85].copy_from_slice(AffinePoint::GENERATOR.to_encoded_point(false).as_bytes());
        // This byte marks an uncompressed point.
        bytes[85] = 4;
        bytes[150..ENVELOPE].copy_from_slice(&rest.to_le_bytes());
        STANDARD.encode(bytes)
    }
}

impl Default for TokenBuilder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceToken;

    #[test]
    fn tokens_have_the_shape_of_real_ones() {
        let cases: &[(&str, TokenBuilder, usize, usize)] = &[
            ("default", TokenBuilder::default(), 2_952, 0),
            ("short", TokenBuilder::new().length(TokenBuilder::SHORT), 2_936, 2),
            ("tiny", TokenBuilder::new().length(0), 208, 2),
            ("one padding", TokenBuilder::new().length(155), 208, 1),
        ];
        for (name, builder, characters, padding) in cases {
            let token = builder.build();
            assert_eq!(token.len(), *characters, "{name}");
            assert!(token.starts_with("AgAAA"), "{name}");
            assert_eq!(token.matches('=').count(), *padding, "{name}");
            assert!(token.parse::<DeviceToken>().is_ok(), "{name}");
            assert_ne!(token, builder.build(), "{name}");
        }
    }
}
