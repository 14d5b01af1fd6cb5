//! The device token of clients that have no other header to put it in than that of their provider's key.

use http::{HeaderName, HeaderValue, request};

use crate::device_check::token_source::TokenSource;
use crate::gate::{credential::Candidate, headers::last_dot, rejection::MalformedToken};

/// Takes the device token from the end of a header such as `X-Api-Key: <client part>.<device token>`: the text after the
/// last dot. The client part stays in the header, for [`SplitKeyLayer`](crate::split_key::SplitKeyLayer).
///
/// Finds nothing if the header is repeated, or has no dot. Finds nothing either beside the header `X-Device-Token` or
/// `X-Apple-Device-Token`: then all of it is the client part.
#[derive(Clone, Debug)]
pub struct ProviderHeaderToken {
    name: HeaderName,
}

impl ProviderHeaderToken {
    /// Makes a source for the header called `name`.
    #[must_use]
    pub const fn new(name: HeaderName) -> Self {
        Self { name }
    }
}

impl TokenSource for ProviderHeaderToken {
    fn take(&self, head: &mut request::Parts) -> Result<Option<Candidate>, MalformedToken> {
        Ok(take_after_last_dot(head, &self.name).map(Candidate::new))
    }
}

fn take_after_last_dot(head: &mut request::Parts, name: &HeaderName) -> Option<HeaderValue> {
    let elsewhere = ["x-device-token", "x-apple-device-token"];
    if elsewhere.iter().any(|name| head.headers.contains_key(*name)) {
        return None;
    }
    let mut values = head.headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let dot = last_dot(value)?;
    let (client_part, token) = value.as_bytes().split_at(dot);
    let mut token = HeaderValue::from_bytes(&token[1..]).ok()?;
    let mut client_part = HeaderValue::from_bytes(client_part).ok()?;
    token.set_sensitive(true);
    client_part.set_sensitive(true);
    head.headers.insert(name, client_part);
    Some(token)
}
