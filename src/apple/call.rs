//! One call to Apple, with its attempts and deadlines.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use tracing::{Level, event};

use crate::BoxError;
use crate::apple::task::{self, Driven, Interest};
use crate::apple::transport::{self, ErasedTransport};
use crate::apple::wire::{self, Answer, Class, Operation};
use crate::apple::{
    credentials::Credentials, limit::CallLimit, provider_token::ProviderToken, refusals::Refusals,
    token::DeviceToken,
};
use crate::gate::error::{VerifyError, impl_error};
use crate::gate::{observer::TARGET, routing::Environment};
use crate::runtime::{Instant, SystemTime, Timestamp, lock, within};

/// The state that a call needs. All clones of an [`AppleClient`](crate::AppleClient) share one.
pub(super) struct Caller {
    /// All credentials that this client ever has belong to this team.
    pub(super) team_id: Box<str>,
    pub(super) credentials: Mutex<Credentials>,
    pub(super) production: Endpoints,
    pub(super) development: Endpoints,
    pub(super) transport: Arc<dyn ErasedTransport>,
    pub(super) attempt_timeout: Duration,
    pub(super) total_timeout: Duration,
    pub(super) limit: CallLimit,
    pub(super) retry: bool,
    pub(super) refusals: Refusals,
}

/// The URLs of one environment.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) validate: Uri,
    pub(super) query_bits: Uri,
    pub(super) update_bits: Uri,
}

impl Caller {
    /// Runs one call: waits for a slot, sends the request, retries once, and renews a refused provider token once. Once
    /// the request has been sent, the call continues without its caller and keeps its slot.
    ///
    /// Returns the body of Apple's answer, or `None` if Apple refused the device token.
    pub(super) async fn ask(
        self: &Arc<Self>,
        operation: Operation,
        token: &DeviceToken,
        environment: Environment,
    ) -> Result<Option<Bytes>, VerifyError> {
        let started = Instant::now();
        if let Some(answer) = self.refusals.hold(environment, started) {
            return answer.into_error().map_or(Ok(None), Err);
        }
        let (caller, token) = (Arc::clone(self), token.clone());
        let call = |interest, driven| async move {
            caller.run(operation, &token, environment, started, &interest, driven).await
        };
        let stopped = |_| VerifyError::unavailable("the runtime of the call to Apple was shut down");
        task::run(call).await.map_err(stopped)?
    }

    async fn run(
        &self,
        operation: Operation,
        token: &DeviceToken,
        environment: Environment,
        started: Instant,
        interest: &Interest,
        driven: Driven,
    ) -> Result<Option<Bytes>, VerifyError> {
        let no_answer =
            |reason, source| VerifyError::unavailable(NoAnswer { reason, environment, operation, source });
        let _slot = within(self.total_timeout, self.limit.acquire(driven))
            .await
            .map_err(|_elapsed| no_answer(TOO_LATE, None))?
            .map_err(|_full| {
                VerifyError::unavailable("too many calls to Apple wait for a slot already")
                    .with_retry_after(Some(Duration::from_secs(3)))
            })?;
        if !interest.commit() {
            return Err(no_answer("the caller has left", None));
        }
        let uri = self.endpoint(operation, environment);
        let mut renewed = None;
        let mut may_retry = self.retry;
        let mut may_renew = true;
        loop {
            let now = Timestamp::now();
            let provider_token = match renewed.take() {
                Some(provider_token) => provider_token,
                None => self.provider_token(now)?,
            };
            let mut request = operation.request(uri.clone(), &provider_token, token, now);
            request.extensions_mut().insert(interest.clone());
            let left = self.total_timeout.saturating_sub(now.monotonic.saturating_duration_since(started));
            let failure = match self.attempt(request, left).await {
                Ok(response) => match wire::read(operation, environment, &response, SystemTime::now) {
                    Ok(body) => {
                        self.refusals.accepted(environment);
                        return Ok(Some(body));
                    }
                    Err(answer) => Failure::Answer(answer),
                },
                Err(failure) => failure,
            };
            // After the total timeout, the failure of this attempt says more than "no answer in time".
            let may_go_on = started.elapsed() < self.total_timeout && interest.is_there();
            if may_retry && may_go_on && failure.is_worth_another_attempt() {
                may_retry = false;
                continue;
            }
            let answer = match failure {
                Failure::Answer(answer) => answer,
                Failure::NoAnswer { reason, source, .. } => return Err(no_answer(reason, source)),
            };
            if answer.class == Class::RefusedProviderToken {
                if std::mem::take(&mut may_renew) {
                    renewed = self.replace(&provider_token, &answer, Timestamp::now())?;
                    if renewed.is_some() && may_go_on {
                        continue;
                    }
                }
                self.refusals.refused(environment, &answer, Instant::now());
            } else if answer.class != Class::Unavailable {
                self.refusals.accepted(environment);
            }
            return answer.into_error().map_or(Ok(None), Err);
        }
    }

    /// Sends the request once and waits for the answer. `left` is the rest of the total timeout.
    async fn attempt(&self, request: Request<Bytes>, left: Duration) -> Result<Response<Bytes>, Failure> {
        let (reason, source) =
            match within(self.attempt_timeout.min(left), self.transport.send(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => ("the transport failed", Some(error)),
                Err(_elapsed) if left < self.attempt_timeout => (TOO_LATE, None),
                Err(_elapsed) => ("no answer within the attempt timeout", None),
            };
        let is_worth_repeating =
            source.as_ref().is_none_or(|source| transport::is_worth_repeating(&**source));
        Err(Failure::NoAnswer { reason, source, is_worth_repeating })
    }

    fn endpoint(&self, operation: Operation, environment: Environment) -> &Uri {
        let endpoints = match environment {
            Environment::Production => &self.production,
            Environment::Development => &self.development,
        };
        match operation {
            Operation::Validate => &endpoints.validate,
            Operation::QueryBits => &endpoints.query_bits,
            Operation::UpdateBits { .. } => &endpoints.update_bits,
        }
    }

    pub(super) fn credentials(&self) -> Credentials {
        lock(&self.credentials).clone()
    }

    fn provider_token(&self, now: Timestamp) -> Result<ProviderToken, VerifyError> {
        self.credentials().provider_tokens().token(now).map_err(VerifyError::misconfigured)
    }

    fn replace(
        &self,
        refused: &ProviderToken,
        answer: &Answer,
        now: Timestamp,
    ) -> Result<Option<ProviderToken>, VerifyError> {
        let credentials = self.credentials();
        let replaced = credentials.provider_tokens().replace(refused, now);
        if let Ok(Some(_)) = replaced {
            event!(
                target: TARGET,
                Level::WARN,
                key_id = credentials.key_id(),
                error = %answer,
                "Apple refused the provider token: using another one"
            );
        }
        replaced.map_err(VerifyError::misconfigured)
    }
}

const TOO_LATE: &str = "no answer in time, including the wait for a free slot";

/// A failed attempt.
enum Failure {
    Answer(Answer),
    NoAnswer { reason: &'static str, source: Option<BoxError>, is_worth_repeating: bool },
}

impl Failure {
    /// Whether another attempt may help: the transport says so, this attempt timed out, or a server in front of Apple
    /// reports a momentary outage.
    fn is_worth_another_attempt(&self) -> bool {
        match self {
            Self::Answer(answer) => matches!(answer.status.as_u16(), 502..=504) && !answer.has_retry_after,
            Self::NoAnswer { is_worth_repeating, .. } => *is_worth_repeating,
        }
    }
}

/// A call that got no answer.
#[derive(Debug)]
struct NoAnswer {
    reason: &'static str,
    environment: Environment,
    operation: Operation,
    source: Option<BoxError>,
}

impl_error!(
    NoAnswer,
    |error| Some(error.source.as_deref()?),
    "{}: {}{}",
    error.reason,
    error.environment,
    error.operation.path()
);
