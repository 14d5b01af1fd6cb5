//! Removing credentials from headers, and putting them back if the operator forwards them.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header::CACHE_CONTROL, request};

use crate::gate::{credential::BEARER, rejection::MalformedToken};

pub(crate) fn is_bearer(value: &HeaderValue) -> bool {
    value.as_bytes().get(..BEARER.len()).is_some_and(|start| start.eq_ignore_ascii_case(BEARER.as_bytes()))
}

/// The text after the scheme. `value` must satisfy [`is_bearer`].
pub(crate) fn after_scheme(value: &HeaderValue) -> &[u8] {
    value.as_bytes().get(BEARER.len()..).unwrap_or_default()
}

/// The place of the last dot: before the device token, which is long, if there is one.
pub(crate) fn last_dot(value: &HeaderValue) -> Option<usize> {
    let text = value.as_bytes();
    match std::str::from_utf8(text) {
        // Looks at many bytes at once.
        Ok(text) => text.rfind('.'),
        Err(_) => text.iter().rposition(|byte| *byte == b'.'),
    }
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

/// Appends headers. Existing headers stay, except for `Cache-Control`: some caches look only at the first one.
pub(crate) fn append(headers: &mut HeaderMap, more: HeaderMap) {
    let mut last = None;
    for (name, value) in more {
        last = name.or(last);
        match &last {
            Some(name) if *name == CACHE_CONTROL => drop(headers.insert(name, value)),
            Some(name) => drop(headers.append(name, value)),
            None => {}
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
    /// Records everything that `strip` removes from a request, or changes in it.
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

    /// Puts the credentials back. All other changes to the request since then stay.
    pub(crate) fn put_back(self, head: &mut request::Parts) -> PutBack {
        let mut headers = Vec::with_capacity(self.headers.keys_len());
        for name in self.headers.keys() {
            let whole: Vec<_> = self.headers.get_all(name).iter().cloned().collect();
            let left = replace(&mut head.headers, name, whole.clone());
            headers.push(PutBackHeader { name: name.clone(), whole, left });
        }
        if let Some(uri) = self.uri {
            head.uri = uri;
        }
        PutBack(headers)
    }
}

/// The gate's record of the credentials that it has put back, for an inner layer that reads its own credentials from
/// the same headers.
#[derive(Clone)]
#[cfg_attr(not(feature = "split-key"), allow(dead_code))]
pub(crate) struct PutBack(Vec<PutBackHeader>);

#[derive(Clone)]
#[cfg_attr(not(feature = "split-key"), allow(dead_code))]
struct PutBackHeader {
    name: HeaderName,
    whole: Vec<HeaderValue>,
    /// The values without the gate's credentials.
    left: Vec<HeaderValue>,
}

#[cfg(feature = "split-key")]
impl PutBack {
    /// Removes the gate's credentials again. Headers that were changed in between stay as they are.
    pub(crate) fn take_away(&mut self, head: &mut request::Parts) {
        self.0.retain(|header| head.headers.get_all(&header.name).iter().eq(&header.whole));
        for header in &self.0 {
            replace(&mut head.headers, &header.name, header.left.clone());
        }
    }

    /// Restores the gate's credentials. A credential that was removed from a header since then stays removed.
    pub(crate) fn give_back(self, head: &mut request::Parts) {
        for PutBackHeader { name, whole, left } in self.0 {
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

/// Removes `start` from `whole`: `Bearer a.b` without `Bearer a` is `Bearer b`, and `a.b` without `a` is `b`.
#[cfg(feature = "split-key")]
fn without(whole: &HeaderValue, start: &HeaderValue) -> Option<HeaderValue> {
    let rest = whole.as_bytes().strip_prefix(start.as_bytes())?;
    let rest = rest.strip_prefix(b".").unwrap_or(rest);
    let scheme = if is_bearer(whole) { BEARER } else { "" };
    let mut value = HeaderValue::from_bytes(&[scheme.as_bytes(), rest].concat()).ok()?;
    value.set_sensitive(true);
    Some(value).filter(|_| !rest.is_empty())
}

/// Replaces the values of a header. Returns the previous values.
fn replace(headers: &mut HeaderMap, name: &HeaderName, values: Vec<HeaderValue>) -> Vec<HeaderValue> {
    let before = headers.get_all(name).iter().cloned().collect();
    headers.remove(name);
    for value in values {
        headers.append(name, value);
    }
    before
}
