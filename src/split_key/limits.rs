//! Limits on the use of a key.

use http::Method;

use crate::gate::{error::impl_error, path::is_plain};
use crate::runtime::SystemTime;

/// Limits on the use of a key by a genuine device. By default, there are none.
///
/// ```
/// use http::Method;
/// use tower_devicecheck::split_key::Limits;
///
/// let limits = Limits::none()
///     .with_methods([Method::POST])
///     .with_paths(["/v1/openai/chat/completions", "/v1/openai/responses/*"]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub(super) paths: Option<Vec<String>>,
    pub(super) methods: Option<Vec<Method>>,
    pub(super) expires_at: Option<SystemTime>,
}

/// A limit that a request does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// The key may not be used with this method.
    Method,
    /// The key may not be used on this path.
    Path,
    /// The key has expired.
    Expiry,
}

impl Limit {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "the key may not be used with this method",
            Self::Path => "the key may not be used on this path",
            Self::Expiry => "the key has expired",
        }
    }
}

impl_error!(Limit, |limit| None, "{}", limit.as_str());

impl Limits {
    /// No limits.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Allows only these paths. A path that ends in `/*` matches all paths that begin with the text before the star.
    /// Any other path matches only itself. An empty list allows no path. Default: every path.
    ///
    /// The layer compares the path of the request as it receives it, without any prefix that a router has stripped.
    /// Some paths are never allowed, because another server might read them as other paths: those with `.` or `..`
    /// segments (also before parameters, `..;x`, or before a percent-encoded `;`, `?` or `#`), with a backslash, or with
    /// a percent-encoded dot, slash, backslash or percent sign.
    #[must_use]
    pub fn with_paths(mut self, paths: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.paths = Some(paths.into_iter().map(Into::into).collect());
        self
    }

    /// Allows only these methods. Default: every method.
    #[must_use]
    pub fn with_methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = Some(methods.into_iter().collect());
        self
    }

    /// Allows use before this time. Default: no expiry.
    #[must_use]
    pub const fn with_expiry(mut self, expires_at: SystemTime) -> Self {
        self.expires_at = Some(expires_at);
        self
    }

    /// The allowed paths; `None` for every path.
    #[must_use]
    pub fn paths(&self) -> Option<&[String]> {
        self.paths.as_deref()
    }

    /// The allowed methods; `None` for every method.
    #[must_use]
    pub fn methods(&self) -> Option<&[Method]> {
        self.methods.as_deref()
    }

    /// The time at which the key expires; `None` for never.
    #[must_use]
    pub const fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// Checks a request against all limits. The error is the first limit that it does not meet.
    pub(super) fn check(&self, method: &Method, path: &str, now: SystemTime) -> Result<(), Limit> {
        if self.expires_at.is_some_and(|expires_at| now >= expires_at) {
            return Err(Limit::Expiry);
        }
        if self.methods.as_ref().is_some_and(|methods| !methods.contains(method)) {
            return Err(Limit::Method);
        }
        match &self.paths {
            Some(paths) if !is_plain(path) || !paths.iter().any(|allowed| covers(allowed, path)) => {
                Err(Limit::Path)
            }
            _ => Ok(()),
        }
    }
}

fn covers(allowed: &str, path: &str) -> bool {
    match allowed.strip_suffix('*') {
        Some(start) if start.ends_with('/') => path.starts_with(start),
        _ => allowed == path,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn checks() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let paths = || Limits::none().with_paths(["/v1/chat", "/v1/files/*"]);
        let post = || Limits::none().with_methods([Method::POST]);
        type Case = (&'static str, Limits, Method, &'static str, Result<(), Limit>);
        let cases: &[Case] = &[
            ("no limits", Limits::none(), Method::GET, "/a/../b", Ok(())),
            ("the path", paths(), Method::GET, "/v1/chat", Ok(())),
            ("below the path", paths(), Method::GET, "/v1/chat/x", Err(Limit::Path)),
            ("beside the path", paths(), Method::GET, "/v1/chatx", Err(Limit::Path)),
            ("under a star", paths(), Method::GET, "/v1/files/a/b", Ok(())),
            ("the folder of a star", paths(), Method::GET, "/v1/files", Err(Limit::Path)),
            ("beside a star", paths(), Method::GET, "/v1/filesystem", Err(Limit::Path)),
            ("dots", paths(), Method::GET, "/v1/files/../chat", Err(Limit::Path)),
            ("encoded dots", paths(), Method::GET, "/v1/files/%2E%2e/chat", Err(Limit::Path)),
            ("an encoded slash", paths(), Method::GET, "/v1/files/..%2fchat", Err(Limit::Path)),
            ("dots with a parameter", paths(), Method::GET, "/v1/files/..;x/chat", Err(Limit::Path)),
            (
                "dots with an encoded parameter",
                paths(),
                Method::GET,
                "/v1/files/..%3Bx/chat",
                Err(Limit::Path),
            ),
            ("dots with an encoded query", paths(), Method::GET, "/v1/files/..%3fx/chat", Err(Limit::Path)),
            ("dots encoded twice", paths(), Method::GET, "/v1/files/%252e%252e/chat", Err(Limit::Path)),
            ("a parameter", paths(), Method::GET, "/v1/files/a;x", Ok(())),
            ("dots in a name", paths(), Method::GET, "/v1/files/a..b.txt", Ok(())),
            ("no paths", Limits::none().with_paths([""; 0]), Method::GET, "/", Err(Limit::Path)),
            ("the method", post(), Method::POST, "/", Ok(())),
            ("another method", post(), Method::GET, "/", Err(Limit::Method)),
            (
                "just before the end",
                Limits::none().with_expiry(now + Duration::from_millis(1)),
                Method::GET,
                "/",
                Ok(()),
            ),
            ("at the end", Limits::none().with_expiry(now), Method::GET, "/", Err(Limit::Expiry)),
        ];
        for (name, limits, method, path, expected) in cases {
            assert_eq!(limits.check(method, path, now), *expected, "{name}");
        }
    }
}
