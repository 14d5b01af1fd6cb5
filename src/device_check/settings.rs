//! The settings of the check with device tokens.

use std::{sync::Arc, time::Duration};

use http::HeaderName;

use crate::device_check::cache::{CachedVerdict, ErasedCache, NoCache, VerdictKey};
use crate::device_check::debug_token::DebugTokens;
use crate::device_check::limit::Limiter;
use crate::device_check::mark_policy::{MarkDecision, MarkPolicy};
use crate::device_check::token_source::{HeaderToken, TokenSource};
use crate::device_check::{team::Team, verifier::DeviceVerifier};
use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::{bits::Bits, error::VerifyError, marks::Marks, rejection::Rejection, routing::Environment};
use crate::gate::{observer::Observer, tenant::name::TenantName, tracing_observer::TracingObserver};
use crate::{apple::token::Verdict, replay::ErasedReplayGuard, runtime::SystemTime};

#[derive(Clone)]
pub(crate) struct Settings {
    /// At least one. The next one is asked only after all before have refused the token.
    pub(super) teams: Vec<Team>,
    tenant: Option<TenantName>,
    pub(crate) token_sources: Vec<Arc<dyn TokenSource>>,
    pub(crate) debug_tokens: Option<Arc<DebugTokens>>,
    pub(crate) reuse: Reuse,
    pub(crate) limiter: Option<Arc<dyn Limiter>>,
    pub(crate) retry_window: Duration,
    pub(crate) idempotency_header: HeaderName,
    pub(crate) genuine_time_to_live: Duration,
    pub(crate) refused_time_to_live: Duration,
    /// The time after its time to live for which a genuine verdict counts while Apple is known to be down.
    pub(crate) stale_time: Duration,
    pub(crate) mark_policy: Option<Arc<dyn MarkPolicy>>,
    /// The longest time to live of a genuine verdict with marks.
    pub(crate) mark_time_to_live: Duration,
    /// Receives the errors of the cache.
    pub(crate) observer: Arc<dyn Observer>,
}

/// Whether a token admits more than one request.
///
/// A cache and single use exclude each other: a cached verdict admits the next request with the same token, and single
/// use forbids exactly that.
#[derive(Clone)]
pub(crate) enum Reuse {
    Cached(Arc<dyn ErasedCache>),
    Once(Arc<dyn ErasedReplayGuard>),
}

impl Settings {
    pub(crate) fn new(verifier: impl DeviceVerifier) -> Self {
        Self {
            teams: vec![Team::only(verifier)],
            tenant: None,
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
            stale_time: Duration::ZERO,
            mark_policy: None,
            mark_time_to_live: Duration::from_secs(30),
            observer: Arc::new(TracingObserver),
        }
    }

    pub(crate) fn add_verifier(&mut self, verifier: impl DeviceVerifier) {
        let team = Team::only(verifier);
        self.teams.push(match &self.tenant {
            Some(tenant) => team.of_tenant(tenant),
            None => team,
        });
        self.teams = self.teams.drain(..).map(Team::named).collect();
    }

    #[cfg_attr(not(feature = "_apple"), allow(dead_code))]
    pub(super) const fn tenant(&self) -> Option<&TenantName> {
        self.tenant.as_ref()
    }

    pub(crate) fn set_tenant(&mut self, tenant: &TenantName) {
        self.tenant = Some(tenant.clone());
        self.teams = self.teams.drain(..).map(|team| team.of_tenant(tenant)).collect();
    }

    /// The cache of verdicts. Under single use, it is a cache that keeps nothing.
    pub(super) fn cache(&self) -> &dyn ErasedCache {
        match &self.reuse {
            Reuse::Cached(cache) => &**cache,
            Reuse::Once(_) => &NoCache,
        }
    }

    pub(super) const fn has_marks(&self) -> bool {
        self.mark_policy.is_some()
    }

    /// The key of the verdict about a text that may be a token.
    pub(super) fn key<'a>(&self, team: &'a Team, environment: Environment, text: &'a [u8]) -> VerdictKey<'a> {
        VerdictKey::of_text(team.scope(), environment, text).for_marks(self.has_marks())
    }

    /// Lets the policy decide about a genuine device with these bits.
    pub(super) fn judge_marks(
        &self,
        device: VerifiedDevice,
        bits: Option<Bits>,
        now: SystemTime,
    ) -> Result<VerifiedDevice, Rejected> {
        let Some(policy) = &self.mark_policy else { return Ok(device) };
        let bits = bits.ok_or_else(|| VerifyError::misconfigured("a genuine verdict without marks"))?;
        match policy.decide(bits, now) {
            MarkDecision::Admit => Ok(device.with_marks(Marks::new(bits, false))),
            MarkDecision::LeaveToHandler => Ok(device.with_marks(Marks::new(bits, true))),
            MarkDecision::Deny => Err(Rejected::from(Rejection::Denied)
                .with_remembered(!device.evidence().is_fresh())
                .with_environment(device.environment())
                .with_digest(device.digest())),
        }
    }

    pub(super) fn time_to_live(&self, verdict: Verdict) -> Duration {
        match verdict {
            Verdict::Genuine if self.has_marks() => self.genuine_time_to_live.min(self.mark_time_to_live),
            Verdict::Genuine => self.genuine_time_to_live,
            Verdict::Refused => self.refused_time_to_live,
        }
    }

    /// The time for which a cache must keep a verdict.
    pub(super) fn time_in_cache(&self, verdict: Verdict) -> Duration {
        match verdict {
            Verdict::Genuine => self.time_to_live(verdict).saturating_add(self.stale_time),
            Verdict::Refused => self.refused_time_to_live,
        }
    }

    /// Whether a verdict from the cache counts while Apple is known to be down.
    pub(super) fn is_usable_when_stale(&self, cached: &CachedVerdict, now: SystemTime) -> bool {
        cached.verdict() == Verdict::Genuine && age(cached, now) < self.time_in_cache(Verdict::Genuine)
    }

    /// Whether a verdict has bits, if this layer needs them. A cache may not keep keys with and without marks apart.
    fn has_needed_bits(&self, cached: &CachedVerdict) -> bool {
        !self.has_marks() || cached.verdict() == Verdict::Refused || cached.bits().is_some()
    }

    /// Whether a verdict from the cache is within this layer's own time to live. A layer with a longer time to live may
    /// have stored it.
    pub(super) fn is_fresh(&self, cached: &CachedVerdict, now: SystemTime) -> bool {
        age(cached, now) < self.time_to_live(cached.verdict()) && self.has_needed_bits(cached)
    }
}

/// The age of a verdict. If the wall clock was set back, it is zero, and only the cache's own time counts.
fn age(cached: &CachedVerdict, now: SystemTime) -> Duration {
    now.duration_since(cached.checked_at()).unwrap_or_default()
}
