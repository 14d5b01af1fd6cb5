//! The memory of hand-outs: one session for a token or subject, however many requests come with it at once.

use std::{collections::HashSet, mem, sync::Mutex, time::Duration};

use crate::gate::credential::TokenDigest;
use crate::gate::decision::VerifiedDevice;
use crate::runtime::{Instant, lock};

/// Fresh evidence is that of requests which waited for one answer together, at most for the deadline of a layer.
const PERIOD: Duration = Duration::from_secs(60);
/// The most devices of a period. A period that is full ends early.
const CAPACITY: usize = 10_000;

/// The devices that got a session, in this period and in the last one.
#[derive(Default)]
pub(super) struct HandedOut(Mutex<Periods>);

#[derive(Default)]
struct Periods {
    this: HashSet<TokenDigest>,
    last: HashSet<TokenDigest>,
    began: Option<Instant>,
}

impl HandedOut {
    /// Whether this device has not got a session lately. It then counts as having got one.
    pub(super) fn is_first(&self, device: &VerifiedDevice, now: Instant) -> bool {
        let device = device.subject().map_or(device.digest(), |subject| TokenDigest::of(subject.as_bytes()));
        let mut periods = lock(&self.0);
        let age = periods.began.map(|began| now.saturating_duration_since(began));
        if periods.this.len() >= CAPACITY || age.is_none_or(|age| age >= PERIOD) {
            periods.last = mem::take(&mut periods.this);
            if age.is_none_or(|age| age >= 2 * PERIOD) {
                periods.last.clear();
            }
            periods.began = Some(now);
        }
        !periods.last.contains(&device) && periods.this.insert(device)
    }
}
