//! AI providers, and the prefixes of their API keys.

use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
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
}

impl Provider {
    /// Makes a provider without prefixes, whose keys may begin with anything.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), prefixes: Vec::new() }
    }

    /// Adds a prefix. A key of a provider with prefixes must begin with one of them.
    #[must_use]
    pub fn with_prefix(mut self, pattern: &str) -> Self {
        self.prefixes.push(pattern.into());
        self
    }

    /// `openai`: `sk-proj-` and `sk-`.
    pub(super) fn openai() -> Self {
        Self::new("openai").with_prefix("sk-proj-").with_prefix("sk-")
    }

    /// `anthropic`: `sk-ant-api##-`.
    pub(super) fn anthropic() -> Self {
        Self::new("anthropic").with_prefix("sk-ant-api##-")
    }

    /// `google`: `AIza`.
    pub(super) fn google() -> Self {
        Self::new("google").with_prefix("AIza")
    }

    /// The name under which records refer to the provider.
    pub(super) fn name(&self) -> &str {
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
pub struct Providers(Vec<Provider>);

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
        self.0.push(provider);
        self
    }

    /// The provider of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Provider> {
        self.0.iter().find(|provider| *provider.name == *name)
    }
}

impl Default for Providers {
    fn default() -> Self {
        Self(vec![Provider::openai(), Provider::anthropic(), Provider::google()])
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
