//! Attested keys, as a server keeps them.

pub(super) mod attested_key;
pub(super) mod counter;
pub(super) mod memory;
#[cfg(feature = "redis")]
pub(super) mod redis;
pub(super) mod store;
