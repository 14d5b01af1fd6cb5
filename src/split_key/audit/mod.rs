//! Observed uses of keys: events, observers, suspicion.

pub(super) mod event;
pub(super) mod observer;
pub(super) mod suspicion;

#[cfg(test)]
mod tests;
