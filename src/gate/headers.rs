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
    pub(crate) fn put_back(mut self, head: &mut request::Parts) -> Forwarded {
        let is_removed = |name: &&HeaderName| {
            let (before, left) = (self.headers.get_all(*name), head.headers.get_all(*name));
            left.iter().count() < before.iter().count()
                || before.iter().any(|value| !left.iter().any(|left| left == value))
        };
        let removed: Vec<HeaderName> = self.headers.keys().filter(is_removed).cloned().collect();
        let mut forwarded = Vec::with_capacity(removed.len());
        for name in removed {
            if let Entry::Occupied(mut values) = self.headers.entry(&name) {
                values.iter_mut().for_each(|value| value.set_sensitive(true));
            }
            let whole: Vec<_> = self.headers.get_all(&name).iter().cloned().collect();
            let left = replace(&mut head.headers, &name, whole.clone());
            forwarded.push(ForwardedHeader { name, whole, left });
        }
        head.uri = self.uri;
        Forwarded(forwarded)
    }
}

/// The gate's note about credentials that it has put back, for a layer inside of it that reads others from the same
/// headers.
#[derive(Clone)]
#[cfg_attr(not(feature = "split-key"), allow(dead_code))]
pub(crate) struct Forwarded(Vec<ForwardedHeader>);

#[derive(Clone)]
#[cfg_attr(not(feature = "split-key"), allow(dead_code))]
struct ForwardedHeader {
    name: HeaderName,
    whole: Vec<HeaderValue>,
    /// The values without the gate's credentials.
    left: Vec<HeaderValue>,
}

#[cfg(feature = "split-key")]
impl Forwarded {
    /// Takes the gate's credentials away again. Headers that were changed in between are left alone.
    pub(crate) fn take_away(&mut self, head: &mut request::Parts) {
        self.0.retain(|header| head.headers.get_all(&header.name).iter().eq(&header.whole));
        for header in &self.0 {
            replace(&mut head.headers, &header.name, header.left.clone());
        }
    }

    /// Gives them back. From a header out of which a credential was taken since, that one stays away.
    pub(crate) fn give_back(self, head: &mut request::Parts) {
        for ForwardedHeader { name, whole, left } in self.0 {
            let is_untouched = head.headers.get_all(&name).iter().eq(&left);
            let values = match (is_untouched, &*whole, &*left) {
                (true, ..) => whole,
                (false, [whole], [left]) => without(whole, left).into_iter().collect(),
                _ => continue,
            };
            replace(&mut head.headers, &name, values);
        }
    }
}

/// `Bearer b` of `Bearer a.b` and `Bearer a`, and `b` of `a.b` and `a`.
#[cfg(feature = "split-key")]
fn without(whole: &HeaderValue, start: &HeaderValue) -> Option<HeaderValue> {
    let rest = whole.as_bytes().strip_prefix(start.as_bytes())?;
    let rest = rest.strip_prefix(b".").unwrap_or(rest);
    let scheme = if is_bearer(whole) { BEARER } else { "" };
    let mut value = HeaderValue::from_bytes(&[scheme.as_bytes(), rest].concat()).ok()?;
    value.set_sensitive(true);
    Some(value).filter(|_| !rest.is_empty())
}

/// Returns the values that were there before.
fn replace(headers: &mut HeaderMap, name: &HeaderName, values: Vec<HeaderValue>) -> Vec<HeaderValue> {
    let before = headers.get_all(name).iter().cloned().collect();
    headers.remove(name);
    for value in values {
        headers.append(name, value);
    }
    before
}
