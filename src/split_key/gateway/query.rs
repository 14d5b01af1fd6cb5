//! The query parameters that cross the gateway, by name, and the one that holds the credential.

use http::HeaderValue;

use crate::split_key::gateway::rejection::GatewayRejection;

/// The query of a request, taken apart.
pub(super) struct Query {
    /// The value of `key`, in which Google's clients send their API key.
    pub(super) credential: Option<HeaderValue>,
    /// All the rest, as the client wrote it, and what the operator adds.
    pub(super) to_send: Option<String>,
}

impl Query {
    /// Reads the query of a request to a provider that takes the parameters `known`. A parameter that is not in the
    /// list is refused rather than dropped: without it, the request would be another one. Only a parameter that the
    /// operator has set gives way.
    pub(super) fn read(
        known: &[Box<str>],
        set: &[(Box<str>, Box<str>)],
        query: Option<&str>,
    ) -> Result<Self, GatewayRejection> {
        if query.is_none() && set.is_empty() {
            return Ok(Self { credential: None, to_send: None });
        }
        let (mut credential, mut rest) = (None, Vec::new());
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            // Some servers begin another pair here.
            if pair.contains(';') {
                return Err(GatewayRejection::BadQuery);
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decoded(name), decoded(value)) else {
                return Err(GatewayRejection::BadQuery);
            };
            if name.as_slice() == b"key" {
                let mut value = HeaderValue::from_bytes(&value).map_err(|_| GatewayRejection::BadQuery)?;
                value.set_sensitive(true);
                if credential.replace(value).is_some() {
                    return Err(GatewayRejection::BadQuery);
                }
            } else if set.iter().any(|(set, _)| is_named(&name, set)) {
            } else if known.iter().any(|known| is_named(&name, known)) {
                rest.push(pair);
            } else {
                return Err(GatewayRejection::BadQuery);
            }
        }
        let set: Vec<_> = set.iter().map(|(name, value)| format!("{name}={value}")).collect();
        rest.extend(set.iter().map(String::as_str));
        Ok(Self { credential, to_send: (!rest.is_empty()).then(|| rest.join("&")) })
    }
}

/// `limit`, `include[]`, `metadata[key]`.
fn is_named(name: &[u8], known: &str) -> bool {
    match name.strip_prefix(known.as_bytes()) {
        Some([]) => true,
        Some([b'[', index @ .., b']']) => {
            index.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-.[]".contains(byte))
        }
        _ => false,
    }
}

/// Whether the text holds a client part, such as a mistaken client puts into the path.
pub(super) fn holds_client_part(text: &str) -> bool {
    let Some(text) = decoded(text) else { return false };
    // A dot, a version, and the rest of the metadata: 8 digits of time at least, and 8 of the split id.
    text.split(|byte| *byte == b'.').skip(1).any(|after| {
        let version = [&b"00000001"[..], b"00000002"].iter().any(|version| after.starts_with(version));
        version && after.iter().take_while(|byte| byte.is_ascii_hexdigit()).count() >= 24
    })
}

/// The bytes for which a percent-encoded text stands. `+` is itself, as in a device token. `None` for what is
/// not encoded properly, and for control characters.
pub(super) fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut found = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            byte
        };
        if byte.is_ascii_control() {
            return None;
        }
        found.push(byte);
    }
    Some(found)
}
