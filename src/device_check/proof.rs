//! The proof: it takes a device token or a debug token out of a request, and judges it from memory or by asking Apple.

use std::{fmt, sync::Arc};

use http::request;

#[cfg(feature = "_apple")]
use crate::apple::AppleClient;
use crate::apple::token::{DeviceToken, Verdict, unpadded};
use crate::device_check::ask::{Checks, UnknownToken};
use crate::device_check::cache::CachedVerdict;
use crate::device_check::debug_token::DebugTokens;
use crate::device_check::evidence::SCHEME;
#[cfg(feature = "_apple")]
use crate::device_check::mark_writer::MarkWriter;
use crate::device_check::settings::{Reuse, Settings};
use crate::device_check::team::Team;
use crate::gate::credential::{Candidate, TokenDigest};
use crate::gate::decision::Rejected;
use crate::gate::evidence::Evidence;
use crate::gate::proof::{Facts, Proof, Step};
use crate::gate::rejection::{MalformedToken, Rejection};
use crate::gate::routing::Environment;
use crate::replay::Retry;

/// The check with device tokens.
#[derive(Clone)]
pub(crate) struct DeviceTokenProof {
    checks: Arc<Checks>,
}

/// The credential of one request.
enum Shown<'a> {
    Nothing,
    DeviceToken(Candidate),
    /// The debug token of this name.
    DebugToken(&'a Arc<str>),
    UnknownDebugToken,
}

impl DeviceTokenProof {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { checks: Arc::new(Checks::new(settings)) }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.checks.settings
    }

    #[cfg(feature = "_apple")]
    pub(crate) fn mark_writer(&self, client: AppleClient) -> MarkWriter {
        MarkWriter::new(Arc::clone(&self.checks), client)
    }

    fn take(&self, head: &mut request::Parts, facts: &Facts) -> Result<Shown<'_>, Rejection> {
        let settings = self.settings();
        // Every token source runs, so that no credential stays in the request.
        let mut token = Ok(None);
        for source in &settings.token_sources {
            token = agreed(token, source.take(head));
        }
        let debug_tokens = settings.debug_tokens.as_deref();
        let debug_token = debug_tokens.and_then(|tokens| tokens.take(&mut head.headers, facts.now()));
        if let Some(Some(name)) = debug_token
            && debug_tokens.is_some_and(DebugTokens::is_first)
        {
            return Ok(Shown::DebugToken(name));
        }
        match (token?, debug_token) {
            // A device token takes precedence over a debug token in the same request.
            (Some(candidate), _) => {
                let name = debug_tokens.and_then(|tokens| tokens.find(candidate.as_bytes(), facts.now()));
                Ok(name.map_or(Shown::DeviceToken(candidate), Shown::DebugToken))
            }
            (None, Some(Some(name))) => Ok(Shown::DebugToken(name)),
            (None, Some(None)) => Ok(Shown::UnknownDebugToken),
            (None, None) => Ok(Shown::Nothing),
        }
    }

    /// Looks up a token in this process's memory: one team accepted it in one environment, or all refused it.
    fn peek(&self, text: &[u8], facts: &Facts) -> Option<(CachedVerdict, Environment, &Team)> {
        let settings = self.settings();
        let cache = settings.cache();
        let mut refused = None;
        let mut unknown = false;
        for team in &settings.teams {
            for &environment in facts.environments() {
                let found = cache.peek(&settings.key(team, environment, text));
                match found.filter(|cached| settings.is_fresh(cached, facts.now())) {
                    Some(cached) if cached.verdict() == Verdict::Genuine => {
                        return Some((cached, environment, team));
                    }
                    Some(cached) => refused = Some((cached, environment, team)),
                    None => unknown = true,
                }
            }
        }
        refused.filter(|_| !unknown)
    }

    fn judge_token(
        &self,
        candidate: Candidate,
        head: &request::Parts,
        facts: &Facts,
    ) -> Result<Step, MalformedToken> {
        let Some((cached, environment, team)) = self.peek(unpadded(&candidate)?, facts) else {
            let token = DeviceToken::try_from(candidate)?;
            if let Some(limiter) = &self.settings().limiter
                && let Err(wait) = limiter.check(head)
            {
                // Without the digest, which is nearly all that the answer to a flood would cost.
                return Ok(Step::rejected(Rejection::limit_exceeded(wait)));
            }
            let unknown = UnknownToken { token, facts: facts.clone(), retry: self.retry(head) };
            return Ok(Step::ask(Arc::clone(&self.checks).decide(unknown)));
        };
        Ok(match cached.verdict() {
            Verdict::Refused => {
                Step::rejected(Rejected::from(Rejection::RefusedToken).with_digest(cached.digest()))
            }
            Verdict::Genuine => {
                // `MemoryCache` answers for exactly these bytes, and stores verdicts for canonical tokens only. Other
                // caches may answer for another spelling.
                let candidate = if cached.is_for_exact_text() {
                    candidate
                } else {
                    DeviceToken::try_from(candidate)?.into_text()
                };
                let device = facts.verified(team.evidence(Evidence::CACHE), cached.digest());
                let device = device.with_environment(environment).with_verified_at(cached.checked_at());
                let device = device.with_text(&candidate);
                match self.settings().judge_marks(device, cached.bits(), facts.now()) {
                    Ok(device) => Step::verified(device),
                    Err(rejected) => Step::rejected(rejected),
                }
            }
        })
    }

    /// Identifies a retry of the request, if the layer allows one.
    fn retry(&self, head: &request::Parts) -> Option<Retry> {
        let settings = self.settings();
        let window = settings.retry_window;
        if window.is_zero() || !matches!(settings.reuse, Reuse::Once(_)) {
            return None;
        }
        let mut values = head.headers.get_all(&settings.idempotency_header).iter();
        match (values.next(), values.next()) {
            (Some(key), None) if !key.is_empty() => {
                Some(Retry { key: TokenDigest::of(key.as_bytes()), window })
            }
            _ => None,
        }
    }
}

/// Two sources must find the same token.
fn agreed(
    found: Result<Option<Candidate>, MalformedToken>,
    next: Result<Option<Candidate>, MalformedToken>,
) -> Result<Option<Candidate>, MalformedToken> {
    match (found?, next?) {
        (Some(found), Some(next)) if found.as_bytes() != next.as_bytes() => Err(MalformedToken::Disagreement),
        (Some(token), _) | (None, Some(token)) => Ok(Some(token)),
        (None, None) => Ok(None),
    }
}

impl Proof for DeviceTokenProof {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn judge(&self, head: &mut request::Parts, facts: &Facts) -> Step {
        match self.take(head, facts) {
            Ok(Shown::Nothing) => Step::absent(),
            Ok(Shown::DeviceToken(candidate)) => self
                .judge_token(candidate, head, facts)
                .unwrap_or_else(|reason| Step::rejected(Rejection::from(reason))),
            Ok(Shown::DebugToken(name)) => {
                let evidence = Evidence::debug_token(Arc::clone(name));
                // The digest of the secret would let readers of logs guess weak secrets offline.
                let digest = TokenDigest::of(evidence.to_string().as_bytes());
                Step::verified(facts.verified(evidence, digest))
            }
            // The answer does not reveal that the layer has debug tokens.
            Ok(Shown::UnknownDebugToken) => {
                let rejected = Rejected::from(Rejection::MissingToken);
                Step::rejected(rejected.with_reason("unknown debug token, or one that has expired"))
            }
            Err(rejection) => Step::rejected(rejection),
        }
    }

    fn strip(&self, head: &mut request::Parts) {
        for source in &self.settings().token_sources {
            // Another proof decided, so this credential does not matter, well-formed or not.
            let _ = source.take(head);
        }
        if let Some(tokens) = &self.settings().debug_tokens {
            tokens.strip(&mut head.headers);
        }
    }
}

impl fmt::Debug for DeviceTokenProof {
    // Plug-ins may be closures and need not implement `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.settings();
        let scopes: Vec<_> = settings.teams.iter().map(Team::scope).collect();
        f.debug_struct("DeviceTokenProof")
            .field("scopes", &scopes)
            .field("token_sources", &settings.token_sources.len())
            .field("debug_tokens", &settings.debug_tokens)
            .field("single_use", &matches!(settings.reuse, Reuse::Once(_)))
            .field("limited", &settings.limiter.is_some())
            .field("genuine_time_to_live", &settings.genuine_time_to_live)
            .field("refused_time_to_live", &settings.refused_time_to_live)
            .field("marks", &settings.has_marks())
            .field("checks_in_flight", &self.checks.in_flight())
            .finish_non_exhaustive()
    }
}
