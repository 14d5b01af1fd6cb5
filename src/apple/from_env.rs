//! The client from environment variables.

#[cfg(test)]
mod tests {
    use std::env::VarError;

    use super::*;
    use crate::testing::keys::PrivateKey;

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
        let cases: &[(&[(&str, &str)], &str, &str)] = &[
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
            let urls = [Environment::Production, Environment::Development].map(|of| builder.url(of).to_owned());
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
