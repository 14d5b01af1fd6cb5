//! The buckets of a rate limiter: a bounded number of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use governor::{clock::Clock, nanos::Nanos, state::StateStore};

use crate::device_check::limit::key::LimitKey;
use crate::runtime::{Instant, lock};

/// A monotonic clock that starts at zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct SinceStart(Instant);

impl SinceStart {
    pub(super) fn now() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SinceStart {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        // 584 years fit.
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX).into()
    }
}

/// A bucket of each client, and one of all others.
///
/// governor's own stores grow with the number of keys and are cleaned as a whole. This one forgets a bucket or two on
/// each use, those that are full again, so that no request pays for many. Trees rather than hash tables: they never move
/// all their entries at once.
#[derive(Debug)]
pub(super) struct Buckets {
    clock: SinceStart,
    capacity: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The time at which each bucket is full again.
    full_at: BTreeMap<LimitKey, Nanos>,
    /// The same, the soonest first.
    ends: BTreeSet<(Nanos, LimitKey)>,
    /// The time at which the common bucket is full again, once it was used.
    common: Option<Nanos>,
}

impl Buckets {
    pub(super) fn new(clock: SinceStart, capacity: usize) -> Self {
        Self { clock, capacity, kept: Mutex::default() }
    }

    /// The number of clients with a bucket of their own.
    pub(super) fn len(&self) -> usize {
        lock(&self.kept).full_at.len()
    }
}

impl Kept {
    /// Forgets one bucket that is full at `now`, if there is one: a new one is full, too.
    fn forget(&mut self, now: Nanos) {
        if self.ends.first().is_some_and(|(end, _)| *end <= now)
            && let Some((_, key)) = self.ends.pop_first()
        {
            self.full_at.remove(&key);
        }
    }
}

/// The store that governor uses: it may not be implemented for an [`Arc`].
pub(super) struct Store(pub(super) Arc<Buckets>);

impl StateStore for Store {
    /// `None`: a request that has no key.
    type Key = Option<LimitKey>;

    fn measure_and_replace<T, F, E>(&self, key: &Self::Key, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let Buckets { clock, capacity, kept } = &*self.0;
        let now = clock.now();
        let kept = &mut *lock(kept);
        // Twice as fast as new ones can come.
        kept.forget(now);
        kept.forget(now);
        let has_room = kept.full_at.len() < *capacity;
        let Some(key) = key.filter(|key| has_room || kept.full_at.contains_key(key)) else {
            let (outcome, full_at) = measure(kept.common)?;
            kept.common = Some(full_at);
            return Ok(outcome);
        };
        let before = kept.full_at.get(&key).copied();
        let (outcome, full_at) = measure(before)?;
        if let Some(before) = before {
            kept.ends.remove(&(before, key));
        }
        kept.full_at.insert(key, full_at);
        kept.ends.insert((full_at, key));
        Ok(outcome)
    }
}
