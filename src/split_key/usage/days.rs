//! Days: the counts in the memory of this process.

use std::{collections::BTreeMap, mem};

use crate::split_key::metadata::SplitId;
use crate::split_key::usage::report::{UsageEntry, UsageReport};

pub(super) const DEFAULT_CAPACITY: usize = 10_000;
pub(super) const DEFAULT_RETENTION: usize = 90;

/// Counts by day, within bounds.
pub(super) struct Days {
    /// The most entries of all days together.
    pub(super) capacity: usize,
    /// The most days. A clock that jumps ahead for a moment costs one of them, not all.
    pub(super) retention: usize,
    /// By the days since 1970-01-01.
    pub(super) days: BTreeMap<u64, Day>,
    /// The days that are no longer kept here, but perhaps elsewhere.
    pub(super) gone: Vec<u64>,
}

/// The counts of one day.
#[derive(Default)]
pub(super) struct Day {
    pub(super) entries: BTreeMap<(String, SplitId), UsageEntry>,
    pub(super) unattributed: u64,
    pub(super) dropped: u64,
    /// Whether there are counts that are not yet kept anywhere else.
    pub(super) is_changed: bool,
}

impl Default for Days {
    fn default() -> Self {
        Self {
            capacity: DEFAULT_CAPACITY,
            retention: DEFAULT_RETENTION,
            days: BTreeMap::new(),
            gone: Vec::new(),
        }
    }
}

impl Days {
    /// Changes the counts of a day, perhaps a new one.
    pub(super) fn change(&mut self, day: u64, change: impl FnOnce(&mut Day)) {
        let counts = self.days.entry(day).or_default();
        counts.is_changed = true;
        change(counts);
        while self.days.len() > self.retention {
            self.gone.extend(self.days.pop_first().map(|(day, _)| day));
        }
    }

    /// Changes an entry, perhaps a new one. A full log drops an entry of the oldest day for it.
    pub(super) fn change_entry(
        &mut self,
        day: u64,
        project: &str,
        split: SplitId,
        change: impl FnOnce(&mut UsageEntry),
    ) {
        let key = (project.to_owned(), split);
        let mut is_new = false;
        self.change(day, |counts| {
            let new = || {
                is_new = true;
                UsageEntry::new(day, project, split)
            };
            change(counts.entries.entry(key.clone()).or_insert_with(new));
        });
        if is_new && self.len() > self.capacity {
            self.drop_oldest(day, &key);
        }
    }

    /// The days with counts that are not yet kept anywhere else. They count as kept from now on.
    pub(super) fn changed(&mut self) -> impl Iterator<Item = (u64, &mut Day)> {
        let days = self.days.iter_mut().map(|(day, counts)| (*day, counts));
        days.filter_map(|(day, counts)| mem::take(&mut counts.is_changed).then_some((day, counts)))
    }

    pub(super) fn len(&self) -> usize {
        self.days.values().map(|day| day.entries.len()).sum()
    }

    /// Drops an entry of the oldest day, but not the one just used: otherwise a busy key could be left without one.
    fn drop_oldest(&mut self, day: u64, used: &(String, SplitId)) {
        for (other, counts) in &mut self.days {
            let oldest = counts.entries.keys().find(|key| *other != day || *key != used).cloned();
            if let Some(entry) = oldest.and_then(|key| counts.entries.remove(&key)) {
                counts.dropped += entry.uses();
                counts.is_changed = true;
                return;
            }
        }
    }

    pub(super) fn report(&self) -> UsageReport {
        let entries = self.days.values().rev().flat_map(|day| day.entries.values().rev()).cloned();
        UsageReport {
            entries: entries.collect(),
            unattributed: self.days.values().map(|day| day.unattributed).sum(),
            dropped: self.days.values().map(|day| day.dropped).sum(),
        }
    }
}

impl Day {
    pub(super) fn report(&self) -> UsageReport {
        UsageReport {
            entries: self.entries.values().cloned().collect(),
            unattributed: self.unattributed,
            dropped: self.dropped,
        }
    }

    /// The day with the counts of this report.
    pub(super) fn of(report: UsageReport) -> Self {
        let key = |entry: &UsageEntry| (entry.project.clone(), entry.split);
        Self {
            entries: report.entries.into_iter().map(|entry| (key(&entry), entry)).collect(),
            unattributed: report.unattributed,
            dropped: report.dropped,
            is_changed: false,
        }
    }
}
