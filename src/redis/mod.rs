//! The one handle to Redis: connection, prefix, deadline, and what is known of the server's health.
//!
//! What is kept in Redis lives beside its trait: verdicts, spent tokens, split keys.

mod connection;
mod failure;
mod handle;
mod health;
#[cfg(test)]
mod tests;

pub use self::handle::Redis;
pub(crate) use self::{failure::RedisFailure, health::Access};
