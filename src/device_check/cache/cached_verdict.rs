//! A verdict as caches hold it.

use std::time::Duration;

use crate::{apple::token::Verdict, gate::credential::TokenDigest, runtime::SystemTime};

/// A verdict as caches hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedVerdict {
    verdict: Verdict,
    digest: TokenDigest,
    checked_at: SystemTime,
    time_to_live: Duration,
    is_for_exact_text: bool,
}

impl CachedVerdict {
    /// A verdict about the token with this digest, from a check that began at `checked_at`, good for
    /// `time_to_live` from now.
    #[must_use]
    pub const fn new(
        verdict: Verdict,
        digest: TokenDigest,
        checked_at: SystemTime,
        time_to_live: Duration,
    ) -> Self {
        Self { verdict, digest, checked_at, time_to_live, is_for_exact_text: false }
    }

    /// The verdict.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// SHA-256 of the token that it is about.
    #[must_use]
    pub const fn digest(&self) -> TokenDigest {
        self.digest
    }

    /// When the check began.
    #[must_use]
    pub const fn checked_at(&self) -> SystemTime {
        self.checked_at
    }

    /// The time from now for which it is good.
    #[must_use]
    pub const fn time_to_live(&self) -> Duration {
        self.time_to_live
    }

    /// True if the cache compared the whole text of the key with the one for which the verdict was put. That
    /// text was a [`DeviceToken`](crate::DeviceToken), so this one is canonical, too. Only
    /// `MemoryCache::peek` promises it.
    pub(crate) const fn is_for_exact_text(&self) -> bool {
        self.is_for_exact_text
    }

    #[cfg(feature = "memory-cache")]
    pub(super) const fn for_exact_text(mut self) -> Self {
        self.is_for_exact_text = true;
        self
    }

    /// The same verdict with another time to live.
    #[must_use]
    pub const fn with_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.time_to_live = time_to_live;
        self
    }
}
