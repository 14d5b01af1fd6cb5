//! How often keys are used.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use crate::{
    runtime::since_epoch,
    split_key::{
        audit::{
            event::{SplitKeyEvent, SplitKeyOutcome},
            observer::SplitKeyObserver,
        },
        metadata::SplitId,
    },
};

/// An observer that counts uses per project, split and day (UTC), in the memory of this process.
///
/// Uses of splits that the store does not have are counted together: clients can make up any number.
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
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    /// The day first, so that the oldest goes first.
    counts: BTreeMap<(Day, Arc<str>, SplitId), Counts>,
    unattributed: u64,
    dropped: u64,
}

#[derive(Clone, Default)]
struct Counts {
    provider: Arc<str>,
    version: u32,
    opened: u64,
    retiring: u64,
    refused: u64,
    limited: u64,
    blocked: u64,
    last_used: u64,
}

/// Days since 1970-01-01.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Day(u64);

impl UsageLog {
    /// The default number of entries.
    pub const CAPACITY: usize = 10_000;

    /// A log of [`CAPACITY`](Self::CAPACITY) entries.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(Self::CAPACITY)
    }

    /// A log of so many entries, at least one, each for one project, split and day. When it is full, one of
    /// the oldest day goes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { capacity, log: Mutex::default() }
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
    /// `opened` has `opened_retiring` in it: uses of a key that retires soon. `limited` are refusals for a
    /// limit, `refused` all others. `last_used` is when the key was last opened on that day, in seconds
    /// since 1970, or 0. `unattributed` are uses of no split that the store has, `dropped` the uses in
    /// entries that had to go, both since the start of the process.
    #[must_use]
    pub fn to_json(&self) -> String {
        let log = self.lock();
        let entries = log.counts.iter().rev().map(|((day, project, split), counts)| Entry {
            day: day.to_string(),
            project,
            split: split.to_string(),
            provider: &counts.provider,
            version: counts.version,
            opened: counts.opened,
            opened_retiring: counts.retiring,
            refused: counts.refused,
            limited: counts.limited,
            blocked: counts.blocked,
            last_used: counts.last_used,
        });
        let usage =
            Usage { entries: entries.collect(), unattributed: log.unattributed, dropped: log.dropped };
        // Maps with keys that are no strings, the one thing that can fail, do not occur.
        serde_json::to_string(&usage).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for UsageLog {
    fn default() -> Self {
        Self::new()
    }
}

impl SplitKeyObserver for UsageLog {
    fn used(&self, event: &SplitKeyEvent) {
        let mut log = self.lock();
        let (Some(project), Some(provider), Some(metadata)) =
            (&event.project, &event.provider, event.metadata)
        else {
            log.unattributed += 1;
            return;
        };
        let now = since_epoch(event.at()).as_secs();
        let key = (Day::of(now), Arc::clone(project), metadata.split());
        let counts = log.counts.entry(key.clone()).or_default();
        counts.provider = Arc::clone(provider);
        counts.version = metadata.version().number();
        match event.outcome() {
            SplitKeyOutcome::Opened | SplitKeyOutcome::OpenedRetiring => {
                counts.opened += 1;
                counts.retiring += u64::from(event.outcome() == SplitKeyOutcome::OpenedRetiring);
                counts.last_used = counts.last_used.max(now);
            }
            SplitKeyOutcome::LimitNotMet(_) => counts.limited += 1,
            SplitKeyOutcome::Blocked { .. } => counts.blocked += 1,
            _ => counts.refused += 1,
        }
        if log.counts.len() > self.capacity {
            // Never the one that was just used, or a busy key could remain without an entry.
            let oldest = log.counts.keys().find(|other| **other != key).cloned();
            if let Some(gone) = oldest.and_then(|oldest| log.counts.remove(&oldest)) {
                log.dropped += gone.opened + gone.refused + gone.limited + gone.blocked;
            }
        }
    }
}

impl fmt::Debug for UsageLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageLog")
            .field("entries", &self.lock().counts.len())
            .field("capacity", &self.capacity)
            .finish()
    }
}

#[derive(Serialize)]
struct Usage<'a> {
    entries: Vec<Entry<'a>>,
    unattributed: u64,
    dropped: u64,
}

#[derive(Serialize)]
struct Entry<'a> {
    day: String,
    project: &'a str,
    split: String,
    provider: &'a str,
    version: u32,
    opened: u64,
    opened_retiring: u64,
    refused: u64,
    limited: u64,
    blocked: u64,
    last_used: u64,
}

impl Day {
    const fn of(seconds: u64) -> Self {
        Self(seconds / (24 * 60 * 60))
    }
}

/// The date in the Gregorian calendar.
impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 400 years have always the same number of days.
        const CYCLE: u64 = 400 * 365 + 97;
        let mut left = self.0 % CYCLE;
        let mut year = 1970 + self.0 / CYCLE * 400;
        let is_leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        while left >= 365 + u64::from(is_leap(year)) {
            left -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let february = 28 + u64::from(is_leap(year));
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if left < length {
                break;
            }
            left -= length;
            month += 1;
        }
        write!(f, "{year:04}-{month:02}-{:02}", left + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let cases = [
            (0, "1970-01-01"),
            (86_399, "1970-01-01"),
            (86_400, "1970-01-02"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_709_164_800, "2024-02-29"),
            (1_735_603_200, "2024-12-31"),
            (1_735_689_600, "2025-01-01"),
            (4_107_542_400, "2100-03-01"),
            (13_574_563_200, "2400-02-29"),
        ];
        for (seconds, date) in cases {
            assert_eq!(Day::of(seconds).to_string(), date);
        }
    }
}
