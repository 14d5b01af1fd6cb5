//! Single use: a device token admits one request.
//!
//! Apple asks servers to use a token only once, but does not enforce this. An attacker who captures a token can send it
//! again for as long as Apple accepts it, and Apple does not document that time. If this risk is too high, use
//! [`DeviceCheckLayer::with_single_use`](crate::DeviceCheckLayer::with_single_use): a [`ReplayGuard`] then remembers
//! tokens instead of verdicts.
//!
//! ```
//! use tower_devicecheck::{DeviceCheckLayer, replay::MemoryReplayGuard};
//!
//! # fn layer(apple: impl tower_devicecheck::DeviceVerifier) -> DeviceCheckLayer {
//! DeviceCheckLayer::new(apple).with_single_use(MemoryReplayGuard::new())
//! # }
//! ```
//!
//! For one process, [`MemoryReplayGuard`] suffices. Replicas must share a guard, `RedisReplayGuard` (feature `redis`);
//! otherwise each replica would admit the token once.
//!
//! # A token's life
//!
//! | step | action of the guard | a second request with the token |
//! |---|---|---|
//! | before Apple is asked | reserves the token for one request | [`ReusedToken`](crate::Rejection::ReusedToken), Apple is not asked |
//! | Apple says genuine | confirms: the token is spent, and the request goes on | `ReusedToken` for as long as the guard remembers |
//! | Apple refuses | leaves the reservation until it lapses | `ReusedToken`, so that a flood of one bad token costs one call |
//! | no verdict, because of an outage | frees the token | is checked, so the app's retry works |
//! | the client disconnects first | frees the token if possible; otherwise the reservation lapses | is checked |
//! | the process dies | nothing: the reservation lapses | is checked once the reservation has lapsed |
//!
//! If any number of concurrent requests hold the same genuine token, exactly one is admitted. A token that is spent in
//! one of Apple's environments is spent in the other, too.
//!
//! A guard can only refuse requests: no answer of a guard admits a request whose token Apple has not found genuine.
//!
//! # Retries by the network
//!
//! If a connection breaks after its request was admitted, the client does not learn of the admission. By default, the
//! layer rejects the client's retry, and the app makes a new token. With
//! [`with_retry_window`](crate::DeviceCheckLayer::with_retry_window), the layer allows *one* more request with the same
//! idempotency key for a short time after the token was spent, and asks Apple about its token. An attacker who can
//! capture the token can also capture the idempotency key. The window therefore allows one replay, too, unless the
//! inner service repeats its earlier answer for a known idempotency key.

mod claim;
mod guard;
mod memory;
mod once;
pub(crate) mod owner;
#[cfg(feature = "redis")]
mod redis;

pub use self::claim::{Claim, Claimed, ReplayKey};
pub use self::guard::{GuardError, ReplayGuard};
pub use self::memory::MemoryReplayGuard;
#[cfg(feature = "redis")]
#[cfg_attr(tower_devicecheck_docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::RedisReplayGuard;
pub(crate) use self::{claim::Retry, guard::ErasedReplayGuard, once::admit_once};
