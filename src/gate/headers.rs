//! Credentials in headers: taking them out, and putting them back where the operator forwards them.

use http::{HeaderMap, HeaderName, HeaderValue, header::Entry, request};

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

/// The headers and the URI of a request before its credentials were taken.
pub(crate) struct Original {
    headers: HeaderMap,
    uri: http::Uri,
}

impl Original {
    pub(crate) fn of(head: &request::Parts) -> Self {
        Self { headers: head.headers.clone(), uri: head.uri.clone() }
    }

    /// Puts back the values that were removed, marked sensitive. Headers that were added stay.
    pub(crate) fn put_back(mut self, head: &mut request::Parts) {
        let is_removed = |name: &&HeaderName| {
            let (before, left) = (self.headers.get_all(*name), head.headers.get_all(*name));
            left.iter().count() < before.iter().count()
                || before.iter().any(|value| !left.iter().any(|left| left == value))
        };
        let removed: Vec<HeaderName> = self.headers.keys().filter(is_removed).cloned().collect();
        for name in removed {
            if let Entry::Occupied(mut values) = self.headers.entry(&name) {
                values.iter_mut().for_each(|value| value.set_sensitive(true));
            }
            head.headers.remove(&name);
            for value in self.headers.get_all(&name) {
                head.headers.append(&name, value.clone());
            }
        }
        head.uri = self.uri;
    }
}
