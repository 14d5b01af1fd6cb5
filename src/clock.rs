//! The crate's clock.
//!
//! Under tokio the monotonic clock is tokio's, so that a test that pauses tokio's time moves every time to
//! live, renewal and latency of this crate with it. Elsewhere it is the platform's; on wasm, where the
//! standard library's clocks panic, it is the host's.

pub(crate) use web_time::SystemTime;

#[cfg(all(feature = "tokio", not(target_arch = "wasm32")))]
pub(crate) use tokio::time::Instant;
#[cfg(not(all(feature = "tokio", not(target_arch = "wasm32"))))]
pub(crate) use web_time::Instant;

use std::time::Duration;
use web_time::UNIX_EPOCH;

/// One reading of both clocks. Decisions about time take it as an argument, which makes them pure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// For durations: never jumps.
    pub(crate) monotonic: Instant,
    /// For what others see: may jump.
    pub(crate) wall: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// Time since the Unix epoch; zero for a clock that stands before it.
#[cfg_attr(
    not(any(feature = "memory-cache", feature = "redis", feature = "aws-lc-rs", feature = "rust-crypto")),
    allow(dead_code)
)]
pub(crate) fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
