//! The use of keys: requests, and the tokens that providers state.

pub(super) mod body;
#[cfg_attr(
    all(target_arch = "wasm32", not(feature = "redis")),
    allow(dead_code, reason = "nothing keeps the days")
)]
mod days;
#[cfg(not(target_arch = "wasm32"))]
mod folder;
#[cfg(feature = "redis")]
mod hashes;
pub(super) mod log;
pub(super) mod report;
mod scanner;
pub(super) mod stated;
