//! The place of a provider: its base URL, the header of its key, and all that it wants in a request besides.

use std::{fmt, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header::AUTHORIZATION, uri::Scheme};

use crate::gate::{error::impl_error, path::is_plain_segment};
use crate::split_key::{api_key::ApiKey, gateway::error_shape::ErrorShape};

/// The parameters of OpenAI's SDKs, but for those that name an organization or a project.
const OPENAI: [&str; 20] = [
    "after",
    "api-version",
    "before",
    "filter",
    "include",
    "include_obfuscation",
    "limit",
    "metadata",
    "model",
    "name",
    "order",
    "order_by",
    "page",
    "purpose",
    "run_id",
    "starting_after",
    "status",
    "stream",
    "type",
    "variant",
];
/// The parameters of Anthropic's SDKs, but for those that name a workspace.
const ANTHROPIC: [&str; 18] = [
    "after_id",
    "agent_id",
    "agent_version",
    "before_id",
    "beta",
    "created_at",
    "ids",
    "include_archived",
    "lifecycle",
    "limit",
    "order",
    "order_by",
    "page",
    "scope_id",
    "session_id",
    "source",
    "statuses",
    "version",
];
/// The parameters of Google's SDKs.
const GOOGLE: [&str; 14] = [
    "alt",
    "fields",
    "filter",
    "force",
    "include_input",
    "last_event_id",
    "orderBy",
    "pageSize",
    "pageToken",
    "page_size",
    "page_token",
    "stream",
    "updateMask",
    "update_mask",
];

/// A setting of a provider that cannot be used. The text never quotes it, because it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProviderError(&'static str);

impl_error!(ProviderError, |error| None, "{}", error.0);

/// Where a provider is, and what it wants in a request.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::split_key) struct Endpoint {
    /// Scheme and authority.
    base: Option<Uri>,
    /// The path of the base URL without the version that ends it.
    root: Box<str>,
    /// The version of the API for requests that name none, if the base URL ends in one.
    version: Option<Box<str>>,
    key_header: HeaderName,
    key_scheme: Option<Box<str>>,
    /// The operator's, in the place of the client's.
    headers: HeaderMap,
    /// For requests that have none of that name.
    default_headers: HeaderMap,
    /// The operator's pairs, in the place of the client's.
    query: Vec<(Box<str>, Box<str>)>,
    query_names: Vec<Box<str>>,
    error_shape: ErrorShape,
}

impl Endpoint {
    /// An OpenAI-compatible provider that is nowhere yet.
    pub(in crate::split_key) fn new() -> Self {
        Self {
            base: None,
            root: "".into(),
            version: None,
            key_header: AUTHORIZATION,
            key_scheme: Some("Bearer".into()),
            headers: HeaderMap::new(),
            default_headers: HeaderMap::new(),
            query: Vec::new(),
            query_names: boxed(&OPENAI),
            error_shape: ErrorShape::OpenAi,
        }
    }

    pub(in crate::split_key) fn openai() -> Self {
        Self::new().at("https://api.openai.com", Some("v1"))
    }

    pub(in crate::split_key) fn anthropic() -> Self {
        // Without a version Anthropic answers 400. This is the only one there is.
        let version = (HeaderName::from_static("anthropic-version"), HeaderValue::from_static("2023-06-01"));
        Self {
            key_header: HeaderName::from_static("x-api-key"),
            key_scheme: None,
            default_headers: HeaderMap::from_iter([version]),
            query_names: boxed(&ANTHROPIC),
            error_shape: ErrorShape::Anthropic,
            ..Self::new().at("https://api.anthropic.com", Some("v1"))
        }
    }

    pub(in crate::split_key) fn google() -> Self {
        Self {
            key_header: HeaderName::from_static("x-goog-api-key"),
            key_scheme: None,
            query_names: boxed(&GOOGLE),
            error_shape: ErrorShape::Google,
            ..Self::new().at("https://generativelanguage.googleapis.com", Some("v1beta"))
        }
    }

    fn at(mut self, origin: &'static str, version: Option<&str>) -> Self {
        self.base = Some(Uri::from_static(origin));
        self.version = version.map(Into::into);
        self
    }

    pub(in crate::split_key) fn set_base_url(&mut self, url: &str) -> Result<(), ProviderError> {
        let url = url.trim();
        let rest = "must be nothing but scheme, host, port and path";
        // `Uri` drops a fragment, and a password with a slash in it looks like a path.
        if url.contains(['@', '#', '?']) {
            return Err(ProviderError(rest));
        }
        let uri: Uri = url.parse().map_err(|_| ProviderError("is none: write `https://host/v1`"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(ProviderError("is none: write `https://host/v1`"));
        };
        // In the clear, the API key goes no farther than this machine.
        let is_safe = *scheme == Scheme::HTTPS || (*scheme == Scheme::HTTP && is_loopback(authority.host()));
        if !is_safe || authority.host().is_empty() {
            return Err(ProviderError("must be https"));
        }
        let path = uri.path().trim_end_matches('/');
        if !path.split('/').skip(1).all(|segment| !segment.is_empty() && is_plain_segment(segment)) {
            return Err(ProviderError("has a path that can be read in two ways"));
        }
        let (root, version) = match path.rsplit_once('/') {
            Some((root, last)) if is_version(last) => (root, Some(last.into())),
            _ => (path, None),
        };
        (self.root, self.version) = (root.into(), version);
        let base = Uri::builder().scheme(scheme.clone()).authority(authority.clone()).path_and_query("/");
        self.base = Some(base.build().map_err(|_| ProviderError(rest))?);
        Ok(())
    }

    pub(in crate::split_key) fn set_key_header(
        &mut self,
        name: HeaderName,
        scheme: Option<&str>,
    ) -> Result<(), ProviderError> {
        if scheme.is_some_and(|text| text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(ProviderError("has a scheme of the key that is not one word"));
        }
        (self.key_header, self.key_scheme) = (name, scheme.map(Into::into));
        Ok(())
    }

    pub(in crate::split_key) fn set_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.insert(name, value);
    }

    pub(in crate::split_key) fn set_default_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.default_headers.insert(name, value);
    }

    pub(in crate::split_key) fn set_query(&mut self, name: &str, value: &str) -> Result<(), ProviderError> {
        let is_plain =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
        if name.is_empty() || name == "key" || !is_plain(name) || !is_plain(value) {
            return Err(ProviderError("has a query parameter that is not of letters, digits and `-._~`"));
        }
        self.query.retain(|(other, _)| **other != *name);
        self.query.push((name.into(), value.into()));
        Ok(())
    }

    pub(in crate::split_key) fn set_query_names(
        &mut self,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) {
        self.query_names = names.into_iter().map(|name| name.into().into()).collect();
    }

    pub(in crate::split_key) fn set_error_shape(&mut self, shape: ErrorShape) {
        self.error_shape = shape;
    }

    pub(in crate::split_key) fn exists(&self) -> bool {
        self.base.is_some()
    }

    pub(super) fn query_names(&self) -> &[Box<str>] {
        &self.query_names
    }

    pub(super) fn error_shape(&self) -> ErrorShape {
        self.error_shape
    }

    pub(in crate::split_key) fn key_header(&self) -> &HeaderName {
        &self.key_header
    }

    /// The operator's pairs for the query.
    pub(super) fn query(&self) -> &[(Box<str>, Box<str>)] {
        &self.query
    }

    /// Adds what the provider wants: the operator's headers, and the API key where the provider looks for it.
    pub(super) fn complete(&self, headers: &mut HeaderMap, key: &ApiKey) {
        for (name, value) in &self.default_headers {
            if !headers.contains_key(name) {
                headers.insert(name, value.clone());
            }
        }
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        let value = match &self.key_scheme {
            Some(scheme) => key.value_with(scheme),
            None => key.header_value(),
        };
        headers.insert(&self.key_header, value);
    }

    /// The path of the base URL, without a version.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// The URL for a path below the provider, and the same path without the version if that is the usual one.
    pub(super) fn uri<'a>(&self, path: &'a str, query: Option<&str>) -> Option<(Uri, &'a str)> {
        // Google's uploads have the version second.
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let names_version =
            is_version(first) || (first == "upload" && rest.split('/').next().is_some_and(is_version));
        let mut full = String::with_capacity(self.root.len() + path.len() + query.map_or(0, str::len) + 16);
        full.push_str(&self.root);
        if let Some(version) = self.version.as_deref().filter(|_| !names_version) {
            full.push('/');
            full.push_str(version);
        }
        full.push('/');
        full.push_str(path);
        if let Some(query) = query {
            full.push('?');
            full.push_str(query);
        }
        let base = self.base.clone()?.into_parts();
        let mut parts = http::uri::Parts::default();
        (parts.scheme, parts.authority) = (base.scheme, base.authority);
        parts.path_and_query = Some(full.try_into().ok()?);
        let usual = self.version.as_deref() == Some(first) && !rest.is_empty();
        Some((Uri::from_parts(parts).ok()?, if usual { rest } else { path }))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("base", &self.base)
            .field("root", &self.root)
            .field("version", &self.version)
            .field("key_header", &self.key_header)
            .field("error_shape", &self.error_shape)
            .finish_non_exhaustive()
    }
}

fn boxed(names: &[&str]) -> Vec<Box<str>> {
    names.iter().map(|name| Box::from(*name)).collect()
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `v1`, `v1beta`, `v2alpha3` and the like.
pub(super) fn is_version(segment: &str) -> bool {
    let mut rest = segment.bytes();
    rest.next() == Some(b'v')
        && rest.next().is_some_and(|byte| byte.is_ascii_digit())
        && rest.all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
}
