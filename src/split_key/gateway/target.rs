//! Where a request goes: provider, project, and the URL that its path stands for.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use crate::gate::path::is_plain_segment;
use crate::split_key::gateway::endpoint::is_version;
use crate::split_key::gateway::error_shape::ErrorShape;
use crate::split_key::gateway::query::{Query, decoded, holds_client_part};
use crate::split_key::gateway::rejection::GatewayRejection;
use crate::split_key::provider::{Provider, Providers};

/// Paths below which providers make credentials that work without the gateway, or show those of an organization: tokens
/// for realtime connections and chats, OpenRouter's keys, the administration of OpenAI and Anthropic. In lower case.
const CREDENTIAL_PATHS: [&str; 12] = [
    "auth",
    "auth_tokens",
    "authtokens",
    "chatkit/sessions",
    "keys",
    "organization",
    "organizations",
    "realtime/calls",
    "realtime/client_secrets",
    "realtime/sessions",
    "realtime/transcription_sessions",
    "realtimeapi/sessions",
];

const PROJECT: HeaderName = HeaderName::from_static("x-project-id");

/// Where a request goes: an extension of the request inside of
/// [`GatewayLayer`](crate::split_key::gateway::GatewayLayer).
#[derive(Clone, Debug)]
pub struct Target {
    provider: Arc<Provider>,
    project: Option<Arc<str>>,
    uri: Uri,
    path: Uri,
    /// The value of the parameter `key`, which is in neither of them. Marked sensitive.
    credential: Option<HeaderValue>,
}

impl Target {
    /// Reads `/v1/{provider}/{path}` or `/v1/{provider}/{project}/{path}`.
    ///
    /// Nothing in a path tells a project from the provider's own words, so the header does: without
    /// `X-Project-Id` the first segment after the provider is the project; with it, the path has none, unless
    /// it begins with the same id.
    ///
    /// # Errors
    ///
    /// Returns a rejection if the path names no provider with a base URL or no project, if servers may read it in two
    /// ways, if the provider makes credentials there, or if a query parameter does not cross the gateway.
    pub fn resolve(uri: &Uri, headers: &HeaderMap, providers: &Providers) -> Result<Self, GatewayRejection> {
        let (provider, rest) = split(uri, providers).ok_or(GatewayRejection::UnknownProvider)?;
        let rest = rest.ok_or(GatewayRejection::NoProject)?;
        if !rest.split('/').all(is_plain_segment) {
            return Err(GatewayRejection::BadPath);
        }
        // A path without a project ends here, too.
        if rest.split('/').any(is_empty) {
            return Err(GatewayRejection::EmptySegment);
        }
        let query = Query::read(provider.endpoint.query_names(), provider.endpoint.query(), uri.query())?;
        let named = headers.get(PROJECT).map(HeaderValue::as_bytes);
        // Projects and paths may be logged, and a client part may not.
        let in_header = named.and_then(|project| std::str::from_utf8(project).ok());
        if [Some(rest), query.to_send.as_deref(), in_header].into_iter().flatten().any(holds_client_part) {
            return Err(GatewayRejection::CredentialInUrl);
        }
        let (project, path) = match (named, rest.split_once('/')) {
            (None, Some((project, path))) => (Some(Arc::from(project)), path),
            (None, None) => return Err(GatewayRejection::NoProject),
            (Some(named), Some((first, path))) if named == first.as_bytes() => (None, path),
            (Some(_), _) => (None, rest),
        };
        if makes_credentials(path) {
            return Err(GatewayRejection::CredentialPath);
        }
        let (uri, path) =
            provider.endpoint.uri(path, query.to_send.as_deref()).ok_or(GatewayRejection::BadPath)?;
        let credential = query.credential;
        let query = query.to_send.map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("/v1/{}/{path}{query}", provider.name());
        let path = path.try_into().map_err(|_| GatewayRejection::BadPath)?;
        Ok(Self { provider: Arc::clone(provider), project, uri, path, credential })
    }

    /// The provider that gets the request.
    #[must_use]
    pub fn provider(&self) -> &Provider {
        &self.provider
    }

    /// The project, if it is in the path: text of the client's.
    #[must_use]
    pub fn project(&self) -> Option<&str> {
        self.project.as_deref()
    }

    /// The provider's URL for the request.
    #[must_use]
    pub const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The path in its one spelling, `/v1/{provider}/{path}`, and the query: what the
    /// [limits](crate::split_key::Limits) of a key are compared with.
    #[must_use]
    pub const fn path(&self) -> &Uri {
        &self.path
    }

    pub(super) fn take_credential(&mut self) -> Option<HeaderValue> {
        self.credential.take().filter(|text| !text.is_empty())
    }

    pub(super) fn error_shape(&self) -> ErrorShape {
        self.provider.endpoint.error_shape()
    }
}

/// The shape of errors for a path, also where the path leads nowhere.
pub(super) fn error_shape_of(uri: &Uri, providers: &Providers) -> Option<ErrorShape> {
    split(uri, providers).map(|(provider, _)| provider.endpoint.error_shape())
}

/// The provider that the path names, and the rest of the path, if there is a slash between them.
fn split<'a, 'b>(uri: &'a Uri, providers: &'b Providers) -> Option<(&'b Arc<Provider>, Option<&'a str>)> {
    let path = uri.path().strip_prefix("/v1/")?;
    let (name, rest) = path.split_once('/').map_or((path, None), |(name, rest)| (name, Some(rest)));
    Some((providers.find(name).filter(|provider| provider.endpoint.exists())?, rest))
}

/// Whether the path leads to credentials, also behind segments that a base URL may lack. Some servers ignore case.
fn makes_credentials(path: &str) -> bool {
    let Some(path) = decoded(path) else { return true };
    let path = path.to_ascii_lowercase();
    let mut path = path.trim_ascii_start();
    let below = |path: &[u8], start: &str| {
        path.strip_prefix(start.as_bytes()).is_some_and(|rest| {
            rest.first().is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
        })
    };
    while let Some(slash) = path.iter().position(|byte| *byte == b'/') {
        let (first, rest) = path.split_at(slash);
        let is_in_front = |name: &str| is_version(name) || matches!(name, "api" | "openai" | "upload");
        if !std::str::from_utf8(first).is_ok_and(is_in_front) {
            break;
        }
        path = rest.strip_prefix(b"/").unwrap_or(rest).trim_ascii_start();
    }
    CREDENTIAL_PATHS.iter().any(|start| below(path, start))
}

/// Some servers drop a segment that is empty, or empty before its parameters, a query or a fragment, also encoded.
fn is_empty(segment: &str) -> bool {
    let ends = ["%3b", "%3f", "%23"];
    segment.is_empty()
        || segment.starts_with(';')
        || segment.get(..3).is_some_and(|start| ends.iter().any(|end| end.eq_ignore_ascii_case(start)))
}
