//! AI providers, and the prefixes of their API keys.

use std::sync::Arc;

#[cfg(feature = "gateway")]
use http::{HeaderName, HeaderValue};

use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
#[cfg(feature = "gateway")]
use crate::split_key::gateway::{
    endpoint::{Endpoint, ProviderError},
    error_shape::ErrorShape,
};
use crate::split_key::parts::{MAX_KEY_LENGTH, is_visible};

/// An AI provider: a name, and the prefixes of its API keys.
///
/// In a prefix, `#` stands for one digit. After the prefix, a key may hold any visible ASCII characters, including
/// dots.
///
/// ```
/// use tower_devicecheck::split_key::{Provider, Providers};
///
/// let providers = Providers::default()
///     .with(Provider::new("mistral")) // any key
///     .with(Provider::new("groq").with_prefix("gsk_"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    name: Box<str>,
    prefixes: Vec<Box<str>>,
    #[cfg(feature = "gateway")]
    pub(super) endpoint: Endpoint,
}

impl Provider {
    /// Makes a provider without prefixes, whose keys may begin with anything.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            prefixes: Vec::new(),
            #[cfg(feature = "gateway")]
            endpoint: Endpoint::new(),
        }
    }

    /// Adds a prefix. A key of a provider with prefixes must begin with one of them.
    #[must_use]
    pub fn with_prefix(mut self, pattern: &str) -> Self {
        self.prefixes.push(pattern.into());
        self
    }

    /// `openai`: `sk-proj-` and `sk-`.
    #[must_use]
    pub fn openai() -> Self {
        let provider = Self::new("openai");
        #[cfg(feature = "gateway")]
        let provider = Self { endpoint: Endpoint::openai(), ..provider };
        provider.with_prefix("sk-proj-").with_prefix("sk-")
    }

    /// `anthropic`: `sk-ant-api##-`.
    #[must_use]
    pub fn anthropic() -> Self {
        let provider = Self::new("anthropic");
        #[cfg(feature = "gateway")]
        let provider = Self { endpoint: Endpoint::anthropic(), ..provider };
        provider.with_prefix("sk-ant-api##-")
    }

    /// `google`: `AIza`.
    #[must_use]
    pub fn google() -> Self {
        let provider = Self::new("google");
        #[cfg(feature = "gateway")]
        let provider = Self { endpoint: Endpoint::google(), ..provider };
        provider.with_prefix("AIza")
    }

    /// The name under which records refer to the provider, and paths of a gateway.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The length of the key's prefix. The characters of the prefix are public.
    pub(super) fn prefix_length(&self, key: &str) -> Result<usize, SplitKeyError> {
        if key.is_empty() || key.len() > MAX_KEY_LENGTH || !is_visible(key) {
            return Err(SplitKeyErrorKind::InvalidKey.into());
        }
        if self.prefixes.is_empty() {
            return Ok(0);
        }
        let matching = self.prefixes.iter().filter(|pattern| has_prefix(key, pattern));
        let longest = matching.map(|pattern| pattern.len()).max();
        longest.filter(|length| *length < key.len()).ok_or(SplitKeyErrorKind::WrongFormat.into())
    }
}

/// For a [gateway](crate::split_key::gateway) to the provider.
#[cfg(feature = "gateway")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "gateway")))]
impl Provider {
    /// Sets where the provider is, such as `https://api.example/v1`. A version at the end is for requests that name none.
    /// Default: OpenAI, Anthropic and Google are at their servers; other providers are nowhere, and a gateway does not
    /// know them.
    ///
    /// # Errors
    ///
    /// Returns an error if the URL is not `https://`, or `http://` to the loopback interface, or if it holds anything but
    /// scheme, host, port and a plain path.
    pub fn with_base_url(mut self, url: &str) -> Result<Self, ProviderError> {
        self.endpoint.set_base_url(url)?;
        Ok(self)
    }

    /// Sets the header of the API key, and the word before the key in it. Default: `Authorization` with `Bearer`; for
    /// Anthropic `x-api-key`, and for Google `x-goog-api-key`, with the key alone.
    ///
    /// # Errors
    ///
    /// Returns an error if `scheme` is not one word of visible ASCII characters.
    pub fn with_key_header(mut self, name: HeaderName, scheme: Option<&str>) -> Result<Self, ProviderError> {
        self.endpoint.set_key_header(name, scheme)?;
        Ok(self)
    }

    /// Adds a header to every request, in the place of the client's. Default: none.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.endpoint.set_header(name, value);
        self
    }

    /// Adds a header to every request that has none of that name. Default: none; for Anthropic `anthropic-version:
    /// 2023-06-01`.
    #[must_use]
    pub fn with_default_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.endpoint.set_default_header(name, value);
        self
    }

    /// Adds a query parameter to every request, in the place of the client's. Default: none. Azure wants `api-version`.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is `key` or empty, or if one of the texts has other characters than letters, digits and
    /// `-._~`.
    pub fn with_query(mut self, name: &str, value: &str) -> Result<Self, ProviderError> {
        self.endpoint.set_query(name, value)?;
        Ok(self)
    }

    /// Sets the query parameters that clients may send. Default: those of the provider's SDKs, and for other providers
    /// those of OpenAI's.
    #[must_use]
    pub fn with_query_names(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.endpoint.set_query_names(names);
        self
    }

    /// Sets the JSON in which clients expect errors. Default: the provider's own, and for other providers OpenAI's.
    #[must_use]
    pub fn with_error_shape(mut self, shape: ErrorShape) -> Self {
        self.endpoint.set_error_shape(shape);
        self
    }

    /// The header of the API key: clients put their credential there.
    #[must_use]
    pub fn key_header(&self) -> &HeaderName {
        self.endpoint.key_header()
    }
}

fn has_prefix(key: &str, pattern: &str) -> bool {
    key.len() >= pattern.len()
        && key.bytes().zip(pattern.bytes()).all(|(byte, expected)| match expected {
            b'#' => byte.is_ascii_digit(),
            _ => byte == expected,
        })
}

/// The providers by name.
///
/// The default providers are `openai`, with the prefixes `sk-proj-` and `sk-`, `anthropic` with `sk-ant-api##-`, and
/// `google` with `AIza`. In a prefix, `#` stands for a digit.
#[derive(Clone, Debug)]
pub struct Providers(Vec<Arc<Provider>>);

impl Providers {
    /// Makes an empty list.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Adds a provider. It replaces a provider of the same name.
    #[must_use]
    pub fn with(mut self, provider: Provider) -> Self {
        self.0.retain(|other| other.name != provider.name);
        self.0.push(Arc::new(provider));
        self
    }

    /// The provider of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Provider> {
        self.0.iter().find(|provider| *provider.name == *name).map(|provider| &**provider)
    }

    /// All providers.
    pub fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.0.iter().map(|provider| &**provider)
    }

    #[cfg(feature = "gateway")]
    pub(super) fn find(&self, name: &str) -> Option<&Arc<Provider>> {
        self.0.iter().find(|provider| *provider.name == *name)
    }
}

impl Default for Providers {
    fn default() -> Self {
        Self([Provider::openai(), Provider::anthropic(), Provider::google()].map(Arc::new).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        use SplitKeyErrorKind::{InvalidKey, WrongFormat};
        let any = Provider::new("any");
        let cases: &[(&str, &Provider, &str, Result<usize, SplitKeyErrorKind>)] = &[
            ("openai", &Provider::openai(), "sk-abc", Ok(3)),
            ("the longest prefix counts", &Provider::openai(), "sk-proj-abc", Ok(8)),
            ("nothing but a prefix", &Provider::openai(), "sk-proj-", Err(WrongFormat)),
            ("anthropic", &Provider::anthropic(), "sk-ant-api03-abc", Ok(13)),
            ("no digits", &Provider::anthropic(), "sk-ant-apixx-abc", Err(WrongFormat)),
            ("google", &Provider::google(), "AIzaabc", Ok(4)),
            ("of another provider", &Provider::google(), "sk-abc", Err(WrongFormat)),
            ("any", &any, "whatever", Ok(0)),
            ("dots", &any, "a.b.c", Ok(0)),
            ("empty", &any, "", Err(InvalidKey)),
            ("a space", &any, "a b", Err(InvalidKey)),
            ("a line break", &Provider::openai(), "sk-abc\n", Err(InvalidKey)),
            ("not ASCII", &any, "schlüssel", Err(InvalidKey)),
        ];
        for (name, provider, key, expected) in cases {
            let found = provider.prefix_length(key).map_err(|error| error.kind());
            assert_eq!(found, *expected, "{name}");
        }
        assert!(any.prefix_length(&"x".repeat(MAX_KEY_LENGTH)).is_ok());
        assert!(any.prefix_length(&"x".repeat(MAX_KEY_LENGTH + 1)).is_err());
    }
}
