//! TokenUsage: the tokens that a provider's response states.

/// The longest name of a model that is kept, in bytes.
pub(super) const MAX_MODEL: usize = 64;

/// The largest number that counts, so that no sum overflows.
const MAX_TOKENS: u64 = 1_000_000_000;

/// The name under which models are counted that have no fit name of their own.
pub(super) const OTHER_MODEL: &str = "other";

/// The model and the tokens that a provider's response states about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenUsage {
    /// The model that has answered: 1 to 64 visible ASCII characters, or `other` for any other name. `None` if the
    /// response names none.
    pub model: Option<String>,
    /// The tokens of the prompt; `None` if the response states none.
    pub input: Option<u64>,
    /// The tokens of the answer, with those of thinking; `None` if the response states none.
    pub output: Option<u64>,
}

impl TokenUsage {
    /// Whether the response states any number of tokens.
    #[must_use]
    pub const fn is_stated(&self) -> bool {
        self.input.is_some() || self.output.is_some()
    }
}

/// The last statements of a response, each under its provider's name.
#[derive(Default)]
pub(super) struct Statements {
    model: Option<String>,
    counts: [Option<u64>; COUNTS.len()],
}

/// The part of the sum to which a count belongs.
#[derive(Clone, Copy)]
enum Part {
    Input,
    Output,
    /// Added to the output: Google states it apart.
    Thoughts,
}

/// The names of the counts. A response that states one part under two names means the larger one: some servers fill
/// the other with a zero.
const COUNTS: [(&[u8], Part); 7] = [
    (b"prompt_tokens", Part::Input),
    (b"completion_tokens", Part::Output),
    (b"input_tokens", Part::Input),
    (b"output_tokens", Part::Output),
    (b"promptTokenCount", Part::Input),
    (b"candidatesTokenCount", Part::Output),
    (b"thoughtsTokenCount", Part::Thoughts),
];

/// The index of the count with this name.
pub(super) fn count_named(name: &[u8]) -> Option<usize> {
    COUNTS.iter().position(|(count, _)| *count == name)
}

impl Statements {
    pub(super) fn state_count(&mut self, index: usize, tokens: u64) {
        if let Some(count) = self.counts.get_mut(index).filter(|_| tokens <= MAX_TOKENS) {
            *count = Some(tokens);
        }
    }

    /// Takes the name of the model. `None` stands for a name that is too long.
    pub(super) fn state_model(&mut self, name: Option<&[u8]>) {
        let is_fit = |name: &&[u8]| !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        let name = name.filter(is_fit).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or(OTHER_MODEL);
        // Each event of a stream names the model, so that this is nearly always the same.
        if self.model.as_deref() != Some(name) {
            self.model = Some(name.to_owned());
        }
    }

    pub(super) fn usage(&self) -> TokenUsage {
        let largest = |wanted: fn(Part) -> bool| {
            let counts = self.counts.iter().zip(COUNTS).filter(|(_, (_, part))| wanted(*part));
            counts.filter_map(|(count, _)| *count).max()
        };
        let output = largest(|part| matches!(part, Part::Output));
        let thoughts = largest(|part| matches!(part, Part::Thoughts));
        TokenUsage {
            model: self.model.clone(),
            input: largest(|part| matches!(part, Part::Input)),
            output: match (output, thoughts) {
                (Some(output), Some(thoughts)) => Some(output.saturating_add(thoughts)),
                (output, thoughts) => output.or(thoughts),
            },
        }
    }
}
