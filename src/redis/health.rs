//! The health of Redis: a limit on commands while it does not answer, and the log of incidents.

use std::collections::{BTreeMap, BTreeSet};
use std::{
    mem,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tracing::{info, warn};

use crate::meter::{REDIS_FAILURES, REDIS_INCIDENTS, label};
use crate::runtime::{Instant, lock};
use crate::{gate::observer::TARGET, redis::failure::RedisFailure};

/// The time between two probes of a server that does not answer. All other commands fail at once, so that requests do
/// not wait during an outage.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// The time that must pass after the last failure before a success ends a fault.
const QUIET: Duration = Duration::from_secs(1);

/// The kind of a command. A server that is read-only or out of memory, or has access rules, fails only some kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    ReadVerdict,
    WriteVerdict,
    Lease,
    /// Marks that are out of date. The command is sent even if Redis is known not to answer.
    Forget,
    Guard,
    /// The withdrawal of a claim. It is sent even if Redis is known not to answer.
    Undo,
    /// The time for which Apple wants to be left alone.
    #[cfg(feature = "_apple")]
    Hold,
    /// The revocations of sessions.
    #[cfg(feature = "session")]
    Revocations,
    /// The keys of devices, and their counters.
    #[cfg(all(feature = "app-attest", feature = "_apple"))]
    AttestedKey,
    /// The receipts of App Attest. No request waits for them.
    #[cfg(all(feature = "_apple", feature = "app-attest"))]
    Receipts,
    #[cfg(feature = "split-key")]
    ReadKey,
    #[cfg(feature = "split-key")]
    CountUse,
}

impl Access {
    /// Whether a request fails without the answer, so that a longer wait is worthwhile.
    pub(super) const fn is_needed(self) -> bool {
        match self {
            Self::ReadVerdict | Self::WriteVerdict | Self::Lease => false,
            #[cfg(feature = "_apple")]
            Self::Hold => false,
            Self::Forget | Self::Guard | Self::Undo => true,
            #[cfg(feature = "session")]
            Self::Revocations => true,
            #[cfg(all(feature = "app-attest", feature = "_apple"))]
            Self::AttestedKey => true,
            #[cfg(all(feature = "_apple", feature = "app-attest"))]
            Self::Receipts => true,
            #[cfg(feature = "split-key")]
            Self::ReadKey | Self::CountUse => true,
        }
    }

    /// The kind's name in metrics.
    const fn as_str(self) -> &'static str {
        match self {
            Self::ReadVerdict => "read_verdict",
            Self::WriteVerdict => "write_verdict",
            Self::Lease => "lease",
            Self::Forget => "forget_marks",
            Self::Guard => "reserve",
            Self::Undo => "withdraw",
            #[cfg(feature = "_apple")]
            Self::Hold => "share_retry_after",
            #[cfg(feature = "session")]
            Self::Revocations => "revocations",
            #[cfg(all(feature = "app-attest", feature = "_apple"))]
            Self::AttestedKey => "attested_key",
            #[cfg(all(feature = "_apple", feature = "app-attest"))]
            Self::Receipts => "receipts",
            #[cfg(feature = "split-key")]
            Self::ReadKey => "read_key",
            #[cfg(feature = "split-key")]
            Self::CountUse => "count_use",
        }
    }

    /// The kind for the log of incidents. A kind that is seldom sent must not keep an incident open.
    const fn for_the_log(self) -> Self {
        match self {
            Self::Undo => Self::Guard,
            other => other,
        }
    }
}

/// The health of one server, shared by all clones of one handle.
#[derive(Default)]
pub(super) struct RedisHealth {
    state: Mutex<HealthState>,
}

#[derive(Default)]
struct HealthState {
    /// The names of the server's users, for the log.
    used_by: BTreeSet<&'static str>,
    silence: Option<Silence>,
    last_answer: Option<Instant>,
    incident: Incident,
}

/// The state of a server that does not answer, or only slowly.
struct Silence {
    /// The longest time that a command has waited in vain. Commands with a longer deadline are still sent.
    waited: Duration,
    next_probe: Instant,
}

impl RedisHealth {
    pub(super) fn add_user(&self, user: &'static str) {
        lock(&self.state).used_by.insert(user);
    }

    /// Decides whether a command with this deadline is sent now.
    pub(super) fn may_send(&self, deadline: Duration) -> bool {
        let now = Instant::now();
        match &mut lock(&self.state).silence {
            Some(silence) if deadline > silence.waited => true,
            Some(silence) if silence.next_probe > now => false,
            Some(silence) => {
                // Only one caller per interval may probe.
                silence.next_probe = now + PROBE_INTERVAL;
                true
            }
            None => true,
        }
    }

    /// Adds the failure of a command that was sent at `sent`.
    pub(super) fn failed(&self, access: Access, failure: &RedisFailure, sent: Instant) {
        REDIS_FAILURES.add([label("command", access.as_str())]);
        let now = Instant::now();
        let mut state = lock(&self.state);
        let fault = if failure.is_unreachable() {
            let last_answer = state.last_answer;
            let waited = match failure {
                // Redis is at fault only if it has answered no other command since. Otherwise this machine may be busy.
                RedisFailure::Late(_) if last_answer.is_some_and(|last| last > sent) => None,
                // A server that has answered before may only be slow. Commands with a longer deadline can still use it.
                RedisFailure::Late(limit) if last_answer.is_some() => Some(*limit),
                _ => Some(Duration::MAX),
            };
            if let Some(waited) = waited {
                let waited = state.silence.as_ref().map_or(waited, |silence| silence.waited.max(waited));
                state.silence = Some(Silence { waited, next_probe: now + PROBE_INTERVAL });
            }
            RedisFault::Unreachable
        } else {
            state.answered(sent, now);
            RedisFault::Declines(access.for_the_log())
        };
        if state.incident.fails(fault, now) {
            let used_by = state.used_by();
            drop(state);
            REDIS_INCIDENTS.move_by(0, 1);
            warn!(target: TARGET, error = %failure, used_by, "Redis fails; further failures are not logged");
        }
    }

    /// Adds the answer to a command that was sent at `sent`.
    pub(super) fn succeeded(&self, access: Access, sent: Instant) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.answered(sent, now);
        if let Some(failures) = state.incident.works(access.for_the_log(), now) {
            let used_by = state.used_by();
            drop(state);
            REDIS_INCIDENTS.move_by(1, 0);
            info!(target: TARGET, failures, used_by, "Redis serves again");
        }
    }
}

/// Nobody asks this server any more, so its incident is no longer one.
impl Drop for RedisHealth {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        REDIS_INCIDENTS.move_by(usize::from(!state.incident.faults.is_empty()), 0);
    }
}

impl HealthState {
    fn answered(&mut self, sent: Instant, now: Instant) {
        self.last_answer = Some(now);
        // An answer that took longer does not help commands with a shorter deadline.
        let took = now.saturating_duration_since(sent);
        self.silence.take_if(|silence| took <= silence.waited);
    }

    /// Lists the users, such as `replay guard, verdict cache`.
    fn used_by(&self) -> String {
        self.used_by.iter().copied().collect::<Vec<_>>().join(", ")
    }
}

/// A kind of fault of Redis.
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
    /// Adds a failure. Returns whether an incident begins with it.
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
        assert!(incident.works(Access::ReadVerdict, Instant::now()).is_none());
        assert!(incident.fails(RedisFault::Unreachable, Instant::now()));
        for _ in 0..3 {
            assert!(!incident.fails(RedisFault::Unreachable, Instant::now()));
            assert!(incident.works(Access::ReadVerdict, Instant::now()).is_none(), "a lucky moment");
            tokio::time::advance(QUIET / 2).await;
        }
        assert!(incident.works(Access::ReadVerdict, Instant::now()).is_none());
        tokio::time::advance(QUIET / 2).await;
        assert!(incident.works(Access::ReadVerdict, Instant::now()).is_some());
        assert!(incident.works(Access::ReadVerdict, Instant::now()).is_none());
        assert!(incident.fails(RedisFault::Unreachable, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_incident_is_over_when_all_that_failed_works_again() {
        let mut incident = Incident::default();
        assert!(incident.fails(RedisFault::Unreachable, Instant::now()));
        assert!(!incident.fails(RedisFault::Declines(Access::Guard), Instant::now()), "the same incident");
        assert!(
            !incident.fails(RedisFault::Declines(Access::ReadVerdict), Instant::now()),
            "the same incident"
        );
        tokio::time::advance(QUIET).await;
        assert_eq!(incident.works(Access::ReadVerdict, Instant::now()), None, "nothing was written");
        assert_eq!(incident.works(Access::Guard, Instant::now()), Some(3));
        assert!(incident.fails(RedisFault::Declines(Access::Guard), Instant::now()));
        tokio::time::advance(QUIET).await;
        assert_eq!(incident.works(Access::Guard, Instant::now()), Some(1));
    }
}
