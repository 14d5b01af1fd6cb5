//! Asking about a device token: the shared cache, then Apple, once for all requests that wait for the answer.

use std::{sync::Arc, time::Duration};

use tracing::Instrument;

use crate::apple::token::{DeviceToken, Verdict};
use crate::device_check::cache::{CacheError, CachedVerdict, MayAsk};
use crate::device_check::settings::{Reuse, Settings};
use crate::device_check::{single_flight::SingleFlight, verifier::TokenQuestion};
use crate::gate::decision::{Rejected, VerifiedDevice};
use crate::gate::evidence::Evidence;
use crate::gate::proof::{Facts, Step};
use crate::gate::{
    bits::Bits, credential::TokenDigest, error::VerifyError, rejection::Rejection, routing::Environment,
};
use crate::replay::{Claim, ReplayKey, Retry, admit_once, owner::Owner};
use crate::runtime::{Attendance, Instant, SystemTime, Timestamp, wall_clock, within};

/// The checks of one layer: its settings, and the questions in flight.
pub(super) struct Checks {
    pub(super) settings: Settings,
    flights: SingleFlight<(usize, Environment, TokenDigest), Result<Finding, VerifyError>>,
}

/// A well-formed token that this process does not remember.
pub(super) struct UnknownToken {
    pub(super) token: DeviceToken,
    pub(super) facts: Facts,
    /// Identifies a retry of the request, if the layer allows one.
    pub(super) retry: Option<Retry>,
}

/// A verdict about a token in one environment, and its evidence.
#[derive(Clone)]
struct Finding {
    verdict: Verdict,
    bits: Option<Bits>,
    evidence: Evidence,
    checked_at: SystemTime,
}

impl From<CachedVerdict> for Finding {
    fn from(cached: CachedVerdict) -> Self {
        let (verdict, bits) = (cached.verdict(), cached.bits());
        Self { verdict, bits, evidence: Evidence::CACHE, checked_at: cached.checked_at() }
    }
}

type Decision = Result<VerifiedDevice, Rejected>;

impl Checks {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, flights: SingleFlight::new() }
    }

    /// The questions that requests wait for.
    pub(super) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Decides about a token that this process does not remember.
    #[allow(
        clippy::manual_async_fn,
        reason = "an `async fn` would hold its arguments twice while the request waits"
    )]
    pub(super) fn decide(self: Arc<Self>, unknown: UnknownToken) -> impl Future<Output = Step> {
        async move {
            // Here, so that a shadow check computes it beside its request.
            let digest = unknown.token.digest();
            let mut place = 0;
            let decision = loop {
                let decision = match &self.settings.reuse {
                    // This future is boxed, so that it does not make the futures of all other checks larger.
                    Reuse::Once(guard) => {
                        let claim = Claim::new(Owner::random()).with(unknown.retry);
                        let key = ReplayKey::new(self.settings.teams[place].scope(), digest);
                        let is_last = place + 1 == self.settings.teams.len();
                        let check = self.check(&unknown, digest, place);
                        Box::pin(admit_once(guard, key, &claim, is_last, check)).await
                    }
                    Reuse::Cached(_) => self.check(&unknown, digest, place).await,
                };
                place += 1;
                // Only a refusal leads to the next team.
                if !is_refusal(&decision) || place == self.settings.teams.len() {
                    break decision;
                }
            };
            match decision {
                Ok(device) => Step::verified(device),
                Err(rejected) => Step::rejected(rejected.with_digest(digest)),
            }
        }
    }

    /// Asks one environment of a team after the other until one accepts the token. Only a refusal leads to the next one.
    async fn check(self: &Arc<Self>, unknown: &UnknownToken, digest: TokenDigest, place: usize) -> Decision {
        let UnknownToken { token, facts, .. } = unknown;
        let mut last = facts.environment();
        for &environment in facts.environments() {
            last = environment;
            match self.find(token, digest, environment, place).await {
                Ok(Finding { verdict: Verdict::Refused, .. }) => {}
                Ok(Finding { verdict: Verdict::Genuine, bits, evidence, checked_at }) => {
                    let evidence = self.settings.teams[place].evidence(evidence);
                    let device = VerifiedDevice::new(digest, environment, evidence, checked_at);
                    return self.settings.judge_marks(device.with_text(token.text()), bits, wall_clock());
                }
                Err(error) if error.is_known_outage() => {
                    // Boxed, so that a request that waits for Apple is small.
                    let stale = Box::pin(self.find_stale(token, digest, facts)).await;
                    return stale.ok_or_else(|| Rejected::from(error).with_environment(environment));
                }
                Err(error) => return Err(Rejected::from(error).with_environment(environment)),
            }
        }
        Err(Rejected::from(Rejection::RefusedToken).with_environment(last))
    }

    /// A genuine verdict whose time to live is over, but not for long: for as long as Apple is known to be down.
    async fn find_stale(
        &self,
        token: &DeviceToken,
        digest: TokenDigest,
        facts: &Facts,
    ) -> Option<VerifiedDevice> {
        let (settings, cache) = (&self.settings, self.settings.cache());
        if settings.stale_time.is_zero() {
            return None;
        }
        let mut left = cache.deadline();
        for team in &settings.teams {
            for &environment in facts.environments() {
                let key = settings.key(team, environment, token.as_bytes()).with_digest(digest);
                let found = spending(&mut left, cache.get(&key)).await.ok().flatten();
                let usable = |cached: &CachedVerdict| settings.is_usable_when_stale(cached, wall_clock());
                if let Some(cached) = found.filter(usable) {
                    let evidence = team.evidence(Evidence::STALE);
                    let device = VerifiedDevice::new(digest, environment, evidence, cached.checked_at());
                    // A device that its old marks shut out gets the error of the outage.
                    let device = device.with_text(token.text());
                    return settings.judge_marks(device, cached.bits(), wall_clock()).ok();
                }
            }
        }
        None
    }

    /// The finding for all requests that wait for this token together.
    async fn find(
        self: &Arc<Self>,
        token: &DeviceToken,
        digest: TokenDigest,
        environment: Environment,
        place: usize,
    ) -> Result<Finding, VerifyError> {
        let flight = {
            let attendance = Attendance::default();
            let ask = Arc::clone(self).ask(token.clone(), digest, environment, place, attendance.clone());
            // Every request that joins polls the check. The check belongs to the trace of the first one.
            self.flights.run((place, environment, digest), attendance, ask.in_current_span())
        };
        flight.await.unwrap_or_else(|_panicked| Err(VerifyError::unavailable("the check panicked")))
    }

    /// Asks the cache, then the verifier, and remembers its verdict.
    async fn ask(
        self: Arc<Self>,
        token: DeviceToken,
        digest: TokenDigest,
        environment: Environment,
        place: usize,
        attendance: Attendance,
    ) -> Result<Finding, VerifyError> {
        let began = Instant::now();
        let (settings, cache) = (&self.settings, self.settings.cache());
        let team = &settings.teams[place];
        let key = settings.key(team, environment, token.as_bytes()).with_digest(digest);
        // This is the total time that the request waits for the cache, before and after the call to Apple.
        let mut left = cache.deadline();
        // This looks in the process's own memory again: another request may have asked and finished since the first
        // look.
        match spending(&mut left, cache.get(&key)).await {
            Ok(Some(cached)) if settings.is_fresh(&cached, wall_clock()) => return Ok(cached.into()),
            Ok(_) => {}
            Err(error) => settings.observer.cache_error(&error),
        }
        let may_ask = cache.lease(&key).await;
        if let MayAsk::NoNeed(cached) = may_ask
            && settings.is_fresh(&cached, wall_clock())
        {
            return Ok(cached.into());
        }
        let started = Timestamp::now();
        let question = TokenQuestion::new(&token, environment, began, &attendance);
        let answer = team.ask(question, settings.has_marks()).await;
        if let Ok((verdict, bits)) = answer {
            // Apple's answer describes the token as of the start of the call.
            let time_to_live = settings.time_in_cache(verdict).saturating_sub(started.monotonic.elapsed());
            // A refusal takes the place of an older verdict, which must not count as a stale one.
            let replaces = verdict == Verdict::Refused && !settings.stale_time.is_zero();
            let time_to_live =
                time_to_live.max(if replaces { Duration::from_millis(1) } else { Duration::ZERO });
            let is_overtaken = bits.is_some() && started.monotonic.elapsed() > LONGEST_MARKED_CHECK;
            if time_to_live > Duration::ZERO && !is_overtaken {
                let cached = CachedVerdict::new(verdict, digest, started.wall, time_to_live).with_bits(bits);
                if let Err(error) = spending(&mut left, cache.put(&key, cached)).await {
                    settings.observer.cache_error(&error);
                }
            }
        }
        if let MayAsk::UnderLease(owner) = may_ask {
            // The lease is released after the verdict is stored, so that the next holder finds the verdict.
            let _ = within(left, cache.release(&key, owner)).await;
        }
        let (verdict, bits) = answer?;
        Ok(Finding { verdict, bits, evidence: Evidence::APPLE, checked_at: started.wall })
    }
}

/// A handler changes the bits of a device.
#[cfg(feature = "_apple")]
impl Checks {
    /// Makes the cache forget the marks of a device's token, and remember none of a check that is under way. `scope` is
    /// that of the client that changes them.
    pub(super) async fn forget_marks(
        &self,
        device: &VerifiedDevice,
        token: &DeviceToken,
        scope: &str,
    ) -> Result<(), CacheError> {
        let key_of = |place: usize| {
            self.settings.key(&self.settings.teams[place], device.environment(), token.as_bytes())
        };
        let Some(key) = self.place_of(device, scope).map(key_of) else {
            return Err(CacheError::new(
                "the mark writer is of a layer without the tenant or the team of the device",
            ));
        };
        let (key, cache) = (key.for_marks(true), self.settings.cache());
        let forgotten = within(FORGET_STEP, cache.forget(&key.with_digest(device.digest()), HOLD)).await;
        forgotten.unwrap_or_else(|_elapsed| Err(CacheError::new("no answer from the cache within 2 s")))
    }

    /// Lets later requests with the token of a device join no check that is under way.
    pub(super) fn leave_checks_under_way(&self, device: &VerifiedDevice, scope: &str) {
        if let Some(place) = self.place_of(device, scope) {
            self.flights.leave(&(place, device.environment(), device.digest()));
        }
    }

    /// The team of a device, which a layer without tenants or with one team may have admitted, too. `None` if it is none
    /// of this layer's.
    fn place_of(&self, device: &VerifiedDevice, scope: &str) -> Option<usize> {
        let teams = &self.settings.teams;
        let scope = device.evidence().team().unwrap_or(scope);
        let place = teams.iter().position(|team| team.verifier.scope() == scope);
        let is_only = teams.len() == 1 && device.evidence().team().is_none();
        let is_ours = device.tenant().is_none_or(|tenant| Some(tenant) == self.settings.tenant());
        place.or(is_only.then_some(0)).filter(|_| is_ours)
    }
}

/// The time for which the cache remembers no marks after they were forgotten: longer than an update of 10 seconds and a
/// check whose marks are remembered.
#[cfg(feature = "_apple")]
const HOLD: Duration = Duration::from_secs(20);

/// The longest check whose marks are remembered. A longer one may end after the hold.
const LONGEST_MARKED_CHECK: Duration = Duration::from_secs(8);

/// The longest wait of a handler for the cache.
#[cfg(feature = "_apple")]
const FORGET_STEP: Duration = Duration::from_secs(2);

fn is_refusal(decision: &Decision) -> bool {
    decision.as_ref().is_err_and(|rejected| rejected.rejection() == Rejection::RefusedToken)
}

/// The time limit of one step of a cache. A slower step counts as failed, because asking Apple would have been faster.
const CACHE_STEP: Duration = Duration::from_secs(1);

/// Waits for the cache's answer within the time that is left, and deducts the wait from it.
async fn spending<T>(
    left: &mut Duration,
    answer: impl Future<Output = Result<T, CacheError>>,
) -> Result<T, CacheError> {
    let started = Instant::now();
    let answer = within(CACHE_STEP.min(*left), answer).await;
    *left = left.saturating_sub(started.elapsed());
    answer.unwrap_or_else(|_elapsed| Err(CacheError::new("no answer within the cache's deadline")))
}
