//! The counts of a report, bounded whatever the clients send.

use std::{borrow::Cow, cmp::Reverse, collections::HashMap};

use crate::gate::enforcement::Enforcement;
use crate::gate::evidence::Evidence;
use crate::gate::observer::{Event, Outcome};
use crate::gate::routing::Environment;
use crate::runtime::{SystemTime, wall_clock};

/// The number of labels that have a row of their own.
const MAX_LABELS: usize = 64;

/// The length of a label, in characters, which are bytes.
const MAX_LABEL_LENGTH: usize = 64;

/// A label with characters that can be shown, and not too many of them.
pub(super) fn tidy(label: &str) -> Cow<'_, str> {
    let is_plain =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-' | '+' | '/' | ':');
    if label.len() <= MAX_LABEL_LENGTH && label.chars().all(is_plain) {
        return Cow::Borrowed(label);
    }
    let shown = label.chars().map(|letter| if is_plain(letter) { letter } else { '_' });
    Cow::Owned(shown.take(MAX_LABEL_LENGTH).collect())
}

/// Everything that a report has counted.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) since: SystemTime,
    pub(super) exempt: u64,
    /// Requests that shadow mode did not check.
    pub(super) left_out: u64,
    pub(super) monitor: Counts,
    pub(super) enforce: Counts,
    pub(super) production: Counts,
    pub(super) development: Counts,
    pub(super) evidence: Grades,
    codes: Vec<(&'static str, Times)>,
    labels: HashMap<Box<str>, Row>,
    /// The counts of labels that have lost their row.
    pub(super) other: Counts,
    pub(super) unlabelled: Counts,
    /// The number of labelled requests, by which a row knows when it was used last.
    labelled: u64,
}

/// Verified requests by the grade of their evidence.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Grades {
    fresh: u64,
    remembered: u64,
    stand_in: u64,
}

/// The first and the last rejection with one code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) requests: u64,
    pub(super) first: SystemTime,
    pub(super) last: SystemTime,
}

/// The counts of one label.
#[derive(Clone, Debug)]
struct Row {
    counts: Counts,
    last_used: u64,
}

/// Checked requests by outcome.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) verified: u64,
    /// One count for each code that has occurred.
    rejected: Vec<(&'static str, u64)>,
}

impl Report {
    pub(super) fn since(since: SystemTime) -> Self {
        Self {
            since,
            exempt: 0,
            left_out: 0,
            monitor: Counts::default(),
            enforce: Counts::default(),
            production: Counts::default(),
            development: Counts::default(),
            evidence: Grades::default(),
            codes: Vec::new(),
            labels: HashMap::new(),
            other: Counts::default(),
            unlabelled: Counts::default(),
            labelled: 0,
        }
    }

    pub(super) fn add(&mut self, event: &Event<'_>, label: Option<&str>) {
        let code = match event.outcome() {
            Outcome::Exempt => {
                self.exempt += 1;
                return;
            }
            Outcome::LeftOut => {
                self.left_out += 1;
                return;
            }
            Outcome::Verified(device) => {
                self.evidence.add(device.evidence());
                None
            }
            Outcome::Rejected(rejection) => Some(rejection.code()),
        };
        match event.enforcement() {
            Enforcement::Enforce => self.enforce.add(code, 1),
            // Events hold no shares. Shadow mode is monitor mode without the wait.
            _ => self.monitor.add(code, 1),
        }
        match event.environment() {
            Some(Environment::Development) => self.development.add(code, 1),
            _ => self.production.add(code, 1),
        }
        if let Some(code) = code {
            self.note_time(code, wall_clock());
        }
        match label {
            None => {}
            Some("") => self.unlabelled.add(code, 1),
            Some(label) => self.add_to_label(label, code),
        }
    }

    fn note_time(&mut self, code: &'static str, now: SystemTime) {
        match self.codes.iter_mut().find(|(known, _)| *known == code) {
            Some((_, times)) => {
                times.requests += 1;
                times.last = now;
            }
            None => self.codes.push((code, Times { requests: 1, first: now, last: now })),
        }
    }

    fn add_to_label(&mut self, label: &str, code: Option<&'static str>) {
        self.labelled += 1;
        if let Some(row) = self.labels.get_mut(label) {
            row.last_used = self.labelled;
            row.counts.add(code, 1);
            return;
        }
        if self.labels.len() >= MAX_LABELS {
            self.give_up_a_row();
        }
        let mut row = Row { last_used: self.labelled, counts: Counts::default() };
        row.counts.add(code, 1);
        self.labels.insert(label.into(), row);
    }

    /// Moves the counts of the rarest label to those of the other labels.
    fn give_up_a_row(&mut self) {
        let rarest = self.labels.iter().min_by_key(|(_, row)| (row.counts.checked(), row.last_used));
        let rarest = rarest.map(|(label, _)| label.clone());
        if let Some(row) = rarest.and_then(|label| self.labels.remove(&label)) {
            self.other.merge(&row.counts);
        }
    }

    /// The codes that have occurred, those of the most requests first.
    pub(super) fn codes(&self) -> Vec<(&'static str, Times)> {
        let mut codes = self.codes.clone();
        codes.sort_by_key(|(code, times)| (Reverse(times.requests), *code));
        codes
    }

    /// The labels that have a row, those with the most requests first.
    pub(super) fn labels(&self) -> Vec<(&str, &Counts)> {
        let mut labels: Vec<_> = self.labels.iter().map(|(label, row)| (&**label, &row.counts)).collect();
        labels.sort_by_key(|(label, counts)| (Reverse(counts.checked()), *label));
        labels
    }
}

impl Grades {
    fn add(&mut self, evidence: &Evidence) {
        if evidence.is_fresh() {
            self.fresh += 1;
        } else if evidence.is_stand_in() {
            self.stand_in += 1;
        } else {
            self.remembered += 1;
        }
    }

    pub(super) const fn by_name(&self) -> [(&'static str, u64); 3] {
        [("fresh", self.fresh), ("remembered", self.remembered), ("stand_in", self.stand_in)]
    }
}

impl Counts {
    /// Adds verified requests, or requests that were rejected with a code.
    fn add(&mut self, code: Option<&'static str>, requests: u64) {
        let Some(code) = code else {
            self.verified += requests;
            return;
        };
        match self.rejected.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += requests,
            None => self.rejected.push((code, requests)),
        }
    }

    fn merge(&mut self, others: &Self) {
        self.add(None, others.verified);
        for (code, requests) in &others.rejected {
            self.add(Some(code), *requests);
        }
    }

    /// The codes that have occurred, those of the most requests first.
    pub(super) fn codes(&self) -> Vec<(&'static str, u64)> {
        let mut codes = self.rejected.clone();
        codes.sort_by_key(|(code, requests)| (Reverse(*requests), *code));
        codes
    }

    pub(super) fn rejected(&self) -> u64 {
        self.rejected.iter().map(|(_, requests)| requests).sum()
    }

    pub(super) fn checked(&self) -> u64 {
        self.verified + self.rejected()
    }
}
