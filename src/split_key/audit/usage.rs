//! Counts of the uses of keys.

use std::sync::{Arc, Mutex};
use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::runtime::{date, lock, since_epoch};
use crate::split_key::audit::event::{SplitKeyEvent, SplitKeyOutcome};
use crate::split_key::audit::observer::SplitKeyObserver;
use crate::split_key::metadata::SplitId;

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// An observer that counts uses per project, split and day (UTC), in the memory of this process.
///
/// Uses of splits that the store does not have are counted together, because clients can make up any number
/// of them.
///
/// ```
/// use std::sync::Arc;
/// use tower_devicecheck::split_key::{MemorySplitKeyStore, SplitKeyLayer, TracingSplitKeyObserver, UsageLog};
///
/// let usage = Arc::new(UsageLog::new());
/// let layer = SplitKeyLayer::new(MemorySplitKeyStore::new())
///     .with_observer((TracingSplitKeyObserver, Arc::clone(&usage)));
/// println!("{}", usage.to_json());
/// ```
pub struct UsageLog {
    capacity: usize,
    tallies: Mutex<Tallies>,
}

#[derive(Default)]
struct Tallies {
    /// The day (days since 1970-01-01) comes first in the key, so that the first entry belongs to the oldest day.
    entries: BTreeMap<(u64, Arc<str>, SplitId), Tally>,
    unattributed: u64,
    dropped: u64,
}

/// The uses of one split on one day.
#[derive(Default, Serialize)]
struct Tally {
    provider: String,
    version: u32,
    opened: u64,
    opened_retiring: u64,
    refused: u64,
    limited: u64,
    blocked: u64,
    last_used: u64,
}

impl UsageLog {
    /// Makes a log of at most 10,000 entries.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(10_000)
    }

    /// Makes a log of at most `capacity` entries, and at least one. Each entry is for one project, split and day. A
    /// full log drops an entry of the oldest day for each new entry.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { capacity, tallies: Mutex::default() }
    }

    /// The log in JSON, the newest day first:
    ///
    /// ```json
    /// {
    ///   "entries": [{
    ///     "day": "2026-11-22", "project": "my-app", "split": "33d53640", "provider": "openai", "version": 2,
    ///     "opened": 12, "opened_retiring": 0, "refused": 1, "limited": 0, "blocked": 0,
    ///     "last_used": 1795302000
    ///   }],
    ///   "unattributed": 0,
    ///   "dropped": 0
    /// }
    /// ```
    ///
    /// * `opened` includes `opened_retiring`, the uses of a key that retires soon.
    /// * `limited` counts refusals for a limit, `refused` all other refusals.
    /// * `last_used` is the time at which the key was last opened on that day, in seconds since 1970, or 0.
    /// * `unattributed` counts uses of splits that the store does not have. `dropped` counts the uses in dropped
    ///   entries. Both count from the start of the process.
    #[must_use]
    pub fn to_json(&self) -> String {
        let tallies = lock(&self.tallies);
        let entries = tallies.entries.iter().rev().map(|((day, project, split), tally)| {
            let (year, month, day) = date(*day);
            UsageEntry {
                day: format!("{year:04}-{month:02}-{day:02}"),
                project,
                split: split.to_string(),
                tally,
            }
        });
        let report = UsageReport {
            entries: entries.collect(),
            unattributed: tallies.unattributed,
            dropped: tallies.dropped,
        };
        // Serialization fails only for a map with keys that are not strings, and the report has no map.
        serde_json::to_string(&report).unwrap_or_default()
    }
}

impl Default for UsageLog {
    fn default() -> Self {
        Self::new()
    }
}

impl SplitKeyObserver for UsageLog {
    fn used(&self, event: &SplitKeyEvent) {
        let mut tallies = lock(&self.tallies);
        let (Some(project), Some(provider), Some(metadata)) =
            (&event.project, &event.provider, event.metadata)
        else {
            tallies.unattributed += 1;
            return;
        };
        let now = since_epoch(event.at()).as_secs();
        let key = (now / SECONDS_PER_DAY, Arc::clone(project), metadata.split());
        let tally = tallies.entries.entry(key.clone()).or_default();
        provider.as_ref().clone_into(&mut tally.provider);
        tally.version = metadata.version().number();
        match event.outcome() {
            SplitKeyOutcome::Opened | SplitKeyOutcome::OpenedRetiring => {
                tally.opened += 1;
                tally.opened_retiring += u64::from(event.outcome() == SplitKeyOutcome::OpenedRetiring);
                tally.last_used = tally.last_used.max(now);
            }
            SplitKeyOutcome::LimitNotMet(_) => tally.limited += 1,
            SplitKeyOutcome::Blocked { .. } => tally.blocked += 1,
            _ => tally.refused += 1,
        }
        if tallies.entries.len() > self.capacity {
            // The entry just used stays. Otherwise a busy key could be left without an entry.
            let oldest = tallies.entries.keys().find(|other| **other != key).cloned();
            if let Some(gone) = oldest.and_then(|oldest| tallies.entries.remove(&oldest)) {
                tallies.dropped += gone.opened + gone.refused + gone.limited + gone.blocked;
            }
        }
    }
}

impl fmt::Debug for UsageLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageLog")
            .field("entries", &lock(&self.tallies).entries.len())
            .field("capacity", &self.capacity)
            .finish()
    }
}

#[derive(Serialize)]
struct UsageReport<'a> {
    entries: Vec<UsageEntry<'a>>,
    unattributed: u64,
    dropped: u64,
}

#[derive(Serialize)]
struct UsageEntry<'a> {
    day: String,
    project: &'a str,
    split: String,
    #[serde(flatten)]
    tally: &'a Tally,
}
