//! One call to Apple, with its attempts and deadlines.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use tracing::{Level, event};

use crate::BoxError;
#[cfg(feature = "redis")]
use crate::apple::shared_hold::SharedHold;
use crate::apple::task::{self, Driven, Interest};
use crate::apple::transport::{self, ErasedTransport};
use crate::apple::wire::{self, Answer, Class, Operation, Subject};
use crate::apple::{
    attempt::Attempt,
    breaker::{Availability, Breaker, Pass, RetryBudget},
    credentials::Credentials,
    failure::{Failure, NoAnswer},
    limit::{CallLimit, Slot, TurnedAway},
    provider_token::ProviderToken,
    refusals::Refusals,
};
use crate::gate::error::{VerifyError, VerifyErrorKind};
use crate::gate::{observer::TARGET, routing::Environment};
use crate::meter::{APPLE_TURNED_AWAY, label};
use crate::runtime::{Attendance, Instant, SystemTime, Timestamp, has_tasks, later, lock, within};

/// The state that a call needs. All clones of an [`AppleClient`](crate::AppleClient) share one.
pub(super) struct Caller {
    /// All credentials that this client ever has belong to this team.
    pub(super) team_id: Box<str>,
    /// Two callers of one client share them.
    pub(super) credentials: Arc<Mutex<Credentials>>,
    pub(super) production: Endpoints,
    pub(super) development: Endpoints,
    pub(super) transport: Arc<dyn ErasedTransport>,
    pub(super) attempt_timeout: Duration,
    pub(super) total_timeout: Duration,
    pub(super) limit: CallLimit,
    pub(super) retry: bool,
    pub(super) retry_budget: RetryBudget,
    pub(super) refusals: Refusals,
    pub(super) breaker: Breaker,
    #[cfg(feature = "redis")]
    pub(super) shared_hold: Option<SharedHold>,
}

/// The beginning of a check, and those that wait for it.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    /// The total timeout counts from here.
    pub(crate) started: Instant,
    pub(crate) attendance: Attendance,
}

impl Check {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), attendance: Attendance::default() }
    }
}

/// The end of a call that Apple has decided: the body of a success, or an answer that is another verdict.
type Settled = Result<Bytes, Answer>;

/// One call.
struct Call {
    operation: Operation,
    subject: Subject,
    environment: Environment,
    started: Instant,
    pass: Pass,
}

impl Call {
    fn no_answer(&self, reason: &'static str, source: Option<BoxError>) -> VerifyError {
        let Self { operation, environment, .. } = *self;
        VerifyError::unavailable(NoAnswer { reason, environment, operation, source })
    }
}

/// The URLs of one environment.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) validate: Uri,
    pub(super) query_bits: Uri,
    pub(super) update_bits: Uri,
    pub(super) attestation_data: Uri,
}

impl Caller {
    /// Runs one call: waits for a slot, sends the request, retries once, and renews a refused provider token once. Once
    /// the request has been sent, the call continues without its caller and keeps its slot.
    ///
    /// Returns the body of Apple's answer, or an answer that refuses the device token or the receipt.
    pub(super) async fn ask(
        self: &Arc<Self>,
        operation: Operation,
        subject: Subject,
        environment: Environment,
        check: Check,
    ) -> Result<Settled, VerifyError> {
        let now = Instant::now();
        if let Some(answer) = self.refusals.in_force(environment, now) {
            not_made("credentials");
            return answer.into_verdict().map(Err);
        }
        #[cfg(feature = "redis")]
        if let Some(shared) = &self.shared_hold {
            shared.learn(environment, &self.breaker, now).await;
        }
        let pass = self.breaker.admit(environment, Instant::now()).inspect_err(|_| not_made("outage"))?;
        let (caller, attendance) = (Arc::clone(self), check.attendance.clone());
        let mut call = Call { operation, subject, environment, started: check.started, pass };
        let work = |interest, driven| async move { caller.run(&mut call, &interest, driven).await };
        let stopped = |_| VerifyError::unavailable("the runtime of the call to Apple was shut down");
        let result = task::run(attendance, work);
        // No request waits for a receipt, so the caller of its probe has patience.
        if pass == Pass::Regular || !has_tasks() || matches!(operation, Operation::RefreshReceipt) {
            return result.await.map_err(stopped)?;
        }
        // Boxed, so that a call that waits for a slot is small.
        match Box::pin(within(Breaker::PROBE_PATIENCE, result)).await {
            // Apple is still down.
            Ok(Ok(Err(error))) if error.kind() != VerifyErrorKind::Misconfigured => {
                Err(error.with_known_outage())
            }
            Ok(result) => result.map_err(stopped)?,
            // The probe goes on as a task, and tells the breaker.
            Err(_elapsed) => Err(self.breaker.error(environment, Instant::now()).unwrap_or_else(|| {
                VerifyError::unavailable("Apple was down a moment ago").with_known_outage()
            })),
        }
    }

    async fn run(
        &self,
        call: &mut Call,
        interest: &Interest,
        driven: Driven,
    ) -> Result<Settled, VerifyError> {
        let until = later(call.started, self.total_timeout);
        let left = until.saturating_duration_since(Instant::now());
        if driven.0 && left.is_zero() {
            not_made("too_late");
            return Err(call.no_answer(TOO_LATE, None));
        }
        let mut slot = self.slot(call, driven, until).await?;
        if call.pass == Pass::Regular {
            // Apple may have gone while this call waited.
            let admitted = self.breaker.admit(call.environment, Instant::now());
            call.pass = admitted.inspect_err(|_| not_made("outage"))?;
        }
        if !interest.commit() {
            return Err(call.no_answer("the caller has left", None));
        }
        let sent = Instant::now();
        if let Some(answer) = self.refusals.hold(call.environment, sent) {
            not_made("credentials");
            return answer.into_verdict().map(Err);
        }
        self.retry_budget.call();
        // Boxed, so that a call that waits for a slot is small.
        let result = Box::pin(self.attempts(call, interest)).await;
        // The time of a call without an answer says nothing about the time that answers take.
        if result.is_ok() {
            slot.answered(sent);
        }
        result
    }

    /// Waits for a slot: not in the last tenth of the time, which is too short for a call, and no longer once Apple is known
    /// to be down.
    async fn slot(&self, call: &Call, driven: Driven, until: Instant) -> Result<Slot<'_>, VerifyError> {
        const PART: Duration = Duration::from_millis(250);

        let last = later(call.started, self.total_timeout - self.total_timeout / 10);
        let mut slot = pin!(self.limit.acquire(driven, until));
        loop {
            let left = last.saturating_duration_since(Instant::now());
            match within(left.min(PART), slot.as_mut()).await {
                Ok(Ok(slot)) => return Ok(slot),
                Ok(Err(TurnedAway::QueueFull)) => {
                    not_made("queue_full");
                    let error = VerifyError::unavailable("too many calls to Apple wait for a slot already");
                    return Err(error.with_retry_after(Some(Duration::from_secs(3))));
                }
                Ok(Err(TurnedAway::TooLate)) => {
                    not_made("too_late");
                    let error = "so many calls wait that Apple cannot answer this one in time";
                    return Err(VerifyError::unavailable(error));
                }
                Err(_elapsed) if left <= PART => {
                    not_made("too_late");
                    return Err(call.no_answer(TOO_LATE, None));
                }
                Err(_elapsed) => match self.breaker.error(call.environment, Instant::now()) {
                    Some(error) if call.pass == Pass::Regular => {
                        not_made("outage");
                        return Err(error);
                    }
                    _ => {}
                },
            }
        }
    }

    async fn attempts(&self, call: &Call, interest: &Interest) -> Result<Settled, VerifyError> {
        let Call { operation, ref subject, environment, started, pass } = *call;
        let uri = self.endpoint(operation, environment);
        let mut renewed = None;
        let mut may_retry = self.retry;
        let mut may_renew = true;
        let mut number = 0;
        loop {
            let now = Timestamp::now();
            let provider_token = match renewed.take() {
                Some(provider_token) => provider_token,
                None => self.provider_token(now)?,
            };
            let mut request = operation.request(uri.clone(), &provider_token, subject, now);
            request.extensions_mut().insert(interest.clone());
            let left = self.total_timeout.saturating_sub(now.monotonic.saturating_duration_since(started));
            let attempt = Attempt::begin(environment, operation, uri, number);
            number += 1;
            let failure = match attempt.within(self.attempt(request, left)).await {
                Ok(response) => match wire::read(operation, environment, &response, SystemTime::now) {
                    Ok(body) => {
                        attempt.answered(response.status(), Class::Accepted);
                        self.refusals.accepted(environment);
                        self.breaker.answered(environment, now.monotonic);
                        return Ok(Ok(body));
                    }
                    Err(answer) => Failure::Answer(answer),
                },
                Err(failure) => failure,
            };
            match &failure {
                Failure::Answer(answer) => attempt.answered(answer.status, answer.class),
                Failure::NoAnswer { source, .. } => attempt.got_no_answer(source.is_none()),
            }
            // After the total timeout, the failure of this attempt says more than "no answer in time".
            let is_in_time = started.elapsed() < self.total_timeout;
            let may_go_on = is_in_time && interest.is_there();
            // Silence counts at once. All calls share a connection, so its end counts only where the next one ends, too.
            let is_silence = matches!(failure, Failure::NoAnswer { source: None, .. });
            if is_silence {
                self.note(environment, operation, &failure, now.monotonic);
            }
            if may_retry
                && may_go_on
                && failure.is_worth_another_attempt()
                && self.may_repeat(environment, pass, &failure)
            {
                may_retry = false;
                continue;
            }
            if !is_silence {
                self.note(environment, operation, &failure, now.monotonic);
            }
            let answer = match failure {
                Failure::Answer(answer) => answer,
                Failure::NoAnswer { reason, source, .. } => return Err(call.no_answer(reason, source)),
            };
            if answer.class == Class::RefusedProviderToken {
                if std::mem::take(&mut may_renew) {
                    renewed = self.replace(&provider_token, &answer, Timestamp::now())?;
                }
                // Goes on even if all callers have left: only an answer to the new token says whether our credentials are
                // good, and others may have joined meanwhile.
                if renewed.is_some() && is_in_time {
                    continue;
                }
                if renewed.is_none() {
                    self.refusals.refused(environment, &answer, Instant::now());
                }
            } else if answer.class != Class::Unavailable {
                self.refusals.accepted(environment);
            }
            return answer.into_verdict().map(Err);
        }
    }

    /// Tells the breaker how an attempt has ended. Only an outage counts as a failure: status 500 and 4xx may be about the
    /// token of one client.
    fn note(&self, environment: Environment, operation: Operation, failure: &Failure, sent: Instant) {
        let now = Instant::now();
        match failure {
            Failure::Answer(answer) if answer.is_outage() => {
                let error =
                    answer.clone().into_verdict().map_or_else(|error| error, VerifyError::unavailable);
                self.breaker.failed(environment, &error, answer.retry_after, now);
                #[cfg(feature = "redis")]
                if let (Some(shared), Some(hold)) = (&self.shared_hold, answer.retry_after) {
                    shared.tell(environment, hold);
                }
            }
            Failure::Answer(_) => self.breaker.answered(environment, sent),
            Failure::NoAnswer { reason, source, says_nothing, .. } if !says_nothing => {
                let source = source.as_ref().map(|source| source.to_string().into());
                let error = VerifyError::unavailable(NoAnswer { reason, environment, operation, source });
                self.breaker.failed(environment, &error, None, now);
            }
            Failure::NoAnswer { .. } => {}
        }
    }

    /// Whether a failed attempt may be made again. Without an answer, the connection is suspect, and the next attempt goes
    /// over another one. After an answer, a retry is one call more for an Apple that has trouble already.
    fn may_repeat(&self, environment: Environment, pass: Pass, failure: &Failure) -> bool {
        match (self.breaker.availability(environment, Instant::now()), failure) {
            (Availability::HeldOff, _) => false,
            (_, Failure::NoAnswer { source: Some(_), .. }) => true,
            // The first one over another connection may find out that only the connection was at fault.
            (_, Failure::NoAnswer { .. }) => pass == Pass::Regular,
            (Availability::Down, Failure::Answer(_)) => false,
            (Availability::Available, Failure::Answer(_)) => {
                pass == Pass::Regular && self.retry_budget.retry()
            }
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
        let says_nothing = match &source {
            None => left < self.attempt_timeout.min(self.total_timeout / 4),
            Some(source) => transport::is_not_sent(&**source),
        };
        Err(Failure::NoAnswer { reason, source, is_worth_repeating, says_nothing })
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
            Operation::RefreshReceipt => &endpoints.attestation_data,
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

/// Counts a call for which Apple was not asked.
fn not_made(reason: &'static str) {
    APPLE_TURNED_AWAY.add([label("reason", reason)]);
}
