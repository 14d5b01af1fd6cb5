//! AI providers: names, the public parts of their API keys, and where they are.

use std::sync::Arc;

#[cfg(feature = "gateway")]
use http::{HeaderName, HeaderValue};

#[cfg(feature = "gateway")]
use crate::split_key::gateway::{
    endpoint::{Endpoint, ProviderError},
    error_shape::ErrorShape,
};
use crate::split_key::key_format::{KeyFormat, Secrets, check_key};

/// An AI provider: a name, and the public parts of its API keys, which everybody knows.
///
/// A prefix is a pattern: `#` stands for one digit, `@` for one or more letters, and every other character for itself.
/// The rest of a key may hold any visible ASCII characters, including dots.
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
    format: KeyFormat,
    #[cfg(feature = "gateway")]
    pub(super) endpoint: Endpoint,
}

impl Provider {
    /// Makes a provider without prefixes, whose keys may begin with anything.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            format: KeyFormat::default(),
            #[cfg(feature = "gateway")]
            endpoint: Endpoint::new(),
        }
    }

    /// Adds a prefix. If a provider has prefixes, a key of a known format begins with one of them. A key of an unknown
    /// format cannot be cut ([`Version::Cut`](crate::split_key::Version::Cut)).
    #[must_use]
    pub fn with_prefix(mut self, pattern: &str) -> Self {
        self.format.prefixes.push(pattern.into());
        self
    }

    /// Adds a text that keys may hold anywhere and that is no secret, such as `T3BlbkFJ` in keys of OpenAI.
    #[must_use]
    pub fn with_infix(mut self, text: &str) -> Self {
        self.format.infixes.push(text.into());
        self
    }

    /// Adds a text that keys may end in and that is no secret, such as `AA` in keys of Anthropic.
    #[must_use]
    pub fn with_suffix(mut self, text: &str) -> Self {
        self.format.suffixes.push(text.into());
        self
    }

    /// `openai`: `sk-`, alone or with a word and a hyphen, such as `sk-proj-`, `sk-svcacct-`, `sk-admin-`, `sk-None-`. The
    /// text `T3BlbkFJ` is public.
    #[must_use]
    pub fn openai() -> Self {
        let provider = Self::new("openai");
        #[cfg(feature = "gateway")]
        let provider = Self { endpoint: Endpoint::openai(), ..provider };
        provider.with_prefix("sk-").with_prefix("sk-@-").with_infix("T3BlbkFJ")
    }

    /// `anthropic`: `sk-ant-api03-`, `sk-ant-admin01-` and the like. `AA` at the end is public.
    #[must_use]
    pub fn anthropic() -> Self {
        let provider = Self::new("anthropic");
        #[cfg(feature = "gateway")]
        let provider = Self { endpoint: Endpoint::anthropic(), ..provider };
        provider.with_prefix("sk-ant-@##-").with_suffix("AA")
    }

    /// `google`: `AIza`, and the newer `AQ.`. The characters that all known keys share, `AIzaSy` and `AQ.Ab8RN6`, are
    /// public.
    #[must_use]
    pub fn google() -> Self {
        let provider = Self::new("google");
        #[cfg(feature = "gateway")]
        let provider = Self { endpoint: Endpoint::google(), ..provider };
        let provider = provider.with_prefix("AIza").with_prefix("AIzaSy");
        provider.with_prefix("AQ.").with_prefix("AQ.Ab8RN6")
    }

    /// The name under which records refer to the provider, and paths of a gateway.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the key has a format that is known of this provider. If not, the format may be new, or the key that of
    /// another provider: warn the operator. Only [`Version::Cut`](crate::split_key::Version::Cut) needs a known format.
    #[must_use]
    pub fn recognizes(&self, api_key: &str) -> bool {
        check_key(api_key).is_ok() && self.secrets(api_key).is_some()
    }

    pub(super) fn secrets(&self, key: &str) -> Option<Secrets> {
        self.format.secrets(key)
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

/// The providers by name.
///
/// The default providers:
///
/// | name | prefixes | other public texts |
/// |---|---|---|
/// | `openai` | `sk-`, `sk-@-` (`sk-proj-`, `sk-svcacct-`, `sk-admin-`, `sk-None-` and the like) | `T3BlbkFJ` anywhere |
/// | `anthropic` | `sk-ant-@##-` (`sk-ant-api03-` and the like) | `AA` at the end |
/// | `google` | `AIza`, `AIzaSy`, `AQ.`, `AQ.Ab8RN6` | |
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
    use crate::split_key::parts::MAX_KEY_LENGTH;

    fn counts(provider: &Provider, key: &str) -> Option<usize> {
        provider.secrets(key).map(|secrets| secrets.around(key.len()).0)
    }

    #[test]
    fn w02_what_everybody_knows_of_a_key_is_no_secret() {
        let any = Provider::new("any");
        let cases: &[(&str, &Provider, &str, Option<usize>)] = &[
            ("openai", &Provider::openai(), "sk-abc", Some(3)),
            ("of a project", &Provider::openai(), "sk-proj-abc", Some(3)),
            ("of a service account", &Provider::openai(), "sk-svcacct-abc", Some(3)),
            ("of an administrator", &Provider::openai(), "sk-admin-abc", Some(3)),
            ("of nobody", &Provider::openai(), "sk-None-abc", Some(3)),
            ("of a kind that is not known yet", &Provider::openai(), "sk-robot-abc", Some(3)),
            ("a hyphen later", &Provider::openai(), "sk-abc0-abc", Some(8)),
            ("a hyphen first", &Provider::openai(), "sk-proj--bc", Some(3)),
            ("the fixed text", &Provider::openai(), "sk-svcacct-abT3BlbkFJcd", Some(4)),
            ("nothing but public texts", &Provider::openai(), "sk-proj-T3BlbkFJ", None),
            ("anthropic", &Provider::anthropic(), "sk-ant-api03-abcAA", Some(3)),
            ("another ending", &Provider::anthropic(), "sk-ant-api03-abcAB", Some(5)),
            ("an administrator's", &Provider::anthropic(), "sk-ant-admin01-abcAA", Some(3)),
            ("no digits", &Provider::anthropic(), "sk-ant-apixx-abc", None),
            ("google", &Provider::google(), "AIzaabc", Some(3)),
            ("as all of them begin", &Provider::google(), "AIzaSyabc", Some(3)),
            ("the newer ones", &Provider::google(), "AQ.Ab8RN6abc", Some(3)),
            ("with another beginning", &Provider::google(), "AQ.Xy8RN6abc", Some(9)),
            ("of another provider", &Provider::google(), "sk-abc", None),
            ("any", &any, "whatever", Some(8)),
            ("dots", &any, "a.b.c", Some(5)),
        ];
        for (name, provider, key, expected) in cases {
            assert_eq!(counts(provider, key), *expected, "{name}");
        }
    }

    #[test]
    fn keys_that_are_none() {
        let long = "x".repeat(MAX_KEY_LENGTH);
        let cases = [
            ("a key", "a.b.c", true),
            ("the longest", &*long, true),
            ("too long", &*format!("{long}x"), false),
            ("empty", "", false),
            ("a space", "a b", false),
            ("a line break", "sk-abc\n", false),
            ("not ASCII", "schlüssel", false),
        ];
        for (name, key, expected) in cases {
            assert_eq!(check_key(key).is_ok(), expected, "{name}");
        }
    }
}
