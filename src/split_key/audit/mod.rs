//! Observed uses of keys: events, observers, counts, suspicion.

pub(super) mod event;
pub(super) mod observer;
pub(super) mod suspicion;
pub(super) mod usage;

#[cfg(test)]
mod tests;
