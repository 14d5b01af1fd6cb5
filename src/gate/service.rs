//! The service: what is decided at once, inside `call`.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, Request, Response, header::Entry, request};
use tower_service::Service;

use crate::{
    apple::DeviceToken,
    device_check::cache::{CachedVerdict, Memo, VerdictKey},
    device_check::pipeline::{Decision, Inquiry, resolve},
    gate::body::ResponseBody,
    gate::credential::{Candidate, TokenDigest},
    gate::decision::{DeviceOutcome, Evidence, Verdict, VerifiedDevice},
    gate::future::{Admission, Decide, ResponseFuture},
    gate::observer::Event,
    gate::rejection::{MalformedToken, Rejection},
    gate::routing::{Environment, Route, is_preflight},
    layer::{Enforcement, Gate, Memory},
    replay::Retry,
    runtime::{Instant, SystemTime},
};

/// Lets only requests from genuine devices through to `S`.
///
/// See the [crate's docs](crate) for an example. Errors are those of `S`, untouched.
#[derive(Clone)]
#[must_use]
pub struct DeviceCheck<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S> DeviceCheck<S> {
    pub(crate) const fn new(inner: S, gate: Arc<Gate>) -> Self {
        Self { inner, gate }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, to be changed.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service alone.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: fmt::Debug> fmt::Debug for DeviceCheck<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceCheck").field("inner", &self.inner).field("gate", &self.gate).finish()
    }
}

impl<S, B, ResBody> Service<Request<B>> for DeviceCheck<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ResponseFuture::start(&mut self.inner, &self.gate, request)
    }
}

/// What can be said about a credential without waiting.
enum Judgement {
    Known(Result<VerifiedDevice, Rejection>, TokenDigest),
    Unknown(DeviceToken, Memo),
}

/// What a request has to show.
enum Credential<'a> {
    Device(Candidate),
    /// The debug token of this name.
    Debug(&'a Arc<str>),
}

impl Gate {
    /// Takes the credentials out of the request and judges them by what this process knows.
    fn judge(
        &self,
        head: &mut request::Parts,
        route: Route,
        environment: Environment,
    ) -> Result<Judgement, Rejection> {
        let candidate = match self.take_credential(head)? {
            Some(Credential::Device(candidate)) => candidate,
            Some(Credential::Debug(name)) => {
                let now = SystemTime::now();
                let device = VerifiedDevice::from_debug_token(Arc::clone(name), environment, now);
                let digest = device.digest();
                return Ok(Judgement::Known(Ok(device), digest));
            }
            None => return Err(Rejection::MissingToken),
        };
        let (cached, environment) = match self.peek(candidate.unpadded()?, route) {
            Ok(found) => found,
            Err(memo) => return Ok(Judgement::Unknown(candidate.try_into()?, memo)),
        };
        let outcome = match cached.verdict() {
            Verdict::Refused => Err(Rejection::RefusedToken),
            // The verdict is about these very bytes, which were found canonical when it was put.
            Verdict::Genuine => Ok(VerifiedDevice::new(
                DeviceToken::known_canonical(candidate),
                cached.digest(),
                environment,
                Evidence::Cache,
                cached.checked_at(),
            )),
        };
        Ok(Judgement::Known(outcome, cached.digest()))
    }

    fn take_credential(&self, head: &mut request::Parts) -> Result<Option<Credential<'_>>, MalformedToken> {
        let original = self.config.forward_credentials.then(|| head.headers.clone());
        let debug_tokens = self.config.debug_tokens.as_ref().map(|tokens| (tokens, SystemTime::now()));
        // Every source is asked, so that no credential stays behind.
        let mut token = Ok(None);
        for source in &self.config.token_sources {
            token = match (token, source.take(head)) {
                (Err(reason), _) | (_, Err(reason)) => Err(reason),
                (found, Ok(None)) | (Ok(None), found) => found,
                (Ok(Some(first)), Ok(Some(other))) if first.as_bytes() == other.as_bytes() => Ok(Some(first)),
                (Ok(Some(_)), Ok(Some(_))) => Err(MalformedToken::Disagreement),
            };
        }
        let debug_token = debug_tokens.and_then(|(tokens, now)| tokens.take(&mut head.headers, now));
        if let Some(original) = original {
            put_back(original, &mut head.headers);
        }
        Ok(match token? {
            // A device token is never set aside for a debug token that came with it.
            Some(candidate) => Some(
                debug_tokens
                    .and_then(|(tokens, now)| tokens.find(candidate.as_bytes(), now))
                    .map_or(Credential::Device(candidate), Credential::Debug),
            ),
            None => debug_token.map(Credential::Debug),
        })
    }

    /// By what a repetition of the request is known, where one is let through.
    fn retry(&self, head: &request::Parts) -> Option<Retry> {
        let window = self.config.retry_window;
        if window.is_zero() || !matches!(self.config.memory, Memory::SingleUse(_)) {
            return None;
        }
        let mut values = head.headers.get_all(&self.config.idempotency_header).iter();
        match (values.next(), values.next()) {
            (Some(key), None) if !key.is_empty() => {
                Some(Retry { key: TokenDigest::of(key.as_bytes()), window })
            }
            _ => None,
        }
    }

    /// What this process remembers of a token: that one environment accepted it, or that all refused it.
    /// Otherwise, the memo of its key in the first environment.
    fn peek(&self, text: &[u8], route: Route) -> Result<(CachedVerdict, Environment), Memo> {
        let Memory::Cache(cache) = &self.config.memory else { return Err(Memo::default()) };
        let scope = self.config.verifier.scope();
        let mut first = None;
        let mut refused = None;
        let mut unknown = false;
        for &environment in route.environments() {
            let key = VerdictKey::of_text(scope, environment, text);
            let found = cache.peek(&key);
            match found.filter(|cached| self.config.is_fresh(cached)) {
                Some(cached) if cached.verdict() == Verdict::Genuine => return Ok((cached, environment)),
                Some(cached) => refused = Some((cached, environment)),
                None => unknown = true,
            }
            first.get_or_insert_with(|| key.into_memo());
        }
        refused.filter(|_| !unknown).ok_or_else(|| first.unwrap_or_default())
    }
}

impl Decide for Gate {
    type Inquiry = Inquiry;
    type Decision = Decision;

    fn admit(&self, head: &mut request::Parts) -> Admission<Inquiry> {
        // Whoever put these here, it was not this gate.
        head.extensions.remove::<VerifiedDevice>();
        head.extensions.remove::<DeviceOutcome>();

        let route = if self.config.exempt_preflights && is_preflight(head) {
            Route::Exempt
        } else {
            self.config.routing.route(head)
        };
        let Some(&environment) = route.environments().first() else {
            self.config.observer.decision(&Event::EXEMPT);
            return Admission::Admitted;
        };
        let started = Instant::now();
        let (outcome, digest) = match self.judge(head, route, environment) {
            Ok(Judgement::Unknown(token, memo)) => {
                return Admission::Unknown(Inquiry { token, memo, route, started, retry: self.retry(head) });
            }
            Ok(Judgement::Known(outcome, digest)) => (outcome, Some(digest)),
            Err(rejection) => (Err(rejection), None),
        };
        let environment = outcome.as_ref().map_or(environment, VerifiedDevice::environment);
        let decision = Decision { outcome, environment, digest, error: None, started };
        match self.conclude(decision, head) {
            None => Admission::Admitted,
            Some(response) => Admission::Rejected(response),
        }
    }

    fn resolve(self: Arc<Self>, inquiry: Inquiry) -> BoxFuture<'static, Decision> {
        Box::pin(resolve(self, inquiry))
    }

    /// Reports a decision and carries it out on the request.
    fn conclude(&self, decision: Decision, head: &mut request::Parts) -> Option<Response<Bytes>> {
        self.config.observer.decision(&Event::new(&decision, self.config.enforcement));
        match (decision.outcome, self.config.enforcement) {
            (Ok(device), Enforcement::Enforce) => {
                head.extensions.insert(device);
                None
            }
            (Ok(device), Enforcement::Monitor) => {
                head.extensions.insert(DeviceOutcome::Verified(device.clone()));
                head.extensions.insert(device);
                None
            }
            (Err(rejection), Enforcement::Monitor) => {
                head.extensions.insert(DeviceOutcome::Rejected(rejection));
                None
            }
            (Err(rejection), Enforcement::Enforce) => {
                let mut response = self.config.rejection_response.response(&rejection, head);
                response.extensions_mut().insert(rejection);
                Some(response)
            }
        }
    }
}

/// Undoes the removal of credentials, and marks as sensitive every header that had been removed or changed.
pub(crate) fn put_back(mut original: HeaderMap, headers: &mut HeaderMap) {
    let is_changed = |name: &&HeaderName| original.get_all(*name) != headers.get_all(*name);
    let changed: Vec<_> = original.keys().filter(is_changed).cloned().collect();
    for name in changed {
        if let Entry::Occupied(mut values) = original.entry(name) {
            values.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
    *headers = original;
}
