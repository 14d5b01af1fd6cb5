//! All integration tests, in one binary.
//!
//! The name of a test against a known fault begins with a letter and a number: `tests/README.md` has the list.
//! Every test of behaviour also says how often Apple was asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod allocations;
mod api;
#[cfg(feature = "app-attest")]
mod app_attest;
#[cfg(feature = "app-attest")]
mod app_attest_example;
#[cfg(feature = "app-attest")]
mod app_attest_fake;
#[cfg(feature = "app-attest")]
mod app_attest_tool;
mod apple_client;
mod attacks;
mod cache_contract;
mod caches;
mod cancellation;
mod captured;
mod enforcement;
mod examples;
mod extremes;
mod faults;
mod first_steps;
#[cfg(feature = "gateway")]
mod gateway;
mod limiter;
mod marks;
#[cfg(feature = "_prometheus")]
mod metrics;
#[cfg(feature = "_prometheus")]
mod metrics_faults;
#[allow(dead_code, reason = "without some features")]
mod oracles;
mod oracles_hold;
mod outage;
mod overload;
mod overload_attacks;
mod overload_memory;
mod overload_sockets;
mod process_memory;
mod proofs;
mod protocols;
mod provider_token;
#[cfg(feature = "limit")]
mod rate_limiter;
mod readiness;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redis_connect;
#[cfg(feature = "redis")]
mod redis_failover;
#[cfg(feature = "redis")]
mod redis_handle;
#[cfg(feature = "redis")]
mod redis_keys;
#[cfg(feature = "redis")]
mod redis_marks;
#[cfg(feature = "redis")]
mod redis_outage;
#[cfg(feature = "redis")]
mod redis_proxy;
#[cfg(all(feature = "app-attest", feature = "redis"))]
mod redis_receipts;
#[cfg(feature = "redis")]
mod redis_server;
#[cfg(feature = "redis")]
mod redis_slow;
mod rollout;
mod secrets;
mod servers;
mod session_example;
mod sessions;
mod sharing;
mod single_use;
#[cfg(all(
    feature = "app-attest",
    feature = "gateway",
    feature = "redis",
    feature = "_prometheus",
    target_os = "linux"
))]
mod soak;
mod split_key;
mod split_key_tool;
mod statuses;
mod support;
mod teams;
mod tenant_attacks;
mod tenants;
mod tenants_example;
mod tokens;
mod tower_contract;
mod verdicts;
mod wiped;
