//! Credentials in headers: taking them out, and putting them back where the operator forwards them.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, request};

use crate::gate::{credential::BEARER, rejection::MalformedToken};

pub(crate) fn is_bearer(value: &HeaderValue) -> bool {
    value.as_bytes().get(..BEARER.len()).is_some_and(|start| start.eq_ignore_ascii_case(BEARER.as_bytes()))
}

/// The text after the scheme of a value for which [`is_bearer`] holds.
pub(crate) fn after_scheme(value: &HeaderValue) -> &[u8] {
    value.as_bytes().get(BEARER.len()..).unwrap_or_default()
}

/// Removes every value of a header and returns it if it was the only one.
pub(crate) fn take_only(
    headers: &mut HeaderMap,
    name: &HeaderName,
) -> Result<Option<HeaderValue>, MalformedToken> {
    let mut values = headers.get_all(name).iter();
    if values.next().is_none() {
        return Ok(None);
    }
    let repeated = values.next().is_some();
    let value = headers.remove(name);
    if repeated { Err(MalformedToken::Repeated) } else { Ok(value) }
}

/// Appends: a header that is there already stays.
pub(crate) fn append(headers: &mut HeaderMap, more: HeaderMap) {
    let mut last = None;
    for (name, value) in more {
        last = name.or(last);
        if let Some(name) = &last {
            headers.append(name, value);
        }
    }
}

/// Whether a value of `WWW-Authenticate` names a scheme, alone or in a list, with parameters or without.
pub(crate) fn names_scheme(challenges: &HeaderValue, scheme: &str) -> bool {
    let mut challenges = challenges.to_str().unwrap_or_default().split(',');
    challenges.any(|challenge| {
        challenge.split_ascii_whitespace().next().is_some_and(|named| named.eq_ignore_ascii_case(scheme))
    })
}

/// The credentials of a request as the client sent them, marked sensitive, for an inner service that wants them.
pub(crate) struct Forwarded {
    headers: HeaderMap,
    uri: Option<Uri>,
}

impl Forwarded {
    /// Everything that `strip` takes from a request, or changes in it.
    pub(crate) fn of(head: &request::Parts, strip: impl FnOnce(&mut request::Parts)) -> Self {
        let mut stripped = head.clone();
        strip(&mut stripped);
        let mut headers = HeaderMap::new();
        for name in head.headers.keys() {
            let values = head.headers.get_all(name);
            if values != stripped.headers.get_all(name) {
                for value in values {
                    let mut value = value.clone();
                    value.set_sensitive(true);
                    headers.append(name, value);
                }
            }
        }
        Self { headers, uri: (head.uri != stripped.uri).then(|| head.uri.clone()) }
    }

    /// Puts them where they were. Everything else that became of the request meanwhile stays.
    pub(crate) fn put_back(self, head: &mut request::Parts) {
        for name in self.headers.keys() {
            head.headers.remove(name);
        }
        append(&mut head.headers, self.headers);
        if let Some(uri) = self.uri {
            head.uri = uri;
        }
    }
}
