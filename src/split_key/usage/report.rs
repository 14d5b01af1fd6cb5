//! UsageReport: what an operator reads.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::runtime::date;
use crate::split_key::metadata::SplitId;
use crate::split_key::usage::stated::{OTHER_MODEL, TokenUsage};

/// The most models that one entry tells apart.
const MAX_MODELS: usize = 32;

/// The uses of keys, and the tokens that providers stated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct UsageReport {
    /// One entry for each day, project and split. The newest day comes first.
    pub entries: Vec<UsageEntry>,
    /// The uses of splits that the store does not have.
    pub unattributed: u64,
    /// The uses in entries that were dropped because the log was full.
    pub dropped: u64,
}

/// The uses of one split on one day (UTC).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct UsageEntry {
    /// The day, as in `2026-11-22`.
    pub day: String,
    /// The project.
    pub project: String,
    /// The split.
    #[serde(serialize_with = "write_split", deserialize_with = "read_split")]
    pub split: SplitId,
    /// The provider of the key.
    pub provider: String,
    /// The version of the split: 1 or 2.
    pub version: u64,
    /// The requests that got the key.
    pub opened: u64,
    /// Those of them whose key retires soon.
    pub opened_retiring: u64,
    /// The requests that were refused for any reason but the next two.
    pub refused: u64,
    /// The requests that were refused for a limit of the key.
    pub limited: u64,
    /// The requests that were refused because the key was blocked.
    pub blocked: u64,
    /// The time at which the key was last opened on that day, in seconds since 1970; 0 if it was not.
    pub last_used: u64,
    /// The provider's answers, by model. An entry tells 32 models apart, and counts any others as `other`.
    pub models: Vec<ModelUsage>,
}

/// The answers of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ModelUsage {
    /// The name, as the provider's answers have it; `None` for answers that name no model.
    pub model: Option<String>,
    /// The answers, errors included.
    pub requests: u64,
    /// Those of them that stated no tokens.
    pub unstated: u64,
    /// The tokens of the prompts.
    pub input_tokens: u64,
    /// The tokens of the answers.
    pub output_tokens: u64,
}

impl UsageReport {
    /// The report in JSON:
    ///
    /// ```json
    /// {
    ///   "entries": [{
    ///     "day": "2026-11-22", "project": "my-app", "split": "33d53640", "provider": "openai", "version": 2,
    ///     "opened": 12, "opened_retiring": 0, "refused": 1, "limited": 0, "blocked": 0,
    ///     "last_used": 1795302000,
    ///     "models": [{
    ///       "model": "gpt-5", "requests": 12, "unstated": 1, "input_tokens": 4200, "output_tokens": 900
    ///     }]
    ///   }],
    ///   "unattributed": 0,
    ///   "dropped": 0
    /// }
    /// ```
    #[must_use]
    pub fn to_json(&self) -> String {
        // Serialization fails only for a map with keys that are not strings, and the report has no map.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl UsageEntry {
    pub(super) fn new(day: u64, project: &str, split: SplitId) -> Self {
        Self {
            day: day_name(day),
            project: project.to_owned(),
            split,
            provider: String::new(),
            version: 0,
            opened: 0,
            opened_retiring: 0,
            refused: 0,
            limited: 0,
            blocked: 0,
            last_used: 0,
            models: Vec::new(),
        }
    }

    /// The uses that this entry counts.
    pub(super) const fn uses(&self) -> u64 {
        self.opened + self.refused + self.limited + self.blocked
    }

    /// Counts one answer.
    pub(super) fn count(&mut self, usage: &TokenUsage) {
        let model = self.model(usage.model.as_deref());
        model.requests = model.requests.saturating_add(1);
        model.unstated = model.unstated.saturating_add((!usage.is_stated()).into());
        // A provider may state any number.
        model.input_tokens = model.input_tokens.saturating_add(usage.input.unwrap_or(0));
        model.output_tokens = model.output_tokens.saturating_add(usage.output.unwrap_or(0));
    }

    fn model(&mut self, name: Option<&str>) -> &mut ModelUsage {
        let is_known = self.models.iter().any(|model| model.model.as_deref() == name);
        let is_full = self.models.len() >= MAX_MODELS;
        let name = if !is_known && is_full && name.is_some() { Some(OTHER_MODEL) } else { name };
        self.model_named(name)
    }

    /// The counts of this model, however many there are.
    pub(super) fn model_named(&mut self, name: Option<&str>) -> &mut ModelUsage {
        let found = self.models.iter().position(|model| model.model.as_deref() == name);
        let index = found.unwrap_or_else(|| {
            self.models.push(ModelUsage { model: name.map(str::to_owned), ..ModelUsage::default() });
            self.models.len() - 1
        });
        &mut self.models[index]
    }
}

/// `2026-11-22`.
pub(super) fn day_name(day: u64) -> String {
    let (year, month, day) = date(day);
    format!("{year:04}-{month:02}-{day:02}")
}

fn write_split<S: Serializer>(split: &SplitId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(split)
}

fn read_split<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SplitId, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| de::Error::custom("not a split id"))
}
