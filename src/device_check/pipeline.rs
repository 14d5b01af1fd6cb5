//! The slow path: everything that is asked about a token that this process does not remember.

use std::{mem, sync::Arc, time::Duration};

use crate::{
    apple::DeviceToken,
    device_check::cache::{CacheError, CachedVerdict, Lease, Memo, VerdictKey},
    device_check::verifier::VerifyError,
    gate::credential::TokenDigest,
    gate::decision::{Evidence, Verdict, VerifiedDevice},
    gate::rejection::Rejection,
    gate::routing::{Environment, Route},
    layer::{Gate, Memory},
    replay::owner::Owner,
    replay::{Claim, ErasedReplayGuard, GuardError, ReplayKey, Reservation, Retry},
    runtime::{Instant, Moment, SystemTime, within},
};

/// A well-formed token that nothing is known about yet.
pub(crate) struct Inquiry {
    pub(crate) token: DeviceToken,
    /// Of the token's key in the first environment of the route.
    pub(crate) memo: Memo,
    pub(crate) route: Route,
    pub(crate) started: Instant,
    /// By what a repetition of the request is known, where one is let through.
    pub(crate) retry: Option<Retry>,
}

/// What was decided about a request, and on what grounds.
pub(crate) struct Decision {
    pub(crate) outcome: Result<VerifiedDevice, Rejection>,
    /// The environment that answered last, or would have been asked first.
    pub(crate) environment: Environment,
    pub(crate) digest: Option<TokenDigest>,
    pub(crate) error: Option<VerifyError>,
    pub(crate) started: Instant,
}

/// A cache that takes longer has failed: asking Apple would have taken less. So has a guard, which then withholds
/// the token.
const CACHE_DEADLINE: Duration = Duration::from_secs(1);

/// What a cache or a guard answers within the deadline, or the error that `error` makes of a text.
async fn in_time<T, E>(
    answer: impl Future<Output = Result<T, E>>,
    error: impl FnOnce(&'static str) -> E,
) -> Result<T, E> {
    within(CACHE_DEADLINE, answer).await.unwrap_or_else(|_elapsed| Err(error("no answer within a second")))
}

/// An answer to one question: is this token genuine in this environment?
#[derive(Clone)]
pub(crate) struct Answer {
    verdict: Verdict,
    evidence: Evidence,
    checked_at: SystemTime,
}

impl From<CachedVerdict> for Answer {
    fn from(cached: CachedVerdict) -> Self {
        Self { verdict: cached.verdict(), evidence: Evidence::Cache, checked_at: cached.checked_at() }
    }
}

/// The changing parts of a [`Decision`]: outcome, environment, error.
type Outcome = (Result<VerifiedDevice, Rejection>, Environment, Option<VerifyError>);

/// Decides about a token that this process does not remember.
pub(crate) async fn resolve(gate: Arc<Gate>, mut inquiry: Inquiry) -> Decision {
    // The cache may have asked for it already.
    let digest = *inquiry.memo.digest.get_or_init(|| inquiry.token.digest());
    let (outcome, environment, error) = match &gate.config.memory {
        // Boxed, so that it does not make all other checks larger.
        Memory::SingleUse(guard) => Box::pin(spend(&gate, guard, &mut inquiry, digest)).await,
        Memory::Cache(_) | Memory::Nothing => check(&gate, &mut inquiry, digest).await,
    };
    Decision { outcome, environment, digest: Some(digest), error, started: inquiry.started }
}

/// Asks one environment after the other until one accepts the token. Only a refusal leads to the next one.
async fn check(gate: &Arc<Gate>, inquiry: &mut Inquiry, digest: TokenDigest) -> Outcome {
    let Inquiry { token, memo, route, .. } = inquiry;
    let mut last = Environment::Production;
    for &environment in route.environments() {
        last = environment;
        match answer(gate, token, digest, environment, mem::take(memo)).await {
            Ok(Answer { verdict: Verdict::Refused, .. }) => {}
            Ok(Answer { verdict: Verdict::Genuine, evidence, checked_at }) => {
                let device = VerifiedDevice::new(token.clone(), digest, environment, evidence, checked_at);
                return (Ok(device), environment, None);
            }
            Err(error) => return (Err(Rejection::from(&error)), environment, Some(error)),
        }
    }
    (Err(Rejection::RefusedToken), last, None)
}

/// The same for a token that admits one request only.
async fn spend(
    gate: &Arc<Gate>,
    guard: &Arc<dyn ErasedReplayGuard>,
    inquiry: &mut Inquiry,
    digest: TokenDigest,
) -> Outcome {
    let claim = &Claim::new(Owner::random()).with(inquiry.retry.take());
    let first = inquiry.route.environments().first().copied().unwrap_or(Environment::Production);
    let key = ReplayKey::new(gate.config.verifier.scope(), digest);
    let unavailable = |error, environment| {
        let error = VerifyError::unavailable(error);
        (Err(Rejection::from(&error)), environment, Some(error))
    };
    // A reservation that is made while this future is dropped is given back, too.
    let mut held = Held { guard, key, claim, armed: true };
    match in_time(guard.reserve(&key, claim), GuardError::new).await {
        Ok(Reservation::Reserved) => {}
        Ok(Reservation::Reused) => {
            held.armed = false;
            return (Err(Rejection::ReusedToken), first, None);
        }
        Err(error) => return unavailable(error, first),
    }
    let (outcome, environment, error) = check(gate, inquiry, digest).await;
    let outcome = match outcome {
        Ok(device) => match in_time(guard.confirm(&key, claim), GuardError::new).await {
            Ok(Reservation::Reserved) => Ok(device),
            Ok(Reservation::Reused) => Err(Rejection::ReusedToken),
            // Whether the token is spent is not known, so it is not given back.
            Err(error) => {
                held.armed = false;
                return unavailable(error, environment);
            }
        },
        // Asking again about a token that Apple refused is worth nothing to anybody: let it lapse.
        Err(Rejection::RefusedToken) => Err(Rejection::RefusedToken),
        Err(rejection) => {
            // An error means that the reservation lapses by itself.
            let _ = in_time(guard.release(&key, claim), GuardError::new).await;
            Err(rejection)
        }
    };
    held.armed = false;
    (outcome, environment, error)
}

/// A reservation, given back on drop while it is armed.
struct Held<'a> {
    guard: &'a Arc<dyn ErasedReplayGuard>,
    key: ReplayKey<'a>,
    claim: &'a Claim,
    armed: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.guard.abandon(&self.key, self.claim);
        }
    }
}

/// The answer that all requests with this token wait for together.
async fn answer(
    gate: &Arc<Gate>,
    token: &DeviceToken,
    digest: TokenDigest,
    environment: Environment,
    memo: Memo,
) -> Result<Answer, VerifyError> {
    let flight = {
        let ask = ask(Arc::clone(gate), token.clone(), digest, environment, memo);
        gate.flights.run((environment, digest), ask)
    };
    match flight.await {
        Ok(answer) => answer,
        Err(_panicked) => Err(VerifyError::unavailable("the check panicked")),
    }
}

/// Asks the cache, then the verifier, and remembers its verdict.
async fn ask(
    gate: Arc<Gate>,
    token: DeviceToken,
    digest: TokenDigest,
    environment: Environment,
    memo: Memo,
) -> Result<Answer, VerifyError> {
    let config = &gate.config;
    let scope = config.verifier.scope();
    let key = VerdictKey::new(scope, environment, &token).with_memo(memo.with_digest(digest));
    let Memory::Cache(cache) = &config.memory else {
        let checked_at = SystemTime::now();
        let verdict = config.verifier.verify(&token, environment).await?;
        return Ok(Answer { verdict, evidence: Evidence::Apple, checked_at });
    };
    // The process's own memory too: another request may have asked and finished since this one looked there.
    match in_time(cache.get(&key), CacheError::new).await {
        Ok(Some(cached)) if config.is_fresh(&cached) => return Ok(cached.into()),
        Ok(_) => {}
        Err(error) => config.observer.cache_error(&error),
    }
    let lease = cache.lease(&key).await;
    if let Lease::Known(cached) = lease
        && config.is_fresh(&cached)
    {
        return Ok(cached.into());
    }
    let started = Moment::now();
    let verdict = config.verifier.verify(&token, environment).await;
    if let Ok(verdict) = verdict {
        // Apple's answer describes the token as it was when it was sent.
        let left = config.time_to_live(verdict).saturating_sub(started.monotonic.elapsed());
        if left > Duration::ZERO {
            let cached = CachedVerdict::new(verdict, digest, started.wall, left);
            if let Err(error) = in_time(cache.put(&key, cached), CacheError::new).await {
                config.observer.cache_error(&error);
            }
        }
    }
    if let Lease::Granted(owner) = lease {
        // After the verdict is there, so that whoever gets the lease next finds it.
        let _ = within(CACHE_DEADLINE, cache.release(&key, owner)).await;
    }
    Ok(Answer { verdict: verdict?, evidence: Evidence::Apple, checked_at: started.wall })
}
