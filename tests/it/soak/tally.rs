//! Counts of requests, and the alarm that ends the run.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

/// The first violation of an invariant.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    violation: Mutex<Option<String>>,
    rung: Notify,
}

impl Alarm {
    pub(super) fn ring(&self, violation: String) {
        self.violation.lock().unwrap().get_or_insert(violation);
        self.rung.notify_one();
    }

    pub(super) async fn rung(&self) -> String {
        loop {
            if let Some(violation) = self.violation.lock().unwrap().clone() {
                return violation;
            }
            self.rung.notified().await;
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    Status(u16),
    /// Of gRPC, where it is not 0.
    Grpc(&'static str),
    /// The client left.
    Left,
    /// The connection broke.
    Broken(String),
}

impl Answer {
    pub(super) fn is_admitted(&self) -> bool {
        matches!(self, Self::Status(200..=299))
    }

    pub(super) fn is_failure_of_the_server(&self) -> bool {
        matches!(self, Self::Status(500..=599) | Self::Grpc("Unavailable" | "Internal"))
    }

    fn name(&self) -> String {
        match self {
            Self::Status(status) => status.to_string(),
            Self::Grpc(code) => (*code).to_owned(),
            Self::Left => "left".to_owned(),
            Self::Broken(_) => "broken".to_owned(),
        }
    }
}

/// The claim of a request, by which its answer is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// To be admitted, or to get an error of the server's while something is at fault.
    Genuine,
    /// Never to be admitted.
    Forged,
    /// Either way is fine here: others judge.
    Open,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    answers: Mutex<BTreeMap<(&'static str, String), u64>>,
    /// Genuine requests that began and ended while nothing was at fault, and those of them that failed.
    pub(super) calm: AtomicU64,
    pub(super) calm_failures: AtomicU64,
    pub(super) broken: AtomicU64,
    pub(super) alarm: Alarm,
}

impl Tally {
    /// Counts an answer, and rings where the claim does not allow it.
    pub(super) fn note(&self, kind: &'static str, claim: Claim, answer: &Answer, is_calm: bool) {
        *self.answers.lock().unwrap().entry((kind, answer.name())).or_default() += 1;
        if let Answer::Broken(error) = answer {
            let broken = self.broken.fetch_add(1, Ordering::SeqCst);
            // A kept connection may end while a request is on its way.
            if broken > 20 + self.total() / 1_000 {
                self.alarm.ring(format!("{kind}: too many connections break: {error}"));
            }
        }
        let is_fine = match (claim, answer) {
            (Claim::Open, _) | (_, Answer::Left | Answer::Broken(_)) => true,
            (Claim::Genuine, _) => answer.is_admitted() || answer.is_failure_of_the_server(),
            (Claim::Forged, _) => !answer.is_admitted(),
        };
        if !is_fine {
            self.alarm.ring(format!("{kind}: a {claim:?} request got {answer:?}"));
        }
        if claim == Claim::Genuine && is_calm {
            self.calm.fetch_add(1, Ordering::SeqCst);
            let has_failed = answer.is_failure_of_the_server();
            self.calm_failures.fetch_add(u64::from(has_failed), Ordering::SeqCst);
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.answers.lock().unwrap().values().sum()
    }

    /// Lines of a Markdown table: kind, and its answers.
    pub(super) fn table(&self) -> String {
        let answers = self.answers.lock().unwrap();
        let mut lines: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((kind, answer), count) in &*answers {
            lines.entry(kind).or_default().push(format!("{answer}: {count}"));
        }
        lines.iter().map(|(kind, answers)| format!("| {kind} | {} |\n", answers.join(", "))).collect()
    }
}
