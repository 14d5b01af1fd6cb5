//! Debug tokens: named secrets for simulators and CI, which have no device.

use std::{fmt, ops::RangeInclusive, sync::Arc};

use http::{HeaderMap, HeaderName};
use subtle::{Choice, ConstantTimeEq};

use crate::gate::{credential::TokenDigest, error::impl_error, headers::take_only};
use crate::quote::quoted;
use crate::runtime::SystemTime;

/// Named secrets that replace the device token for clients without a device: simulators and CI.
///
/// A client sends a debug token in a separate header, `X-Debug-Token` by default, or instead of the device token. If a
/// request also holds a device token, only the device token counts, unless debug tokens [come first](Self::first). The [`Evidence`](crate::Evidence) and every event
/// of a request that a debug token admitted name the debug token.
///
/// Secrets are compared in constant time. Only their SHA-256 is kept.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_devicecheck::DebugTokens;
///
/// # fn main() -> Result<(), tower_devicecheck::DebugTokenError> {
/// let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
/// let tokens = DebugTokens::new()
///     .add("ci", "b5d0a2a1-6c1e-4f0f-9f68-5f3f9f8f2f0a")?
///     .add_expiring("marys-simulator", "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", tomorrow)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct DebugTokens {
    header: HeaderName,
    is_first: bool,
    tokens: Vec<DebugToken>,
}

#[derive(Clone)]
struct DebugToken {
    name: Arc<str>,
    secret: TokenDigest,
    expires_at: Option<SystemTime>,
}

/// The allowed lengths of a secret, in characters. A longer text in a request is not compared with the secrets.
const SECRET_LENGTH: RangeInclusive<usize> = 16..=256;

impl DebugTokens {
    /// Makes an empty list with the header `X-Debug-Token`.
    pub fn new() -> Self {
        Self { header: HeaderName::from_static("x-debug-token"), is_first: false, tokens: Vec::new() }
    }

    /// Reads debug tokens from the header `name`. Default: `X-Debug-Token`.
    pub fn with_header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Looks at the header of debug tokens first: one of these tokens there counts, whatever else the request holds in the
    /// place of a device token. A text there that is none of them changes nothing. Default: a device token counts.
    ///
    /// This is for clients that always send another credential where a device token may be, such as `Authorization`.
    pub fn first(mut self) -> Self {
        self.is_first = true;
        self
    }

    pub(super) const fn is_first(&self) -> bool {
        self.is_first
    }

    /// Adds a token that is valid for as long as the layer lives.
    ///
    /// # Errors
    ///
    /// Returns an error unless the secret has 16 to 256 visible ASCII characters, or if the name is taken.
    pub fn add(self, name: &str, secret: &str) -> Result<Self, DebugTokenError> {
        self.push(name, secret, None)
    }

    /// Adds a token that is valid until `expires_at`.
    ///
    /// # Errors
    ///
    /// The same as for [`add`](Self::add).
    pub fn add_expiring(
        self,
        name: &str,
        secret: &str,
        expires_at: SystemTime,
    ) -> Result<Self, DebugTokenError> {
        self.push(name, secret, Some(expires_at))
    }

    fn push(
        mut self,
        name: &str,
        secret: &str,
        expires_at: Option<SystemTime>,
    ) -> Result<Self, DebugTokenError> {
        // A name that is longer than the secret may be the secret: the arguments may have been swapped.
        let is_swapped = name.len() >= *SECRET_LENGTH.start() && name.len() > secret.len();
        let shown = if is_swapped { "(not shown)".to_owned() } else { quoted(name).to_string() };
        let error = |reason| DebugTokenError { name: shown.clone(), reason };
        if !SECRET_LENGTH.contains(&secret.len()) {
            return Err(error("its secret must have 16 to 256 characters"));
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(error("its secret may hold visible ASCII characters only"));
        }
        if self.tokens.iter().any(|token| *token.name == *name) {
            return Err(error("there is another of that name"));
        }
        let secret = TokenDigest::of(secret.as_bytes());
        self.tokens.push(DebugToken { name: name.into(), secret, expires_at });
        Ok(self)
    }

    /// Returns the name of the unexpired token whose secret is `text`. Takes the same time for every token.
    pub(super) fn find(&self, text: &[u8], now: SystemTime) -> Option<&Arc<str>> {
        if !SECRET_LENGTH.contains(&text.len()) {
            return None;
        }
        let digest = TokenDigest::of(text);
        let mut found = None;
        for token in &self.tokens {
            let unexpired = token.expires_at.is_none_or(|expires_at| now < expires_at);
            let equal = token.secret.as_bytes().ct_eq(digest.as_bytes());
            if bool::from(equal & Choice::from(u8::from(unexpired))) {
                found = Some(&token.name);
            }
        }
        found
    }

    /// Removes the header of debug tokens and looks up its token. Returns `None` without such a header, and
    /// `Some(None)` if the header is repeated or holds no unexpired token.
    pub(super) fn take(&self, headers: &mut HeaderMap, now: SystemTime) -> Option<Option<&Arc<str>>> {
        match take_only(headers, &self.header) {
            Ok(None) => None,
            Ok(Some(value)) => Some(self.find(value.as_bytes(), now)),
            Err(_) => Some(None),
        }
    }

    /// Removes the header of debug tokens.
    pub(super) fn strip(&self, headers: &mut HeaderMap) {
        headers.remove(&self.header);
    }
}

impl Default for DebugTokens {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DebugTokens {
    // Shows only names, because even the digest of a weak secret gives it away.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugTokens")
            .field("header", &self.header)
            .field("names", &self.tokens.iter().map(|token| &token.name).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// An error from adding a debug token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugTokenError {
    name: String,
    reason: &'static str,
}

impl_error!(DebugTokenError, |error| None, "debug token {:?}: {}", error.name, error.reason);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECRET: &str = "correct-horse-battery";

    #[test]
    fn what_is_found() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let tokens = DebugTokens::new()
            .add("ci", SECRET)
            .and_then(|tokens| tokens.add_expiring("old", "expires-at-the-epoch-plus-1000", now))
            .and_then(|tokens| {
                tokens.add_expiring("new", "expires-a-second-later", now + Duration::from_secs(1))
            })
            .unwrap();
        let cases: &[(&str, Option<&str>)] = &[
            (SECRET, Some("ci")),
            ("expires-a-second-later", Some("new")),
            ("expires-at-the-epoch-plus-1000", None),
            ("correct-horse-batterz", None),
            ("correct-horse-battery ", None),
            ("ci", None),
            ("", None),
        ];
        for (text, name) in cases {
            assert_eq!(tokens.find(text.as_bytes(), now).map(|name| &**name), *name, "{text}");
        }
        assert!(!format!("{tokens:?}").contains(SECRET));
    }

    #[test]
    fn what_cannot_be_added() {
        let tokens = DebugTokens::new().add("ci", SECRET).unwrap();
        for (name, secret, reason) in [
            ("short", "fifteen-letters", "16 to 256"),
            ("long", &*"x".repeat(257), "16 to 256"),
            ("space", "correct horse battery", "visible ASCII"),
            ("ci", "another-good-secret", "another of that name"),
        ] {
            let error = tokens.clone().add(name, secret).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains(secret), "{name}: {error}");
        }
    }
}
