//! The name of a tenant.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use crate::gate::error::impl_error;

/// The operator's name for a tenant: 1 to 64 ASCII letters, digits, `-`, `_` and `.`. Cloning is cheap.
///
/// Names are no secrets: logs, metrics and keys in Redis show them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantName(Arc<str>);

impl TenantName {
    const LONGEST: usize = 64;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantName {
    type Err = TenantError;

    fn from_str(name: &str) -> Result<Self, TenantError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > Self::LONGEST || !name.bytes().all(is_allowed) {
            return Err(TenantError("a tenant's name has 1 to 64 ASCII letters, digits, `-`, `_` and `.`"));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for TenantName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The error for a text that cannot be the name, the host or the path prefix of a tenant. The error does not quote the
/// text, because it may be a secret that belongs to another setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantError(pub(crate) &'static str);

impl_error!(TenantError, |error| None, "{}", error.0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let longest = "a".repeat(64);
        for name in ["a", "Shop-1_x.eu", &longest] {
            assert_eq!(name.parse::<TenantName>().unwrap().as_str(), name);
        }
        let secret = "sk-proj-0123456789012345678901234567890123456789012345678901234567890";
        for name in ["", "a/b", "a b", "a:b", "ä", "a\0", "a\n", &"a".repeat(65), secret] {
            let error = name.parse::<TenantName>().unwrap_err().to_string();
            assert!(name.is_empty() || name == "a b" || !error.contains(name), "{name}");
        }
    }
}
