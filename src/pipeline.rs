//! The slow path: everything that is asked about a token that this process does not remember.

use std::{sync::Arc, time::Duration};

use crate::{
    cache::{CacheError, CachedVerdict, VerdictKey},
    clock::{Instant, Moment, SystemTime, within},
    layer::Gate,
    rejection::Rejection,
    routing::{Environment, Route},
    token::{DeviceToken, TokenDigest},
    verdict::{Evidence, Verdict, VerifiedDevice},
    verifier::VerifyError,
};

/// A well-formed token that nothing is known about yet.
pub(crate) struct Inquiry {
    pub(crate) token: DeviceToken,
    pub(crate) route: Route,
    pub(crate) started: Instant,
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

/// A cache that takes longer has failed: asking Apple would have taken less.
const CACHE_DEADLINE: Duration = Duration::from_secs(1);

fn too_late() -> CacheError {
    CacheError::new("no answer within a second")
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

/// Asks one environment after the other until one accepts the token. Only a refusal leads to the next one.
pub(crate) async fn resolve(gate: Arc<Gate>, inquiry: Inquiry) -> Decision {
    let Inquiry { token, route, started } = inquiry;
    let digest = token.digest();
    let decision = |outcome, environment, error| {
        let digest = Some(digest);
        Decision { outcome, environment, digest, error, started }
    };
    let mut last = Environment::Production;
    for &environment in route.environments() {
        last = environment;
        match answer(&gate, &token, digest, environment).await {
            Ok(Answer { verdict: Verdict::Refused, .. }) => {}
            Ok(Answer { verdict: Verdict::Genuine, evidence, checked_at }) => {
                let device = VerifiedDevice::new(token, digest, environment, evidence, checked_at);
                return decision(Ok(device), environment, None);
            }
            Err(error) => return decision(Err(Rejection::from(&error)), environment, Some(error)),
        }
    }
    decision(Err(Rejection::RefusedToken), last, None)
}

/// The cache's answer, or the one that all requests with this token wait for together.
async fn answer(
    gate: &Arc<Gate>,
    token: &DeviceToken,
    digest: TokenDigest,
    environment: Environment,
) -> Result<Answer, VerifyError> {
    if let Some(cache) = &gate.config.cache {
        let key = VerdictKey::new(gate.config.verifier.scope(), environment, token);
        let found = within(CACHE_DEADLINE, cache.get(&key)).await;
        match found.unwrap_or_else(|_elapsed| Err(too_late())) {
            Ok(Some(cached)) if gate.config.is_fresh(&cached) => return Ok(cached.into()),
            Ok(_) => {}
            Err(error) => gate.config.observer.cache_error(&error),
        }
    }
    let ask = ask(Arc::clone(gate), token.clone(), environment);
    match gate.flights.run((environment, digest), ask).await {
        Ok(answer) => answer,
        Err(_panicked) => Err(VerifyError::unavailable("the check panicked")),
    }
}

/// Asks the verifier, and remembers its verdict.
async fn ask(gate: Arc<Gate>, token: DeviceToken, environment: Environment) -> Result<Answer, VerifyError> {
    let config = &gate.config;
    let key = VerdictKey::new(config.verifier.scope(), environment, &token);
    // Another request may have asked and finished since this one last looked.
    if let Some(cached) = config.cache.as_ref().and_then(|cache| cache.peek(&key))
        && config.is_fresh(&cached)
    {
        return Ok(cached.into());
    }
    let started = Moment::now();
    let verdict = config.verifier.verify(&token, environment).await?;
    if let Some(cache) = &config.cache {
        // Apple's answer describes the token as it was when it was sent.
        let left = config.time_to_live(verdict).saturating_sub(started.monotonic.elapsed());
        if left > Duration::ZERO {
            let cached = CachedVerdict::new(verdict, key.digest(), started.wall, left);
            let kept = within(CACHE_DEADLINE, cache.put(&key, cached)).await;
            if let Err(error) = kept.unwrap_or_else(|_elapsed| Err(too_late())) {
                config.observer.cache_error(&error);
            }
        }
    }
    Ok(Answer { verdict, evidence: Evidence::Apple, checked_at: started.wall })
}
