//! All integration tests, in one binary.
//!
//! A test called `rNN_…` guards against a fault that was seen in comparable systems: `tests/README.md` has the list.
//! Every test of behaviour also says how often Apple was asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod allocations;
mod api;
mod attacks;
mod cache_contract;
mod caches;
mod examples;
mod faults;
mod gateway;
mod generated;
mod outage;
mod protocols;
mod provider_token;
mod readiness;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redis_handle;
#[cfg(feature = "redis")]
mod redis_keys;
#[cfg(feature = "redis")]
mod redis_outage;
#[cfg(feature = "redis")]
mod redis_server;
mod secrets;
mod sharing;
mod single_use;
mod split_key;
mod split_key_tool;
mod statuses;
mod support;
mod tokens;
mod tower_contract;
mod verdicts;
