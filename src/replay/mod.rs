//! Single use: a device token admits one request.
//!
//! Apple asks servers to treat a token as good for one use, and does not enforce it. An attacker who captures
//! a token can send it again for as long as Apple accepts it, and Apple does not say how long that is. Where
//! that is too much, [`DeviceCheckLayer::with_single_use`](crate::DeviceCheckLayer::with_single_use) lets a
//! [`ReplayGuard`] remember tokens instead of verdicts.
//!
//! ```
//! use tower_devicecheck::{DeviceCheckLayer, replay::MemoryReplayGuard};
//!
//! # fn layer(apple: impl tower_devicecheck::DeviceVerifier) -> DeviceCheckLayer {
//! DeviceCheckLayer::new(apple).with_single_use(MemoryReplayGuard::new())
//! # }
//! ```
//!
//! One process needs no more than [`MemoryReplayGuard`]. Replicas must share a guard, or each of them admits
//! the token once: `RedisReplayGuard` (feature `redis`).
//!
//! # A token's life
//!
//! | step | what the guard does | a second request with the token meanwhile |
//! |---|---|---|
//! | before Apple is asked | reserves the token for one request | [`ReusedToken`](crate::Rejection::ReusedToken), Apple is not asked |
//! | Apple says genuine | confirms: the token is spent, and the request goes on | `ReusedToken` for as long as the guard remembers |
//! | Apple refuses | leaves the reservation until it lapses | `ReusedToken`, so that a flood of one bad token costs one call |
//! | no verdict: an outage | releases the token | is checked: the app's retry works |
//! | the client goes away first | releases the token as far as it can, or lets it lapse | is checked |
//! | the process dies | nothing: the reservation lapses | is checked once the reservation has lapsed |
//!
//! Of any number of concurrent requests with one token exactly one is admitted. A token that is spent for one
//! of Apple's environments is spent for the other, too.
//!
//! A guard only ever withholds: no answer of a guard admits a request that Apple has not found genuine.
//!
//! # Retries by the network
//!
//! A client whose connection breaks after its request was admitted does not know that. By default its retry
//! is rejected, and the app makes a new token. With
//! [`with_retry_window`](crate::DeviceCheckLayer::with_retry_window), *one* more request with the same
//! idempotency key is let through to Apple for a short time after the token was spent. An attacker who can
//! capture the token can capture the idempotency key beside it. So the window lets one replay through, too,
//! unless the inner service answers a known key with the answer that it gave before.

mod claim;
mod guard;
mod memory;
pub(crate) mod owner;
#[cfg(feature = "redis")]
mod redis;

pub use self::claim::{Claim, Claimed, ReplayKey};
pub use self::guard::{GuardError, ReplayGuard};
pub use self::memory::MemoryReplayGuard;
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::RedisReplayGuard;
pub(crate) use self::{claim::Retry, guard::ErasedReplayGuard};
