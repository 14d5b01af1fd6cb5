//! The names of all variables, and warnings of others that look like one of them.

/// All that the example reads. `docs/gateway.md` explains each.
const NAMES: [&str; 34] = [
    "ADMIN_TOKEN",
    "ALLOW_FAKE_APPLE",
    "ANTHROPIC_URL",
    "APPLE_JWT_ISS",
    "APPLE_JWT_KID",
    "APPLE_JWT_PRIVATE_KEY",
    "APPLE_JWT_PRIVATE_KEY_FILE",
    "CORS_ORIGINS",
    "DEVICECHECK_DEVELOPMENT_URL",
    "DEVICECHECK_PRODUCTION_URL",
    "FLEET_SINGLE_FLIGHT",
    "GOOGLE_URL",
    "HEAD_TIMEOUT",
    "IDLE_CONNECTIONS",
    "IDLE_TIMEOUT",
    "KEYS_FILE",
    "KEYS_IN_REDIS",
    "LISTEN",
    "MAX_BODY_BYTES",
    "METRICS_LISTEN",
    "OPENAI_URL",
    "PROJECTS_FILE",
    "PROVIDERS_FILE",
    "PROVIDER_CA_FILE",
    "REDIS_URL",
    "REQUEST_HEAD_TIMEOUT",
    "RUST_LOG",
    "SHUTDOWN_TIMEOUT",
    "SINGLE_USE",
    "TEST_KEY",
    "UPLOAD_TIMEOUT",
    "USAGE_DAYS",
    "USAGE_FOLDER",
    "WRITE_TIMEOUT",
];

/// Warns of each variable whose name is nearly that of a setting. Values are not printed.
pub(crate) fn warn_of_misspelt() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in names.filter(|name| !NAMES.contains(&&**name)) {
        if let Some(meant) = NAMES.iter().find(|known| is_near(&name, known)) {
            tracing::warn!("the variable {name} is not read: is {meant} meant?");
        } else if name.starts_with("APPLE_JWT_") {
            tracing::warn!("the variable {name} is not read: docs/gateway.md has all APPLE_JWT_ variables");
        }
    }
}

/// Whether the names differ by no more than the case, and one letter that is missing, too many or another, or two that
/// changed places.
fn is_near(name: &str, known: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let (name, known) = (name.as_bytes(), known.as_bytes());
    let start = name.iter().zip(known).take_while(|(a, b)| a == b).count();
    let (name, known) = (&name[start..], &known[start..]);
    let end = name.iter().rev().zip(known.iter().rev()).take_while(|(a, b)| a == b).count();
    match (&name[..name.len() - end], &known[..known.len() - end]) {
        ([a, b], [c, d]) => a == d && b == c,
        (name, known) => name.len() <= 1 && known.len() <= 1,
    }
}
