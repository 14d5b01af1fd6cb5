//! What is known of Redis's health: whether a command is worth sending, and the log of incidents.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Mutex,
    time::Duration,
};

use tracing::{info, warn};

use crate::{
    gate::observer::TARGET,
    redis::failure::RedisFailure,
    runtime::{Instant, lock},
};

/// While Redis does not answer, one command in this time tries whether it does again. All others fail at once, so
/// that an outage costs requests nothing.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// A fault is over when a command succeeds and none has failed for this long.
const QUIET: Duration = Duration::from_secs(1);

/// What a command does to the data: a server that is read-only or out of memory fails writes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The health of one server, shared by all that use it through one handle.
#[derive(Default)]
pub(super) struct RedisHealth {
    state: Mutex<HealthState>,
}

#[derive(Default)]
struct HealthState {
    /// What uses the server, for the log.
    used_by: BTreeSet<&'static str>,
    /// When the next command may be sent to a server that does not answer; `None` while it does.
    next_probe: Option<Instant>,
    last_answer: Option<Instant>,
    incident: Incident,
}

impl RedisHealth {
    pub(super) fn add_user(&self, user: &'static str) {
        lock(&self.state).used_by.insert(user);
    }

    /// Whether a command should be sent now.
    pub(super) fn may_send(&self) -> bool {
        let now = Instant::now();
        let next_probe = &mut lock(&self.state).next_probe;
        match next_probe {
            Some(due) if *due > now => false,
            Some(due) => {
                // Only one caller per interval may probe.
                *due = now + PROBE_INTERVAL;
                true
            }
            None => true,
        }
    }

    /// Takes down a failure of a command that was sent at `sent`.
    pub(super) fn failed(&self, access: Access, failure: &RedisFailure, sent: Instant) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let fault = if failure.is_unreachable() {
            // One late command of many means that this machine is busy. It is Redis if none was answered since.
            let only_late =
                matches!(failure, RedisFailure::Late(_)) && state.last_answer.is_some_and(|last| last > sent);
            if !only_late {
                state.next_probe = Some(now + PROBE_INTERVAL);
            }
            RedisFault::Unreachable
        } else {
            state.answered(now);
            RedisFault::Declines(access)
        };
        if state.incident.fails(fault, now) {
            let used_by = state.used_by();
            drop(state);
            warn!(target: TARGET, error = %failure, used_by, "Redis fails; further failures are not logged");
        }
    }

    pub(super) fn succeeded(&self, access: Access) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.answered(now);
        if let Some(failures) = state.incident.works(access, now) {
            let used_by = state.used_by();
            drop(state);
            info!(target: TARGET, failures, used_by, "Redis serves again");
        }
    }
}

impl HealthState {
    fn answered(&mut self, now: Instant) {
        self.last_answer = Some(now);
        self.next_probe = None;
    }

    /// Such as `replay guard, verdict cache`.
    fn used_by(&self) -> String {
        self.used_by.iter().copied().collect::<Vec<_>>().join(", ")
    }
}

/// One way in which Redis fails.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum RedisFault {
    Unreachable,
    Declines(Access),
}

/// The faults that are not over. From the first one until there is none it is one incident.
#[derive(Default)]
struct Incident {
    /// The last failure by each fault.
    faults: BTreeMap<RedisFault, Instant>,
    failures: u64,
}

impl Incident {
    /// Adds a failure. Whether the incident begins with it.
    fn fails(&mut self, fault: RedisFault, now: Instant) -> bool {
        let begins = self.faults.is_empty();
        self.faults.insert(fault, now);
        self.failures += 1;
        begins
    }

    /// Adds a success. If the incident ends with it, the number of its failures.
    fn works(&mut self, access: Access, now: Instant) -> Option<u64> {
        if self.faults.is_empty() {
            return None;
        }
        self.faults.retain(|fault, last_failure| {
            let is_another = matches!(fault, RedisFault::Declines(other) if *other != access);
            // One success between two failures ends nothing.
            is_another || now.saturating_duration_since(*last_failure) < QUIET
        });
        self.faults.is_empty().then(|| mem::take(&mut self.failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_incident_is_one_incident() {
        let mut incident = Incident::default();
        assert!(incident.works(Access::Read, Instant::now()).is_none());
        assert!(incident.fails(RedisFault::Unreachable, Instant::now()));
        for _ in 0..3 {
            assert!(!incident.fails(RedisFault::Unreachable, Instant::now()));
            assert!(incident.works(Access::Read, Instant::now()).is_none(), "a lucky moment");
            tokio::time::advance(QUIET / 2).await;
        }
        assert!(incident.works(Access::Read, Instant::now()).is_none());
        tokio::time::advance(QUIET / 2).await;
        assert!(incident.works(Access::Read, Instant::now()).is_some());
        assert!(incident.works(Access::Read, Instant::now()).is_none());
        assert!(incident.fails(RedisFault::Unreachable, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_incident_is_over_when_all_that_failed_works_again() {
        let mut incident = Incident::default();
        assert!(incident.fails(RedisFault::Unreachable, Instant::now()));
        assert!(!incident.fails(RedisFault::Declines(Access::Write), Instant::now()), "the same incident");
        assert!(!incident.fails(RedisFault::Declines(Access::Read), Instant::now()), "the same incident");
        tokio::time::advance(QUIET).await;
        assert_eq!(incident.works(Access::Read, Instant::now()), None, "nothing was written");
        assert_eq!(incident.works(Access::Write, Instant::now()), Some(3));
        assert!(incident.fails(RedisFault::Declines(Access::Write), Instant::now()));
        tokio::time::advance(QUIET).await;
        assert_eq!(incident.works(Access::Write, Instant::now()), Some(1));
    }
}
