//! Which of Apple's two servers is asked about a request's token, if any.

use std::{fmt, str::FromStr};

use http::{HeaderName, request};

use crate::gate::error::impl_error;

/// The environment of a device token: the one of Apple's two hosts that knows it.
///
/// Builds from the App Store and TestFlight make tokens for production, builds signed for development make
/// them for development. Apple answers a token of the other environment like a fake one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "Apple runs exactly these two")]
pub enum Environment {
    /// `api.devicecheck.apple.com`
    Production,
    /// `api.development.devicecheck.apple.com`
    Development,
}

impl Environment {
    /// `production` or `development`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Development => "development",
        }
    }

    /// `p` or `d`, for keys and hashes.
    #[cfg_attr(not(any(feature = "memory-cache", feature = "redis")), allow(dead_code))]
    pub(crate) const fn letter(self) -> u8 {
        match self {
            Self::Production => b'p',
            Self::Development => b'd',
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Environment {
    type Err = UnknownEnvironment;

    /// Takes `production` and `development`, in lower case; everything else is an error.
    fn from_str(name: &str) -> Result<Self, UnknownEnvironment> {
        match name {
            "production" => Ok(Self::Production),
            "development" => Ok(Self::Development),
            _ => Err(UnknownEnvironment { _private: () }),
        }
    }
}

/// A name that is not one of an [`Environment`]. It is not quoted: a value that belongs to another setting may be
/// a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownEnvironment {
    _private: (),
}

impl_error!(UnknownEnvironment, |error| None, "unknown environment: use \"production\" or \"development\"");

/// The decision of a [`RoutingPolicy`] for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Route {
    /// Ask Apple's production server. The default.
    Production,
    /// Ask Apple's development server.
    Development,
    /// Ask production; if it refuses the token, and only then, ask development.
    ///
    /// Lets development builds of your team in beside released ones, for a second call per refused token.
    ProductionThenDevelopment,
    /// Call the inner service without looking for a token.
    Exempt,
}

impl Route {
    pub(crate) const fn environments(self) -> &'static [Environment] {
        match self {
            Self::Production => &[Environment::Production],
            Self::Development => &[Environment::Development],
            Self::ProductionThenDevelopment => &[Environment::Production, Environment::Development],
            Self::Exempt => &[],
        }
    }
}

impl From<Environment> for Route {
    fn from(environment: Environment) -> Self {
        match environment {
            Environment::Production => Self::Production,
            Environment::Development => Self::Development,
        }
    }
}

/// Decides a [`Route`] for each request. It sees the head of the request as the client sent it: what it
/// takes from there, the client chose.
///
/// Implemented by [`Route`] itself, [`EnvironmentHeader`], and closures:
///
/// ```
/// use http::request;
/// use tower_devicecheck::Route;
/// # use tower_devicecheck::RoutingPolicy;
/// # fn check(_: impl RoutingPolicy) {}
///
/// # check(
/// |head: &request::Parts| match head.uri.path() {
///     "/health" => Route::Exempt,
///     _ => Route::Production,
/// }
/// # );
/// ```
#[diagnostic::on_unimplemented(note = "use a `Route` or a closure `Fn(&request::Parts) -> Route`")]
pub trait RoutingPolicy: Send + Sync + 'static {
    /// The route of one request. Called once per request; must not block.
    fn route(&self, head: &request::Parts) -> Route;
}

impl RoutingPolicy for Route {
    fn route(&self, _: &request::Parts) -> Route {
        *self
    }
}

impl<F> RoutingPolicy for F
where
    F: Fn(&request::Parts) -> Route + Send + Sync + 'static,
{
    fn route(&self, head: &request::Parts) -> Route {
        self(head)
    }
}

/// Lets **the client** choose: the development server for requests with `X-Apple-Device-Development: true`,
/// production for all others. This is what the clients of Bearologics' DeviceCheck expect.
///
/// # Danger
///
/// Anyone can send the header. Anyone who can sign development builds for your team can then use your
/// production service with them, and a token that production refuses is as good as one that it accepts if
/// development accepts it. Use it where development builds must reach the same server, and nowhere else.
#[derive(Clone, Debug)]
pub struct EnvironmentHeader {
    name: HeaderName,
}

impl EnvironmentHeader {
    /// The header called `name`; its value `true` stands for development.
    #[must_use]
    pub const fn new(name: HeaderName) -> Self {
        Self { name }
    }
}

/// `X-Apple-Device-Development`
impl Default for EnvironmentHeader {
    fn default() -> Self {
        Self::new(HeaderName::from_static("x-apple-device-development"))
    }
}

impl RoutingPolicy for EnvironmentHeader {
    fn route(&self, head: &request::Parts) -> Route {
        match head.headers.get(&self.name) {
            Some(value) if value.as_bytes().eq_ignore_ascii_case(b"true") => Route::Development,
            _ => Route::Production,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn environments_have_two_names_and_no_others() {
        for environment in [Environment::Production, Environment::Development] {
            assert_eq!(environment.to_string().parse(), Ok(environment));
        }
        for name in ["", "Production", "prod", "sandbox", "development ", "true"] {
            assert!(name.parse::<Environment>().unwrap_err().to_string().contains("production"), "{name}");
        }
    }

    #[test]
    fn environment_header() {
        let cases: &[(&str, Option<&str>, Route)] = &[
            ("absent", None, Route::Production),
            ("true", Some("true"), Route::Development),
            ("as some clients spell it", Some("True"), Route::Development),
            ("false", Some("false"), Route::Production),
            ("empty", Some(""), Route::Production),
            ("a number", Some("1"), Route::Production),
        ];
        for (name, value, route) in cases {
            let mut request = Request::builder();
            if let Some(value) = value {
                request = request.header("X-Apple-Device-Development", *value);
            }
            let head = request.body(()).unwrap().into_parts().0;
            assert_eq!(EnvironmentHeader::default().route(&head), *route, "{name}");
        }
    }
}
