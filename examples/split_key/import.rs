//! `split_key import`: pairs of parts that were made elsewhere.

use std::{borrow::Cow, collections::BTreeSet};

use serde::Deserialize;
use tower_devicecheck::{
    BoxError,
    split_key::{
        ClientPart, CutLint, Limits, Providers, SplitId, SplitKeyRecord, SplitKeyStore, Splitter, Version,
        lint,
    },
};

/// One line of stdin. The other names of a member are those of Proxed's tables.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair<'a> {
    #[serde(borrow, alias = "project_id")]
    project: Cow<'a, str>,
    #[serde(borrow)]
    provider: Cow<'a, str>,
    #[serde(borrow, alias = "key_value")]
    server_part: Cow<'a, str>,
    #[serde(borrow)]
    client_part: Cow<'a, str>,
}

/// A pair that was opened.
pub(crate) struct Checked {
    record: SplitKeyRecord,
    /// The number of characters that each part lacks, in version 1.
    lint: Option<CutLint>,
    has_known_format: bool,
}

impl Checked {
    pub(crate) fn record(&self) -> &SplitKeyRecord {
        &self.record
    }

    /// One line about a pair.
    pub(crate) fn described(&self) -> String {
        let record = &self.record;
        let lacking = match &self.lint {
            None => "neither part reveals anything".to_owned(),
            Some(lint) => format!(
                "the server lacks {} characters, the client {}",
                lint.unknown_to_server(),
                lint.unknown_to_client()
            ),
        };
        format!(
            "{}  {}  {}  version {}  {lacking}",
            record.project(),
            record.split(),
            record.provider(),
            record.metadata().version()
        )
    }

    /// The advice to the operator, if there is any.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        match &self.lint {
            Some(lint) if !lint.is_sound() => {
                Some("a part reveals nearly all of the API key: make a new API key, and split that")
            }
            _ if !self.has_known_format => Some(super::UNKNOWN_FORMAT),
            _ => None,
        }
    }
}

/// Reads pairs, one JSON object a line, and opens each one to prove that its parts belong together. The error names
/// every line that is refused, and quotes none. `store` is `None` where there is none yet.
pub(crate) async fn read(
    text: &str,
    limits: &Limits,
    providers: &Providers,
    store: Option<&impl SplitKeyStore>,
) -> Result<Vec<Checked>, BoxError> {
    let (mut pairs, mut refused, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (number, line) in (1_u32..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        match checked(line, limits, providers, store, &mut seen).await {
            Ok(pair) => pairs.push(pair),
            Err(error) => refused.push(format!("line {number}: {}", super::shared::Chain(&*error))),
        }
    }
    if !refused.is_empty() {
        return Err(format!("nothing is imported: {}", refused.join("; ")).into());
    }
    if pairs.is_empty() {
        return Err("stdin has no pair".into());
    }
    Ok(pairs)
}

async fn checked(
    line: &str,
    limits: &Limits,
    providers: &Providers,
    store: Option<&impl SplitKeyStore>,
    seen: &mut BTreeSet<(String, SplitId)>,
) -> Result<Checked, BoxError> {
    // The errors of serde_json quote the text.
    let pair: Pair<'_> = serde_json::from_str(line).map_err(
        |_| "it is not a JSON object with the members project, provider, server_part and client_part",
    )?;
    let provider = pair.provider.to_ascii_lowercase();
    let known = providers.get(&provider);
    let client_part: ClientPart = pair.client_part.parse()?;
    let server_part = pair.server_part.parse()?;
    let lint = match client_part.metadata().version() {
        Version::Cut => {
            Some(lint(&server_part, &client_part, known.ok_or("there is no provider of that name")?)?)
        }
        _ => None,
    };
    let record = SplitKeyRecord::new(&pair.project, &provider, client_part.metadata(), server_part)?;
    let key = Splitter::new().with_providers(providers.clone()).open(&record, &client_part)?;
    let has_known_format = known.is_none_or(|provider| provider.recognizes(key.expose()));
    if !seen.insert((record.project().to_owned(), record.split())) {
        return Err("an earlier line has the same project and split".into());
    }
    if let Some(store) = store
        && store.get(record.project(), record.split()).await?.is_some()
    {
        return Err("the store already has this project and split".into());
    }
    Ok(Checked { record: record.with_limits(limits.clone()), lint, has_known_format })
}
