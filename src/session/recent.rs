//! A bounded memory that forgets by the age of its entries.

use std::{collections::HashMap, hash::Hash, mem, sync::Mutex, time::Duration};

use crate::runtime::{Instant, lock};

/// The entries of this period and of the last one.
pub(super) struct Recent<K, V> {
    period: Duration,
    /// The most entries of a period. A period that is full ends early.
    capacity: usize,
    periods: Mutex<Periods<K, V>>,
}

struct Periods<K, V> {
    this: HashMap<K, V>,
    last: HashMap<K, V>,
    began: Option<Instant>,
}

/// The time for which a buyer is remembered, at least: fresh evidence is that of requests which waited for one answer
/// together, at most for the deadline of a layer.
const BUYER_PERIOD: Duration = Duration::from_secs(60);
/// The most buyers of such a time that are remembered.
const BUYERS: usize = 10_000;

impl<K: Eq + Hash> Recent<K, ()> {
    /// The memory of who has got a session, so that one answer of Apple buys one session.
    pub(super) fn buyers() -> Self {
        Self::new(BUYER_PERIOD, BUYERS)
    }
}

impl<K: Eq + Hash, V: Copy> Recent<K, V> {
    /// An entry is remembered for one period at least, unless more come, and for two at most.
    pub(super) fn new(period: Duration, capacity: usize) -> Self {
        let periods = Periods { this: HashMap::new(), last: HashMap::new(), began: None };
        Self { period, capacity, periods: Mutex::new(periods) }
    }

    #[cfg(feature = "jwt")]
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let periods = lock(&self.periods);
        periods.this.get(key).or_else(|| periods.last.get(key)).copied()
    }

    /// Remembers an entry. Returns whether it is new.
    pub(super) fn insert(&self, key: K, value: V, now: Instant) -> bool {
        let mut periods = lock(&self.periods);
        let age = periods.began.map(|began| now.saturating_duration_since(began));
        if periods.this.len() >= self.capacity || age.is_none_or(|age| age >= self.period) {
            periods.last = mem::take(&mut periods.this);
            if age.is_none_or(|age| age >= 2 * self.period) {
                periods.last.clear();
            }
            periods.began = Some(now);
        }
        !periods.last.contains_key(&key) && periods.this.insert(key, value).is_none()
    }

    #[cfg(feature = "jwt")]
    pub(super) fn clear(&self) {
        let mut periods = lock(&self.periods);
        periods.this.clear();
        periods.last.clear();
    }
}
