//! The one handle to Redis: connection, prefix, deadline, and the health of the server.
//!
//! The types that store data in Redis live beside their traits: those for verdicts, spent tokens and split keys.

mod check;
mod connection;
mod failure;
mod handle;
mod health;
mod replaced_connection;
#[cfg(test)]
mod tests;

#[cfg(any(feature = "split-key", all(feature = "app-attest", feature = "_apple")))]
pub(crate) use self::connection::Commands;
pub use self::handle::Redis;
pub(crate) use self::{check::RedisUser, failure::RedisFailure, handle::expiry, health::Access};
