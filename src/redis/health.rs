//! The health of Redis: a gate for commands while it does not answer, and the log of incidents.

use std::collections::{BTreeMap, BTreeSet};
use std::{mem, sync::Mutex, time::Duration};

use tracing::{info, warn};

use crate::runtime::{Instant, lock};
use crate::{gate::observer::TARGET, redis::failure::RedisFailure};

/// The time between two commands that are let through to a server that does not answer. All others fail at
/// once, so that requests do not wait during an outage.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// The time that must pass after the last failure before a success ends a fault.
const QUIET: Duration = Duration::from_secs(1);

/// The kind of a command. A server that is read-only or out of memory fails writes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The health of one server, shared by all clones of one handle.
#[derive(Default)]
pub(super) struct RedisHealth {
    state: Mutex<HealthState>,
}

#[derive(Default)]
struct HealthState {
    /// The names of what uses the server, for the log.
    used_by: BTreeSet<&'static str>,
    /// The time of the next probe, while the server does not answer.
    next_probe: Option<Instant>,
    last_answer: Option<Instant>,
    incident: Incident,
}

impl RedisHealth {
    pub(super) fn add_user(&self, user: &'static str) {
        lock(&self.state).used_by.insert(user);
    }

    /// Decides whether a command is sent now.
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

    /// Adds the failure of a command that was sent at `sent`.
    pub(super) fn failed(&self, access: Access, failure: &RedisFailure, sent: Instant) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let fault = if failure.is_unreachable() {
            // Redis is at fault if it has answered no other command since. Otherwise this machine may be
            // busy.
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

    /// Lists the users, such as `replay guard, verdict cache`.
    fn used_by(&self) -> String {
        self.used_by.iter().copied().collect::<Vec<_>>().join(", ")
    }
}

/// A way in which Redis fails.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum RedisFault {
    Unreachable,
    Declines(Access),
}

/// The faults that are not over. An incident lasts from the first fault until the last one is over.
#[derive(Default)]
struct Incident {
    /// The time of each fault's last failure.
    faults: BTreeMap<RedisFault, Instant>,
    failures: u64,
}

impl Incident {
    /// Adds a failure. Returns true if the incident begins with it.
    fn fails(&mut self, fault: RedisFault, now: Instant) -> bool {
        let begins = self.faults.is_empty();
        self.faults.insert(fault, now);
        self.failures += 1;
        begins
    }

    /// Adds a success. Returns the number of failures if the incident ends with it.
    fn works(&mut self, access: Access, now: Instant) -> Option<u64> {
        if self.faults.is_empty() {
            return None;
        }
        self.faults.retain(|fault, last_failure| {
            let is_another = matches!(fault, RedisFault::Declines(other) if *other != access);
            // A success between two failures ends no fault.
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
