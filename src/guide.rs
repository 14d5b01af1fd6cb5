//! Guides for operators of servers with this crate, and for contributors. These modules hold only documentation.

/// The place of the layer among CORS, rate limits, tracing and timeouts; `layer` or `route_layer`.
#[doc = include_str!("../docs/ordering.md")]
pub mod ordering {}

/// The guarantees, the attacks that the gate stops, and those that it does not.
#[doc = include_str!("../docs/threat-model.md")]
pub mod threat_model {}

/// Every rejection and log line, alerts, key rotation, limits.
#[doc = include_str!("../docs/operating.md")]
pub mod operating {}

/// For developers of apps: a client in Swift, retries, simulators, OpenAPI, and what to do about each rejection.
#[doc = include_str!("../docs/clients.md")]
pub mod clients {}

/// Every metric and span: names, labels, queries, and what to do about an alert.
#[doc = include_str!("../docs/metrics.md")]
pub mod metrics {}

/// The faults that were thrown at the crate: the outcome of each, and the figures.
#[doc = include_str!("../docs/reliability.md")]
pub mod reliability {}

/// One process, a few replicas, many regions: the caches and guards for each.
#[doc = include_str!("../docs/scaling.md")]
pub mod scaling {}

/// Marks: Apple's two bits as policy. What survives, what it costs, and when a change counts.
#[doc = include_str!("../docs/marks.md")]
pub mod marks {}

/// Sessions: what they save, the server, a client in Swift, the token byte by byte, and the threat model.
#[doc = include_str!("../docs/sessions.md")]
pub mod sessions {}

/// App Attest: the protocol, a client in Swift, the server, receipts, and the threat model; which proof for what.
#[doc = include_str!("../docs/app-attest.md")]
pub mod app_attest {}

/// Many apps on one server: the choice of a tenant, isolation, changes while running, and the threat model.
#[doc = include_str!("../docs/tenants.md")]
pub mod tenants {}

/// Platforms that freeze processes or have no sockets: Cloudflare Workers, AWS Lambda.
#[doc = include_str!("../docs/platforms.md")]
pub mod platforms {}

/// Migration from Bearologics' DeviceCheck, on Workers or Vapor.
#[doc = include_str!("../docs/from-bearologics.md")]
pub mod from_bearologics {}

/// The formats of split API keys, byte by byte, and their threat model.
#[doc = include_str!("../docs/split-keys.md")]
pub mod split_keys {}

/// The gateway to AI providers, for its operators: start, providers, usage, the access log, Kubernetes and proxies.
#[doc = include_str!("../docs/gateway.md")]
pub mod gateway {}

/// Migration from Proxed.AI.
#[doc = include_str!("../docs/from-proxed.md")]
pub mod from_proxed {}

/// Migration from AIProxy, or from an API key inside the app.
#[doc = include_str!("../docs/from-aiproxy.md")]
pub mod from_aiproxy {}

/// For contributors: the crate's files, and how a request passes through them.
#[doc = include_str!("../docs/architecture.md")]
pub mod architecture {}
