//! The choice of Apple's server for each request, if any.

use std::{fmt, str::FromStr};

use http::{HeaderName, request};

use crate::gate::error::impl_error;

/// The environment of a device token: one of Apple's two servers. Only the server of its environment knows a token.
///
/// Builds from the App Store and TestFlight make tokens for production. Builds signed for development make tokens for
/// development. Apple refuses a token of the other environment as it refuses a forged one.
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

    /// Accepts `production` and `development`, in lower case. Anything else is an error.
    fn from_str(name: &str) -> Result<Self, UnknownEnvironment> {
        match name {
            "production" => Ok(Self::Production),
            "development" => Ok(Self::Development),
            _ => Err(UnknownEnvironment { _private: () }),
        }
    }
}

/// The error for a name that is not that of an [`Environment`]. The error does not quote the name, because it may be a
/// secret that belongs to another setting.
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
    /// Ask production first. Only if it refuses the token, ask development.
    ///
    /// Admits development builds of your team as well as released ones. It costs a second call per refused token.
    ProductionThenDevelopment,
    /// Ask neither: call the inner service without looking for a token.
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

/// Chooses the [`Route`] of each request. The policy sees the head as the client sent it, so the client controls
/// everything in it.
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
    /// Returns the route of one request. The layer calls this once per request; it must not block.
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

/// Lets **the client** choose: the development server for requests with `X-Apple-Device-Development: true`, production
/// for all others. The clients of Bearologics' DeviceCheck expect this.
///
/// # Danger
///
/// Anyone can send the header. Anyone who can sign development builds for your team can therefore use your production
/// service: a token that only the development server accepts is as good as a production token. Use this policy only
/// where development builds must reach the same server.
#[derive(Clone, Debug)]
pub struct EnvironmentHeader {
    name: HeaderName,
}

impl EnvironmentHeader {
    /// Makes a policy that reads the header called `name`. The value `true` means development.
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
