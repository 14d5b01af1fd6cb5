//! The one handle to Redis: connection, prefix, deadline, and the health of the server.
//!
//! The types that keep something there live beside their traits: verdicts, spent tokens, split keys.

mod connection;
mod failure;
mod handle;
mod health;
#[cfg(test)]
mod tests;

pub use self::handle::Redis;
pub(crate) use self::{failure::RedisFailure, health::Access};
