//! AI providers, and the public parts of their API keys.

use std::ops::{Range, RangeInclusive};

use crate::split_key::error::{SplitKeyError, SplitKeyErrorKind};
use crate::split_key::parts::{MAX_KEY_LENGTH, is_visible};

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
    prefixes: Vec<Box<str>>,
    infixes: Vec<Box<str>>,
    suffixes: Vec<Box<str>>,
}

impl Provider {
    /// Makes a provider without prefixes, whose keys may begin with anything.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), prefixes: Vec::new(), infixes: Vec::new(), suffixes: Vec::new() }
    }

    /// Adds a prefix. If a provider has prefixes, a key of a known format begins with one of them. A key of an unknown
    /// format cannot be cut ([`Version::Cut`](crate::split_key::Version::Cut)).
    #[must_use]
    pub fn with_prefix(mut self, pattern: &str) -> Self {
        self.prefixes.push(pattern.into());
        self
    }

    /// Adds a text that keys may hold anywhere and that is no secret, such as `T3BlbkFJ` in keys of OpenAI.
    #[must_use]
    pub fn with_infix(mut self, text: &str) -> Self {
        self.infixes.push(text.into());
        self
    }

    /// Adds a text that keys may end in and that is no secret, such as `AA` in keys of Anthropic.
    #[must_use]
    pub fn with_suffix(mut self, text: &str) -> Self {
        self.suffixes.push(text.into());
        self
    }

    /// `openai`: `sk-`, alone or with a word and a hyphen, such as `sk-proj-`, `sk-svcacct-`, `sk-admin-`, `sk-None-`.
    pub(super) fn openai() -> Self {
        Self::new("openai").with_prefix("sk-").with_prefix("sk-@-").with_infix("T3BlbkFJ")
    }

    /// `anthropic`: `sk-ant-api03-`, `sk-ant-admin01-` and the like.
    pub(super) fn anthropic() -> Self {
        Self::new("anthropic").with_prefix("sk-ant-@##-").with_suffix("AA")
    }

    /// `google`: `AIza`, and the newer `AQ.`. The characters that all known keys share are public.
    pub(super) fn google() -> Self {
        let google = Self::new("google").with_prefix("AIza").with_prefix("AIzaSy");
        google.with_prefix("AQ.").with_prefix("AQ.Ab8RN6")
    }

    /// The name under which records refer to the provider.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the key has a format that is known of this provider. If not, the format may be new, or the key that of
    /// another provider: warn the operator. Only [`Version::Cut`](crate::split_key::Version::Cut) needs a known format.
    #[must_use]
    pub fn recognizes(&self, api_key: &str) -> bool {
        check_key(api_key).is_ok() && self.secrets(api_key).is_some()
    }

    /// Finds the secret characters of a key. Returns `None` if the provider knows no format of this key.
    pub(super) fn secrets(&self, key: &str) -> Option<Secrets> {
        let prefix = match &*self.prefixes {
            [] => 0,
            prefixes => prefixes.iter().filter_map(|pattern| matched(key, pattern)).max()?,
        };
        let mut secret = vec![true; key.len()];
        let mut publish =
            |range: Range<usize>| secret.get_mut(range).into_iter().for_each(|part| part.fill(false));
        publish(0..prefix);
        for infix in &self.infixes {
            key.match_indices(&**infix).for_each(|(at, text)| publish(at..at + text.len()));
        }
        for suffix in self.suffixes.iter().filter(|suffix| key.ends_with(&***suffix)) {
            publish(key.len() - suffix.len()..key.len());
        }
        let places: Vec<_> = (0..key.len()).filter(|at| secret[*at]).collect();
        (!places.is_empty()).then_some(Secrets(places))
    }
}

/// The places of a key's secret characters, in order.
pub(super) struct Secrets(Vec<usize>);

impl Secrets {
    /// The numbers of secret characters before and after a cut.
    pub(super) fn around(&self, cut: usize) -> (usize, usize) {
        let before = self.0.partition_point(|place| *place < cut);
        (before, self.0.len() - before)
    }

    /// The cuts that leave this many secret characters on both sides.
    pub(super) fn cuts_between(&self, count: usize) -> Option<RangeInclusive<usize>> {
        let last = self.0.len().checked_sub(count)?;
        let (first, last) = (self.0.get(count.checked_sub(1)?)? + 1, *self.0.get(last)?);
        (first <= last).then_some(first..=last)
    }
}

/// Checks that a text can be an API key at all.
pub(super) fn check_key(key: &str) -> Result<(), SplitKeyError> {
    if key.is_empty() || key.len() > MAX_KEY_LENGTH || !is_visible(key) {
        return Err(SplitKeyErrorKind::InvalidKey.into());
    }
    Ok(())
}

/// The length of the text at the beginning of the key that the pattern describes.
fn matched(key: &str, pattern: &str) -> Option<usize> {
    let mut rest = key.as_bytes();
    for expected in pattern.bytes() {
        let length = match expected {
            b'#' => usize::from(rest.first()?.is_ascii_digit()),
            b'@' => rest.iter().take_while(|byte| byte.is_ascii_alphabetic()).count(),
            _ => usize::from(*rest.first()? == expected),
        };
        rest = rest.get(length..).filter(|_| length > 0)?;
    }
    Some(key.len() - rest.len())
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
