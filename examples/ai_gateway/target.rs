//! Where a request goes: provider, project, and the URL that its path stands for.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header::AUTHORIZATION};
use reqwest::Url;
use tower_devicecheck::{BoxError, split_key::ApiKey};

use super::{
    problem::Problem,
    query::{Query, holds_client_part},
};

pub(crate) const PROJECT: HeaderName = HeaderName::from_static("x-project-id");

/// An AI provider: where it is, and how it takes its API key.
pub(crate) struct Provider {
    name: &'static str,
    base: Url,
    /// The path of `base` without the version that ends it.
    root: String,
    /// The version of the API for requests that name none, if `base` ends in one.
    version: Option<String>,
    auth: Auth,
}

#[derive(Clone, Copy)]
enum Auth {
    Bearer,
    Header(&'static str),
}

impl Provider {
    pub(crate) fn openai(base: Option<&str>) -> Result<Self, BoxError> {
        Self::new("openai", base.unwrap_or("https://api.openai.com/v1"), Auth::Bearer)
    }

    pub(crate) fn anthropic(base: Option<&str>) -> Result<Self, BoxError> {
        Self::new("anthropic", base.unwrap_or("https://api.anthropic.com/v1"), Auth::Header("x-api-key"))
    }

    pub(crate) fn google(base: Option<&str>) -> Result<Self, BoxError> {
        let base = base.unwrap_or("https://generativelanguage.googleapis.com/v1beta");
        Self::new("google", base, Auth::Header("x-goog-api-key"))
    }

    fn new(name: &'static str, base: &str, auth: Auth) -> Result<Self, BoxError> {
        // It may hold a password, so it is not quoted.
        let refused = |why: &str| format!("the URL of {name} {why}");
        let url: Url = base.trim().parse().map_err(|_| refused("is none: write `https://host/v1`"))?;
        match url.scheme() {
            "https" => {}
            // The API key would travel in the clear.
            "http" if !is_loopback(&url) => return Err(refused("must be https").into()),
            "http" => {}
            _ => return Err(refused("must be https").into()),
        }
        if !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some()
            // A password with a slash in it looks like a path.
            || base.contains('@')
        {
            return Err(refused("must be nothing but scheme, host, port and path").into());
        }
        let path = url.path().trim_end_matches('/');
        let (root, version) = match path.rsplit_once('/') {
            Some((root, last)) if is_version(last) => (root.to_owned(), Some(last.to_owned())),
            _ => (path.to_owned(), None),
        };
        Ok(Self { name, base: url, root, version, auth })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Puts the API key where the provider looks for it.
    pub(crate) fn authorize(&self, headers: &mut HeaderMap, key: &ApiKey) {
        match self.auth {
            Auth::Bearer => headers.insert(AUTHORIZATION, key.bearer_value()),
            Auth::Header(name) => headers.insert(name, key.header_value()),
        };
    }

    /// The URL for a path below the provider, and the same path without the version if that is the usual one.
    fn url<'a>(&self, path: &'a str, query: Option<&str>) -> Option<(Url, &'a str)> {
        // Google's uploads have the version second.
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let names_version =
            is_version(first) || (first == "upload" && rest.split('/').next().is_some_and(is_version));
        let full = match &self.version {
            Some(version) if !names_version => format!("{}/{version}/{path}", self.root),
            _ => format!("{}/{path}", self.root),
        };
        let mut url = self.base.clone();
        url.set_path(&full);
        url.set_query(query);
        // The gateway does not forward a URL that the parser reads in another way.
        if url.path() != full || url.origin() != self.base.origin() {
            return None;
        }
        let usual = self.version.as_deref() == Some(first) && !rest.is_empty();
        Some((url, if usual { rest } else { path }))
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `v1`, `v1beta`, `v2alpha3` and the like.
fn is_version(segment: &str) -> bool {
    let mut rest = segment.bytes();
    rest.next() == Some(b'v')
        && rest.next().is_some_and(|byte| byte.is_ascii_digit())
        && rest.all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
}

/// The providers by name.
#[derive(Clone)]
pub(crate) struct Providers(Arc<[Arc<Provider>]>);

impl Providers {
    pub(crate) fn new(providers: impl IntoIterator<Item = Provider>) -> Self {
        Self(providers.into_iter().map(Arc::new).collect())
    }

    fn find(&self, name: &str) -> Option<&Arc<Provider>> {
        self.0.iter().find(|provider| provider.name == name)
    }
}

/// Where a request goes. An extension of the request on its way to the proxy.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) provider: Arc<Provider>,
    /// The project, if it is in the path.
    pub(crate) project: Option<String>,
    pub(crate) url: Url,
    /// The path in its one spelling, `/v1/{provider}/{path}`: what the limits of a key are compared with.
    pub(crate) path: Uri,
    /// The value of the parameter `key`, which is in neither of them.
    pub(crate) credential: Option<HeaderValue>,
}

impl Target {
    /// Reads `/v1/{provider}/{path}` or `/v1/{provider}/{project}/{path}`.
    ///
    /// Nothing in a path tells a project from the provider's own words, so the header does: without
    /// `X-Project-Id` the first segment after the provider is the project; with it, the path has none, unless
    /// it begins with the same id.
    pub(crate) fn of(uri: &Uri, headers: &HeaderMap, providers: &Providers) -> Result<Self, Problem> {
        let below = uri.path().strip_prefix("/v1/").and_then(|path| path.split_once('/'));
        let (name, rest) = below.ok_or(Problem::UNKNOWN_PROVIDER)?;
        let provider = providers.find(name).ok_or(Problem::UNKNOWN_PROVIDER)?;
        if !rest.split('/').all(is_plain) {
            return Err(Problem::BAD_PATH);
        }
        let query = Query::read(name, uri.query())?;
        let named = headers.get(PROJECT).map(HeaderValue::as_bytes);
        // Projects and paths may be logged, and a client part may not.
        let in_header = named.and_then(|project| std::str::from_utf8(project).ok());
        if [Some(rest), query.rest.as_deref(), in_header].into_iter().flatten().any(holds_client_part) {
            return Err(Problem::CREDENTIAL_IN_URL);
        }
        let (project, path) = match (named, rest.split_once('/')) {
            (None, Some((project, path))) => (Some(project.to_owned()), path),
            (None, None) => return Err(Problem::NO_PROJECT),
            (Some(named), Some((first, path))) if named == first.as_bytes() => (None, path),
            (Some(_), _) => (None, rest),
        };
        let (url, path) = provider.url(path, query.rest.as_deref()).ok_or(Problem::BAD_PATH)?;
        let credential = query.credential;
        let query = query.rest.map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("/v1/{name}/{path}{query}").parse().map_err(|_| Problem::BAD_PATH)?;
        Ok(Self { provider: Arc::clone(provider), project, url, path, credential })
    }
}

/// Whether a segment of a path means the same to everybody. Servers disagree about empty segments, about dots
/// with parameters (`..;x`), and about when to decode `%2e`, `%2f` and `%5c`, or `%25` before those.
fn is_plain(segment: &str) -> bool {
    if matches!(segment.split(';').next(), None | Some("" | "." | "..")) {
        return false;
    }
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = match byte {
            b'\\' => return false,
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else { return false };
                high * 16 + low
            }
            _ => continue,
        };
        if matches!(decoded, 0x00..0x20 | 0x25 | 0x2e | 0x2f | 0x5c | 0x7f) {
            return false;
        }
    }
    true
}
