//! Token sources: they find the device token in a request.

use http::{HeaderName, HeaderValue, header::AUTHORIZATION, request};

use crate::gate::headers::{after_scheme, is_bearer, last_dot, take_only};
use crate::gate::{credential::Candidate, rejection::MalformedToken};

/// A source of device tokens: finds the device token in a request and takes it out, so that it does not reach the inner
/// service.
///
/// Implemented by [`HeaderToken`], [`BearerToken`], and closures that return the header value that they removed:
///
/// ```
/// use http::request;
/// # use tower_devicecheck::TokenSource;
/// # fn check(_: impl TokenSource) {}
/// # check(
/// |head: &mut request::Parts| head.headers.remove("device-token")
/// # );
/// ```
///
/// If the header is repeated, this closure takes the first value and drops the others; [`HeaderToken`] refuses repeated
/// headers.
#[diagnostic::on_unimplemented(
    note = "use `HeaderToken`, `BearerToken` or a closure `Fn(&mut request::Parts) -> Option<HeaderValue>`"
)]
pub trait TokenSource: Send + Sync + 'static {
    /// Takes the token out of the head of a request. Returns `None` if there is none.
    ///
    /// # Errors
    ///
    /// Returns an error if the source finds a text that cannot be a device token. The layer rejects the request as
    /// [`MalformedToken`](crate::Rejection::MalformedToken).
    fn take(&self, head: &mut request::Parts) -> Result<Option<Candidate>, MalformedToken>;
}

impl<F> TokenSource for F
where
    F: Fn(&mut request::Parts) -> Option<HeaderValue> + Send + Sync + 'static,
{
    fn take(&self, head: &mut request::Parts) -> Result<Option<Candidate>, MalformedToken> {
        Ok(self(head).map(Candidate::new))
    }
}

/// Takes the device token from a header: by default `X-Apple-Device-Token`.
///
/// A repeated header is refused.
#[derive(Clone, Debug)]
pub struct HeaderToken {
    name: HeaderName,
}

impl HeaderToken {
    /// Makes a source for the header called `name`.
    #[must_use]
    pub const fn new(name: HeaderName) -> Self {
        Self { name }
    }
}

impl Default for HeaderToken {
    fn default() -> Self {
        Self::new(HeaderName::from_static("x-apple-device-token"))
    }
}

impl TokenSource for HeaderToken {
    fn take(&self, head: &mut request::Parts) -> Result<Option<Candidate>, MalformedToken> {
        Ok(take_only(&mut head.headers, &self.name)?.map(Candidate::new))
    }
}

/// Takes the device token from the end of a bearer token: the text after the last dot, as in `Authorization: Bearer
/// <client part>.<device token>`, or the whole text if it has no dot.
///
/// The inner service gets `Authorization: Bearer <client part>`, or no such header if nothing is left. Schemes other
/// than `Bearer` are left untouched.
#[derive(Clone, Copy, Debug, Default)]
pub struct BearerToken {
    _private: (),
}

impl BearerToken {
    /// Makes a source for the `Authorization` header.
    #[must_use]
    pub const fn new() -> Self {
        Self { _private: () }
    }
}

impl TokenSource for BearerToken {
    fn take(&self, head: &mut request::Parts) -> Result<Option<Candidate>, MalformedToken> {
        if !head.headers.get_all(AUTHORIZATION).iter().any(is_bearer) {
            return Ok(None);
        }
        let Some(value) = take_only(&mut head.headers, &AUTHORIZATION)? else {
            return Ok(None);
        };
        let text = value.as_bytes();
        let scheme = text.len() - after_scheme(&value).len();
        let token_start = match last_dot(&value) {
            Some(dot) => {
                let left = &text[..dot];
                if left.len() > scheme
                    && let Ok(mut left) = HeaderValue::from_bytes(left)
                {
                    left.set_sensitive(true);
                    head.headers.insert(AUTHORIZATION, left);
                }
                dot + 1
            }
            None => scheme,
        };
        let end = text.len();
        Ok(Some(Candidate::part(value, token_start..end)))
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(headers: &[(&'static str, &'static str)]) -> request::Parts {
        let mut head = Request::new(()).into_parts().0;
        for (name, value) in headers {
            head.headers.append(*name, HeaderValue::from_static(value));
        }
        head
    }

    #[test]
    fn bearer() {
        type Row = (&'static str, &'static str, Option<&'static str>, Option<&'static str>);
        let cases: &[Row] = &[
            ("split key and token", "Bearer part.meta.AgAA", Some("AgAA"), Some("Bearer part.meta")),
            ("token alone", "Bearer AgAA", Some("AgAA"), None),
            ("scheme in another case", "bEARER a.AgAA", Some("AgAA"), Some("bEARER a")),
            ("nothing before the dot", "Bearer .AgAA", Some("AgAA"), None),
            ("nothing after the dot", "Bearer a.", Some(""), Some("Bearer a")),
            ("more white space", "Bearer   AgAA", Some("AgAA"), None),
            ("another scheme", "Basic a.AgAA", None, Some("Basic a.AgAA")),
            ("no scheme", "a.AgAA", None, Some("a.AgAA")),
            ("scheme alone", "Bearer", None, Some("Bearer")),
        ];
        for (name, value, token, left) in cases {
            let mut head = head(&[("authorization", value)]);
            let found = BearerToken::new().take(&mut head).unwrap();
            assert_eq!(found.as_ref().map(Candidate::as_bytes), token.map(str::as_bytes), "{name}");
            assert_eq!(
                head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes),
                left.map(str::as_bytes),
                "{name}"
            );
        }
        let mut twice = head(&[("authorization", "Basic x"), ("authorization", "Bearer AgAA")]);
        assert_eq!(BearerToken::new().take(&mut twice).unwrap_err(), MalformedToken::Repeated);
    }

    #[test]
    fn header() {
        let source = HeaderToken::new(HeaderName::from_static("device-token"));
        let mut once = head(&[("Device-Token", "AgAA"), ("x-apple-device-token", "AQAA")]);
        assert_eq!(source.take(&mut once).unwrap().unwrap().as_bytes(), b"AgAA");
        assert!(!once.headers.contains_key("device-token"));
        assert!(once.headers.contains_key("x-apple-device-token"));
        assert!(source.take(&mut once).unwrap().is_none());

        let mut twice = head(&[("device-token", "AgAA"), ("device-token", "AgAA")]);
        assert_eq!(source.take(&mut twice).unwrap_err(), MalformedToken::Repeated);
        assert!(!twice.headers.contains_key("device-token"));
    }
}
