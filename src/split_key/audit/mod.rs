//! What is known of the use of keys: events, who is told, counts, suspicion.

pub(super) mod event;
pub(super) mod observer;
pub(super) mod suspicion;
pub(super) mod usage;

#[cfg(test)]
mod tests;
