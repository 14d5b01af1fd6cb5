//! Outages: from the first request without a verdict to the next verdict.

use std::{sync::Mutex, time::Duration};

use crate::gate::{observer::Outage, tenant::name::TenantName};
use crate::runtime::{Instant, lock};

/// The outages of one layer: at most one at a time.
#[derive(Debug, Default)]
pub(super) struct Outages {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    last_told: Option<Instant>,
}

#[derive(Debug)]
struct Current {
    /// The place of the proof whose rejection was the last one to be reported, or the first one.
    proof: usize,
    since: Instant,
    /// The time of the last rejection by this proof.
    last: Instant,
    rejections: u64,
    /// Whether the beginning was reported as a fault of this server. `None` if it was not reported.
    told: Option<bool>,
}

/// The shortest time between two reported outages.
const QUIET: Duration = Duration::from_secs(10);
/// The time after which the verdict of another proof ends an outage that its proof has not met again.
const FORGOTTEN: Duration = Duration::from_secs(60);

impl Outages {
    /// Adds a rejection by the proof at this place. Returns whether observers must be told that an outage begins.
    pub(super) fn begins(&self, proof: usize, is_our_fault: bool, now: Instant) -> bool {
        let State { current, last_told } = &mut *lock(&self.state);
        let first = Current { proof, since: now, last: now, rejections: 0, told: None };
        let current = current.get_or_insert(first);
        current.rejections += 1;
        let begins = match current.told {
            None => last_told.is_none_or(|told| now.saturating_duration_since(told) >= QUIET),
            Some(as_our_fault) => is_our_fault && !as_our_fault,
        };
        if begins {
            current.proof = proof;
            current.told = Some(is_our_fault);
            *last_told = Some(now);
        }
        if current.proof == proof {
            current.last = now;
        }
        begins
    }

    /// Records a verdict of the proof at this place. Returns the end of the outage, if its beginning was reported. What
    /// another proof asks may work while Apple does not.
    pub(super) fn ends<'a>(
        &self,
        proof: usize,
        tenant: Option<&'a TenantName>,
        now: Instant,
    ) -> Option<Outage<'a>> {
        let is_over = |current: &mut Current| {
            let is_forgotten = now.saturating_duration_since(current.last) >= FORGOTTEN;
            current.told.is_some() && (current.proof == proof || is_forgotten)
        };
        let over = lock(&self.state).current.take_if(is_over)?;
        let lasted = now.saturating_duration_since(over.since);
        Some(Outage::Over { rejections: over.rejections, lasted, tenant })
    }
}
