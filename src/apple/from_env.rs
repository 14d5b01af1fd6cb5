//! The client from environment variables.

use std::env::{self, VarError};

use tracing::{Level, event};

use crate::apple::builder::{AppleClientBuilder, endpoints};
use crate::apple::{client::AppleClient, credentials::Credentials, error::ClientError};
use crate::gate::{observer::TARGET, routing::Environment};

#[cfg(all(feature = "reqwest", not(target_arch = "wasm32")))]
impl AppleClient {
    /// Makes a client with every default, from the environment variables of [`AppleClientBuilder::from_env`]. Feature
    /// `reqwest`.
    ///
    /// The example `fake_apple` prints the same variables, so that one program can ask Apple in production and the fake
    /// elsewhere.
    ///
    /// # Errors
    ///
    /// Returns an error if a variable is missing or bad, or if the transport cannot be set up. The error's text names
    /// the variable and the remedy.
    pub fn from_env() -> Result<Self, ClientError> {
        AppleClientBuilder::from_env()?.build()
    }
}

impl AppleClientBuilder {
    /// Makes a builder from environment variables. They hold the credentials, and the base URLs of servers to ask
    /// instead of Apple's:
    ///
    /// | variable | value |
    /// |---|---|
    /// | `APPLE_JWT_ISS`, `APPLE_JWT_KID`, `APPLE_JWT_PRIVATE_KEY` or `APPLE_JWT_PRIVATE_KEY_FILE` | the credentials, see [`Credentials::from_env`] |
    /// | `DEVICECHECK_PRODUCTION_URL` | the base URL of a server that replaces Apple's production server |
    /// | `DEVICECHECK_DEVELOPMENT_URL` | the base URL of a server that replaces Apple's development server |
    ///
    /// A base URL is `https`, or `http` to a loopback address, as for [`base_url`](Self::base_url). A variable that
    /// holds only white space counts as unset. The log names each host that replaces one of Apple's.
    ///
    /// # Errors
    ///
    /// Returns an error if a variable of the credentials is missing, or if a variable is bad. The error's text names
    /// the variable and the remedy.
    ///
    /// # Danger
    ///
    /// A server that replaces Apple's decides which tokens are genuine. Anyone who can set the variables of the process
    /// can name such a server.
    pub fn from_env() -> Result<Self, ClientError> {
        Self::from_lookup(|name| env::var(name))
    }

    fn from_lookup(lookup: impl Fn(&str) -> Result<String, VarError>) -> Result<Self, ClientError> {
        let mut builder =
            AppleClient::builder(Credentials::from_lookup(&lookup).map_err(ClientError::credentials)?);
        for (environment, name) in URLS {
            let url = match lookup(name) {
                Ok(url) if url.trim().is_empty() => continue,
                Ok(url) => url,
                Err(VarError::NotPresent) => continue,
                Err(VarError::NotUnicode(_)) => {
                    return Err(ClientError::new(format!(
                        "{name}: it is not UTF-8 text: write `https://host`"
                    )));
                }
            };
            let host = endpoints(name, &url)?.validate.authority().map(ToString::to_string);
            event!(target: TARGET, Level::INFO, %environment, host, "asking another server in Apple's place");
            builder = builder.base_url(environment, url.trim());
        }
        Ok(builder)
    }
}

const PRODUCTION_URL: &str = "DEVICECHECK_PRODUCTION_URL";
const DEVELOPMENT_URL: &str = "DEVICECHECK_DEVELOPMENT_URL";
const URLS: [(Environment, &str); 2] =
    [(Environment::Production, PRODUCTION_URL), (Environment::Development, DEVELOPMENT_URL)];

#[cfg(test)]
mod tests {
    use std::env::VarError;

    use super::*;
    use crate::testing::PrivateKey;

    /// A builder from these variables, and those of good credentials.
    fn with(variables: &[(&str, &str)]) -> Result<AppleClientBuilder, ClientError> {
        let pem = PrivateKey::generate().to_pem();
        AppleClientBuilder::from_lookup(|name| {
            let given = variables.iter().rev().find(|(known, _)| *known == name);
            let value = match name {
                _ if given.is_some() => given.map(|(_, value)| *value),
                "APPLE_JWT_ISS" => Some("TEAM123456"),
                "APPLE_JWT_KID" => Some("KEY1234567"),
                "APPLE_JWT_PRIVATE_KEY" => Some(pem.as_str()),
                _ => None,
            };
            value.map(str::to_owned).ok_or(VarError::NotPresent)
        })
    }

    #[test]
    fn p03_a_client_from_the_environment() {
        type Case = (&'static [(&'static str, &'static str)], &'static str, &'static str);
        let cases: &[Case] = &[
            (&[], "https://api.devicecheck.apple.com", "https://api.development.devicecheck.apple.com"),
            (
                &[(PRODUCTION_URL, "http://127.0.0.1:3000"), (DEVELOPMENT_URL, " http://localhost:3001/x/ ")],
                "http://127.0.0.1:3000",
                "http://localhost:3001/x/",
            ),
            (
                &[(PRODUCTION_URL, "  "), (DEVELOPMENT_URL, "https://proxy.example/apple")],
                "https://api.devicecheck.apple.com",
                "https://proxy.example/apple",
            ),
        ];
        for (variables, production, development) in cases {
            let builder = with(variables).unwrap();
            let urls =
                [Environment::Production, Environment::Development].map(|of| builder.url(of).to_owned());
            assert_eq!(urls, [*production, *development], "{variables:?}");
            assert_eq!(builder.build().unwrap().team_id(), "TEAM123456");
        }
    }

    #[test]
    fn p03_a_bad_variable_is_named_with_its_cure_and_without_its_secrets() {
        let cases = [
            (PRODUCTION_URL, "http://example.com", "write `https://host`"),
            (PRODUCTION_URL, "devicecheck", "write `https://host`"),
            (DEVELOPMENT_URL, "https://user:secret@example.com", "remove it"),
            (DEVELOPMENT_URL, "https://example.com/?key=secret", "remove it"),
            ("APPLE_JWT_ISS", " ", "set it to your team id"),
            ("APPLE_JWT_PRIVATE_KEY", "secret", "APPLE_JWT_PRIVATE_KEY"),
        ];
        for (name, value, cure) in cases {
            let error = with(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains(cure), "{name}={value}: {error}");
            assert!(!error.contains("secret"), "{name}: {error}");
        }
    }
}
