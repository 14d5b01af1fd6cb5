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
    /// segments (also with parameters, `..;x` or `..%3bx`), with a backslash or a control character, or with a
    /// percent-encoded dot, slash, backslash, percent sign or control character.
    ///
    /// A list with a path that no request can have cannot be
    /// [issued](crate::split_key::Splitter::issue).
    #[must_use]
    pub fn with_paths(mut self, paths: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.paths = Some(paths.into_iter().map(Into::into).collect());
        self
    }

    /// Whether each path can match a request. [`Splitter::issue`](crate::split_key::Splitter::issue) refuses limits with
    /// another path; check the limits of a record that you make yourself.
    #[must_use]
    pub fn are_possible(&self) -> bool {
        self.paths.iter().flatten().all(|path| {
            let path =
                path.strip_suffix("/*").map_or(&**path, |start| if start.is_empty() { "/" } else { start });
            let in_paths = |byte: u8| byte.is_ascii_graphic() && !b"?#*\"<>".contains(&byte);
            path.starts_with('/') && path.bytes().all(in_paths) && is_plain(path)
        })
    }

    /// Allows only these methods. Default: every method.
    #[must_use]
    pub fn with_methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = Some(methods.into_iter().collect());
        self
    }

    /// Allows use before this time. Default: no expiry. A response that is under way then ends only if its service asks
    /// [`ApiKey::revoked`](crate::split_key::ApiKey::revoked), as the gateway does.
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
    fn w14_no_spelling_of_dots_passes_a_star() {
        let limits = Limits::none().with_paths(["/v1/files/*"]);
        for dots in [
            ".",
            "..",
            "...",
            "..;x",
            "..%3bx",
            "..%3Bx",
            ".%3b",
            "..%00",
            "..%20",
            "..%09",
            "..%23",
            "..%3f",
            "%00..",
            "..%u002f",
            "%u002e%u002e",
            "..%c0%af",
            "%c0%ae%c0%ae",
            "%e0%80%ae",
            "%ef%bc%8e%ef%bc%8e",
            "..%ef%bc%8fx",
            "%e2%80%a5",
            "..%",
            "..%5",
            "..%zz",
            "%2e%2e",
            "%252e",
            "a%0a",
            "a\\..",
        ] {
            let path = format!("/v1/files/{dots}/chat");
            let found = limits.check(&Method::GET, &path, SystemTime::UNIX_EPOCH);
            assert_eq!(found, Err(Limit::Path), "{path}");
        }
    }

    #[test]
    fn w14_paths_that_no_request_can_have() {
        for (path, possible) in [
            ("/v1/chat", true),
            ("/v1/files/*", true),
            ("/*", true),
            ("/", true),
            ("/v1/a%20b", true),
            ("", false),
            ("*", false),
            ("v1/chat", false),
            ("https://x/v1/chat", false),
            ("/v1/*/chat", false),
            ("/v1/chat*", false),
            ("/v1/**", false),
            ("/v1/chat?limit=1", false),
            ("/v1/chat#x", false),
            ("/v1/a b", false),
            ("/v1/chat\n", false),
            ("/v1/../chat", false),
            ("/v1/..%3bx/*", false),
            ("/v1/%2e/x", false),
            ("/v1/ä", false),
        ] {
            assert_eq!(Limits::none().with_paths([path]).are_possible(), possible, "{path}");
        }
        assert!(Limits::none().are_possible());
        assert!(Limits::none().with_paths([""; 0]).are_possible());
    }

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
            ("dots, an encoded parameter", paths(), Method::GET, "/v1/files/..%3Bx/chat", Err(Limit::Path)),
            ("dots, an encoded query", paths(), Method::GET, "/v1/files/..%3fx/chat", Err(Limit::Path)),
            ("dots encoded twice", paths(), Method::GET, "/v1/files/%252e%252e/chat", Err(Limit::Path)),
            ("a parameter", paths(), Method::GET, "/v1/files/a;x", Ok(())),
            ("an encoded parameter", paths(), Method::GET, "/v1/files/a%3bx", Ok(())),
            ("a letter of another language", paths(), Method::GET, "/v1/files/%c3%a4", Ok(())),
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
