//! Longer texts, for people who run a server with this crate or change the crate. There is nothing to call here.

/// The layer among CORS, rate limits, tracing and timeouts; `layer` or `route_layer`.
#[doc = include_str!("../docs/ordering.md")]
pub mod ordering {}

/// The guarantees, the attacks that are held off, and those that are not.
#[doc = include_str!("../docs/threat-model.md")]
pub mod threat_model {}

/// Every rejection and log line, alerts, key rotation, limits.
#[doc = include_str!("../docs/operating.md")]
pub mod operating {}

/// One process, a few replicas, many regions: the caches and guards for each.
#[doc = include_str!("../docs/scaling.md")]
pub mod scaling {}

/// Cloudflare Workers and other hosts of functions: what differs there, and what was tried.
#[doc = include_str!("../docs/platforms.md")]
pub mod platforms {}

/// For users of Bearologics' DeviceCheck, on Workers or Vapor.
#[doc = include_str!("../docs/from-bearologics.md")]
pub mod from_bearologics {}

/// The formats of split API keys, byte by byte, and their threat model.
#[doc = include_str!("../docs/split-keys.md")]
pub mod split_keys {}

/// For users of Proxed.AI.
#[doc = include_str!("../docs/from-proxed.md")]
pub mod from_proxed {}

/// For people who change this crate: its files, and how a request passes through them.
#[doc = include_str!("../docs/architecture.md")]
pub mod architecture {}
