//! What is known of Redis's health.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tracing::{info, warn};

use crate::{
    gate::observer::TARGET,
    redis::failure::LinkError,
    runtime::{Instant, millis},
};

/// While Redis does not answer, one command in this time tries whether it does again; all others fail at
/// once, so that an outage costs requests nothing.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// An incident is over when something succeeds and nothing has failed for this long.
const QUIET: Duration = Duration::from_secs(1);

/// What a command does to the data: a server that is read-only or out of memory fails one kind only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

pub(super) struct Health {
    what: &'static str,
    origin: Instant,
    /// When the next command may try, in milliseconds since the origin; zero while Redis answers.
    next_try: AtomicU64,
    /// When Redis last answered, in milliseconds since the origin.
    answered: AtomicU64,
    unreachable: Incident,
    reads: Incident,
    writes: Incident,
}

impl Health {
    pub(super) fn new(what: &'static str) -> Self {
        Self {
            what,
            origin: Instant::now(),
            next_try: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            unreachable: Incident::default(),
            reads: Incident::default(),
            writes: Incident::default(),
        }
    }

    /// Milliseconds since the origin.
    fn millis(&self, time: Instant) -> u64 {
        millis(time.saturating_duration_since(self.origin))
    }

    fn next_probe(&self) -> u64 {
        self.millis(Instant::now() + PROBE_INTERVAL)
    }

    pub(super) fn may_try(&self) -> bool {
        let next = self.next_try.load(Ordering::Relaxed);
        if next == 0 {
            return true;
        }
        // Of all who are due, one goes.
        self.millis(Instant::now()) >= next
            && self
                .next_try
                .compare_exchange(next, self.next_probe(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    const fn incident(&self, kind: Kind) -> &Incident {
        match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
        }
    }

    pub(super) fn failed(&self, kind: Kind, error: &LinkError, started: Instant) {
        let unreachable = error.is_unreachable();
        // One command of many may be late when this machine is busy. If none was answered meanwhile, it is
        // Redis.
        let only_late = matches!(error, LinkError::Late(_))
            && self.answered.load(Ordering::Relaxed) > self.millis(started);
        if unreachable && !only_late {
            self.next_try.store(self.next_probe(), Ordering::Relaxed);
        } else if !unreachable {
            self.answers();
        }
        let incident = if unreachable { &self.unreachable } else { self.incident(kind) };
        if incident.begins() {
            warn!(target: TARGET, error = %error, "Redis fails the {}; further failures are not logged", self.what);
        }
    }

    pub(super) fn succeeded(&self, kind: Kind) {
        self.answers();
        for incident in [&self.unreachable, self.incident(kind)] {
            if incident.ends() {
                info!(target: TARGET, "Redis serves the {} again", self.what);
            }
        }
    }

    fn answers(&self) {
        self.answered.store(self.millis(Instant::now()), Ordering::Relaxed);
        self.next_try.store(0, Ordering::Relaxed);
    }
}

/// Something that goes wrong for a while, and is logged once.
#[derive(Default)]
struct Incident {
    under_way: AtomicBool,
    last_failure: Mutex<Option<Instant>>,
}

impl Incident {
    /// Whether this failure is the first one.
    fn begins(&self) -> bool {
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        !self.under_way.swap(true, Ordering::Relaxed)
    }

    /// Whether this success ends it. One between two failures does not.
    fn ends(&self) -> bool {
        if !self.under_way.load(Ordering::Relaxed) {
            return false;
        }
        let last_failure = *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        last_failure.is_none_or(|failure| failure.elapsed() >= QUIET)
            && self.under_way.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_incident_is_one_incident() {
        let incident = Incident::default();
        assert!(!incident.ends());
        assert!(incident.begins());
        for _ in 0..3 {
            assert!(!incident.begins());
            assert!(!incident.ends(), "a lucky moment");
            tokio::time::advance(QUIET / 2).await;
        }
        assert!(!incident.ends());
        tokio::time::advance(QUIET / 2).await;
        assert!(incident.ends());
        assert!(!incident.ends());
        assert!(incident.begins());
    }
}
