//! The outermost layer: it finds out where a request goes, and refuses what must not cross.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, request};
use tower_layer::Layer;

use crate::gate::future::{Decide, Progress};
use crate::gate::headers::{after_scheme, is_bearer};
use crate::gate::{gate_body::HeadOnly, service::Gated};
use crate::split_key::gateway::access::Access;
use crate::split_key::gateway::query::holds_client_part;
use crate::split_key::gateway::rejection::GatewayRejection;
use crate::split_key::gateway::target::{Target, error_shape_of};
use crate::split_key::gateway::{errors, headers};
use crate::split_key::provider::Providers;

/// Those that no provider answers with the request itself, as `TRACE` would.
const METHODS: [Method; 6] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

const CLIENT_PART: HeaderName = HeaderName::from_static("x-ai-key");
const TEST_KEY: HeaderName = HeaderName::from_static("x-proxed-test-key");

/// A tower layer that leaves a [`Target`] with every request below `/v1/`, and refuses what must not cross the gateway.
///
/// The layer belongs outside of [`DeviceCheckLayer`](crate::DeviceCheckLayer), so that what it refuses costs no call to
/// Apple. It refuses:
///
/// * upgrades and tunnels, on every path;
/// * paths, queries, methods and media types that [`GatewayRejection`] lists;
/// * bodies that announce more bytes than [`with_body_limit`](Self::with_body_limit) allows.
///
/// The inner service gets the path in its one spelling, [`Target::path`]. A credential in the query parameter `key`
/// moves to the header `x-goog-api-key`. Beside a bearer token with a client part, `x-ai-key` is dropped. Requests for other paths pass unchanged.
#[derive(Clone, Debug)]
#[must_use]
pub struct GatewayLayer {
    rules: GatewayRules,
}

/// The rules of a [`GatewayLayer`].
#[derive(Clone, Debug)]
pub struct GatewayRules {
    providers: Arc<Providers>,
    body_limit: Option<u64>,
}

/// A service that refuses what must not cross the gateway, and passes the rest on to `S`.
pub type Gateway<S> = Gated<S, GatewayRules>;

impl GatewayLayer {
    /// Makes a layer for those of the providers that have a base URL.
    pub fn new(providers: Providers) -> Self {
        Self { rules: GatewayRules { providers: Arc::new(providers), body_limit: None } }
    }

    /// Sets how many bytes a request's body may announce. Default: any number. Bodies that announce no length are for
    /// [`Forward::with_body_limit`](crate::split_key::gateway::Forward::with_body_limit).
    pub fn with_body_limit(mut self, bytes: u64) -> Self {
        self.rules.body_limit = Some(bytes);
        self
    }
}

impl<S> Layer<S> for GatewayLayer {
    type Service = Gateway<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated::new(inner, Arc::new(self.rules.clone()))
    }
}

impl Decide for GatewayRules {
    type Mode = HeadOnly;
    type Answer = Infallible;

    fn admit(self: &Arc<Self>, head: &mut request::Parts) -> Progress<Self> {
        match self.resolve(head) {
            Ok(()) => Progress::Forward(None),
            Err(rejection) => {
                let shape = error_shape_of(&head.uri, &self.providers);
                Progress::Respond(Box::new(errors::respond(rejection, shape)))
            }
        }
    }

    fn answered(answer: Infallible, _: &mut request::Parts) -> Progress<Self> {
        match answer {}
    }
}

impl GatewayRules {
    fn resolve(&self, head: &mut request::Parts) -> Result<(), GatewayRejection> {
        // Also where there is no provider: a tunnel has no path.
        if head.method == Method::CONNECT || headers::want_upgrade(&head.headers) {
            return Err(GatewayRejection::UpgradeNotSupported);
        }
        if !head.uri.path().starts_with("/v1/") {
            return Ok(());
        }
        if !METHODS.contains(&head.method) {
            return Err(GatewayRejection::MethodNotAllowed);
        }
        let announced = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let announced = announced.and_then(|text| text.parse::<u64>().ok());
        if announced > self.body_limit && self.body_limit.is_some() {
            return Err(GatewayRejection::BodyTooLarge);
        }
        let mut media_types = head.headers.get_all(CONTENT_TYPE).iter();
        // Of several, each server picks another one.
        let only =
            media_types.next().is_none_or(|media_type| !is_list(media_type) && !is_form_or_batch(media_type));
        if !only || media_types.next().is_some() {
            return Err(GatewayRejection::BadMediaType);
        }
        let protocols = head.headers.get_all("x-goog-upload-protocol");
        if protocols.iter().any(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"resumable")) {
            return Err(GatewayRejection::ResumableUpload);
        }
        // As Proxed does. A test key takes the header instead.
        let headers = &mut head.headers;
        if headers.contains_key(CLIENT_PART)
            && !headers.contains_key(TEST_KEY)
            && bearer_holds_client_part(headers)
        {
            headers.remove(CLIENT_PART);
        }
        let mut target = Target::resolve(&head.uri, &head.headers, &self.providers)?;
        if let Some(access) = head.extensions.get::<Access>() {
            access.set_provider(target.provider().name());
        }
        head.uri = target.path().clone();
        // From here on, it is in the header that Google's SDKs use. Beside another one there, it is refused.
        if let Some(credential) = target.take_credential() {
            let name = HeaderName::from_static("x-goog-api-key");
            if head.headers.get(&name) != Some(&credential) {
                head.headers.append(name, credential);
            }
        }
        head.extensions.insert(target);
        Ok(())
    }
}

fn bearer_holds_client_part(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter().filter(|value| is_bearer(value));
    values.any(|value| std::str::from_utf8(after_scheme(value)).is_ok_and(holds_client_part))
}

/// Whether there is a comma outside of quotes, or might be one, because a quote has no end.
fn is_list(media_type: &HeaderValue) -> bool {
    let mut bytes = media_type.as_bytes().iter();
    let mut is_quoted = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            // The next character stands for itself (RFC 9110, section 5.6.4).
            b'\\' if is_quoted => _ = bytes.next(),
            b',' if !is_quoted => return true,
            _ => {}
        }
    }
    is_quoted
}

/// Media types of bodies that hold requests, or parameters that servers read as if they were in the URL.
fn is_form_or_batch(media_type: &HeaderValue) -> bool {
    let text = String::from_utf8_lossy(media_type.as_bytes());
    // Some servers end the type at a space.
    let media_type = text.trim_start().split([';', ' ', '\t']).next().unwrap_or_default();
    let listed =
        ["application/x-www-form-urlencoded", "application/http", "multipart/mixed", "multipart/batch"];
    let is_message = media_type.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("message/"));
    is_message || listed.iter().any(|listed| listed.eq_ignore_ascii_case(media_type))
}
