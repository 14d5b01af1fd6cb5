//! The settings of the check with device tokens.

use std::{sync::Arc, time::Duration};

use http::HeaderName;

use crate::device_check::cache::{CachedVerdict, ErasedCache, NoCache};
use crate::device_check::debug_token::DebugTokens;
use crate::device_check::limit::Limiter;
use crate::device_check::token_source::{HeaderToken, TokenSource};
use crate::device_check::verifier::{DeviceVerifier, ErasedVerifier};
use crate::gate::observer::{Observer, TracingObserver};
use crate::{apple::token::Verdict, replay::ErasedReplayGuard, runtime::SystemTime};

#[derive(Clone)]
pub(crate) struct Settings {
    pub(super) verifier: Arc<dyn ErasedVerifier>,
    pub(crate) token_sources: Vec<Arc<dyn TokenSource>>,
    pub(crate) debug_tokens: Option<Arc<DebugTokens>>,
    pub(crate) reuse: Reuse,
    pub(crate) limiter: Option<Arc<dyn Limiter>>,
    pub(crate) retry_window: Duration,
    pub(crate) idempotency_header: HeaderName,
    pub(crate) genuine_time_to_live: Duration,
    pub(crate) refused_time_to_live: Duration,
    /// Hears of failures of the cache.
    pub(crate) observer: Arc<dyn Observer>,
}

/// Whether a token admits more than one request.
///
/// A verdict that is remembered admits the next request with the same token, which is what single use forbids:
/// there is one or the other.
#[derive(Clone)]
pub(crate) enum Reuse {
    Cached(Arc<dyn ErasedCache>),
    Once(Arc<dyn ErasedReplayGuard>),
}

impl Settings {
    pub(crate) fn new(verifier: impl DeviceVerifier) -> Self {
        Self {
            verifier: Arc::new(verifier),
            token_sources: vec![Arc::new(HeaderToken::default())],
            debug_tokens: None,
            #[cfg(feature = "memory-cache")]
            reuse: Reuse::Cached(Arc::new(crate::device_check::cache::MemoryCache::new())),
            #[cfg(not(feature = "memory-cache"))]
            reuse: Reuse::Cached(Arc::new(NoCache)),
            limiter: None,
            retry_window: Duration::ZERO,
            idempotency_header: HeaderName::from_static("idempotency-key"),
            genuine_time_to_live: Duration::from_secs(5 * 60),
            refused_time_to_live: Duration::from_secs(30),
            observer: Arc::new(TracingObserver),
        }
    }

    pub(crate) fn scope(&self) -> &str {
        self.verifier.scope()
    }

    /// The cache of verdicts: one that keeps nothing where a token is good for one request.
    pub(super) fn cache(&self) -> &dyn ErasedCache {
        match &self.reuse {
            Reuse::Cached(cache) => &**cache,
            Reuse::Once(_) => &NoCache,
        }
    }

    pub(super) const fn time_to_live(&self, verdict: Verdict) -> Duration {
        match verdict {
            Verdict::Genuine => self.genuine_time_to_live,
            Verdict::Refused => self.refused_time_to_live,
        }
    }

    /// Whether a verdict from the cache is good by this layer's own time to live. A layer with a longer one may
    /// have put it there.
    pub(super) fn is_fresh(&self, cached: &CachedVerdict, now: SystemTime) -> bool {
        // Where the wall clock was put back, only the cache's own time counts.
        let age = now.duration_since(cached.checked_at()).unwrap_or_default();
        age < self.time_to_live(cached.verdict())
    }
}
