//! The places of shadow checks, which run beside their requests.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The shadow checks of one layer: how many may be under way, and how many are.
#[derive(Debug)]
pub(crate) struct ShadowChecks {
    limit: usize,
    under_way: AtomicUsize,
}

/// The place of one check, free again on drop.
pub(super) struct Place(Arc<ShadowChecks>);

impl ShadowChecks {
    pub(crate) const fn new(limit: usize) -> Self {
        Self { limit, under_way: AtomicUsize::new(0) }
    }

    /// As many places, all of them free.
    pub(super) const fn emptied(&self) -> Self {
        Self::new(self.limit)
    }

    /// Whether no place is free.
    pub(super) fn are_full(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) >= self.limit
    }

    /// Takes a place, if one is free.
    pub(super) fn place(self: &Arc<Self>) -> Option<Place> {
        let more = |under_way| (under_way < self.limit).then_some(under_way + 1);
        let taken = self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Place(Arc::clone(self)))
    }
}

/// Half of the calls that an `AppleClient` makes at a time, so that enforced routes have the other half.
impl Default for ShadowChecks {
    fn default() -> Self {
        Self::new(128)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
