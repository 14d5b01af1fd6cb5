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
    since: Instant,
    rejections: u64,
    /// Whether the beginning was reported as a fault of this server. `None` if it was not reported.
    told: Option<bool>,
}

/// The shortest time between two reported outages.
const QUIET: Duration = Duration::from_secs(10);

impl Outages {
    /// Adds a rejection. Returns whether observers must be told that an outage begins.
    pub(super) fn begins(&self, is_our_fault: bool, now: Instant) -> bool {
        let State { current, last_told } = &mut *lock(&self.state);
        let current = current.get_or_insert(Current { since: now, rejections: 0, told: None });
        current.rejections += 1;
        let begins = match current.told {
            None => last_told.is_none_or(|told| now.saturating_duration_since(told) >= QUIET),
            Some(as_our_fault) => is_our_fault && !as_our_fault,
        };
        if begins {
            current.told = Some(is_our_fault);
            *last_told = Some(now);
        }
        begins
    }

    /// Records a verdict. Returns the end of the outage, if its beginning was reported.
    pub(super) fn ends<'a>(&self, tenant: Option<&'a TenantName>, now: Instant) -> Option<Outage<'a>> {
        let over = lock(&self.state).current.take_if(|current| current.told.is_some())?;
        let lasted = now.saturating_duration_since(over.since);
        Some(Outage::Over { rejections: over.rejections, lasted, tenant })
    }
}
