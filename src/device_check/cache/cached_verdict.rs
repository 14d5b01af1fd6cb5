//! A verdict as caches hold it.

use std::time::Duration;

use crate::gate::{bits::Bits, credential::TokenDigest};
use crate::{apple::token::Verdict, runtime::SystemTime};

/// A verdict as caches hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedVerdict {
    verdict: Verdict,
    digest: TokenDigest,
    checked_at: SystemTime,
    time_to_live: Duration,
    is_for_exact_text: bool,
    bits: Option<Bits>,
}

impl CachedVerdict {
    /// Makes a verdict about the token with this digest. The check began at `checked_at`; the verdict is valid for
    /// `time_to_live` from now.
    #[must_use]
    pub const fn new(
        verdict: Verdict,
        digest: TokenDigest,
        checked_at: SystemTime,
        time_to_live: Duration,
    ) -> Self {
        Self { verdict, digest, checked_at, time_to_live, is_for_exact_text: false, bits: None }
    }

    /// The verdict.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The bits of the device: `None` unless the key is [for marks](crate::cache::VerdictKey::is_for_marks) and the
    /// verdict genuine.
    #[must_use]
    pub const fn bits(&self) -> Option<Bits> {
        self.bits
    }

    /// The same verdict with these bits. A layer with marks ignores a genuine verdict without bits.
    #[must_use]
    pub const fn with_bits(mut self, bits: Option<Bits>) -> Self {
        self.bits = bits;
        self
    }

    /// The SHA-256 of the token.
    #[must_use]
    pub const fn digest(&self) -> TokenDigest {
        self.digest
    }

    /// The start of the check.
    #[must_use]
    pub const fn checked_at(&self) -> SystemTime {
        self.checked_at
    }

    /// The time from now for which the verdict is valid.
    #[must_use]
    pub const fn time_to_live(&self) -> Duration {
        self.time_to_live
    }

    /// Whether the cache compared the whole text of the key with the text for which the verdict was stored. The stored
    /// text came from a [`DeviceToken`](crate::DeviceToken), so the text of the key is canonical, too. Only
    /// `MemoryCache::peek` promises this.
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
