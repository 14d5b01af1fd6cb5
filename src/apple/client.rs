//! One call to Apple, with its attempts and deadlines.

use std::{
    error::Error,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};

use crate::{
    BoxError,
    apple::{
        credentials::Credentials,
        limit::Limit,
        provider_token::ProviderToken,
        transport::{self, ErasedTransport},
        wire::{self, Answer, Class, Question},
    },
    clock::{Moment, within},
    routing::Environment,
    token::DeviceToken,
    verifier::VerifyError,
};

/// What all clones of an [`AppleClient`](crate::AppleClient) share.
pub(super) struct Client {
    /// Never changes, though the credentials may.
    pub(super) team_id: Box<str>,
    pub(super) credentials: RwLock<Credentials>,
    pub(super) production: Endpoints,
    pub(super) development: Endpoints,
    pub(super) transport: Arc<dyn ErasedTransport>,
    pub(super) attempt_timeout: Duration,
    pub(super) total_timeout: Duration,
    pub(super) limit: Limit,
    pub(super) retry: bool,
}

/// The endpoints of one environment.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) validate: Uri,
    pub(super) query_bits: Uri,
    pub(super) update_bits: Uri,
}

impl Client {
    /// The body of Apple's answer, or `None` if Apple refused the device token.
    pub(super) async fn ask(
        &self,
        question: Question,
        token: &DeviceToken,
        environment: Environment,
    ) -> Result<Option<Bytes>, VerifyError> {
        let call = self.ask_in_time(question, token, environment);
        within(self.total_timeout, call).await.unwrap_or_else(|_elapsed| {
            Err(VerifyError::unavailable(NoAnswer {
                reason: "no answer in time, that for a free slot included",
                environment,
                question,
                source: None,
            }))
        })
    }

    async fn ask_in_time(
        &self,
        question: Question,
        token: &DeviceToken,
        environment: Environment,
    ) -> Result<Option<Bytes>, VerifyError> {
        let _slot = self.limit.acquire().await.map_err(|_full| {
            VerifyError::unavailable("too many calls to Apple wait for a slot already")
                .with_retry_after(Some(Duration::from_secs(1)))
        })?;
        let uri = self.endpoint(question, environment);
        let mut provider_token = self.provider_token()?;
        let mut may_retry = self.retry;
        let mut may_renew = true;
        loop {
            let request = question.request(uri.clone(), &provider_token, token, Moment::now());
            let failure = match self.attempt(request).await {
                Ok(response) => match wire::read(question, environment, &response, Moment::now()) {
                    Ok(body) => return Ok(Some(body)),
                    Err(answer) => Failure::Answer(answer),
                },
                Err(failure) => failure,
            };
            if may_retry && failure.is_worth_another_attempt() {
                may_retry = false;
                continue;
            }
            let answer = match failure {
                Failure::Answer(answer) => answer,
                Failure::NoAnswer { reason, source } => {
                    return Err(VerifyError::unavailable(NoAnswer { reason, environment, question, source }));
                }
            };
            if may_renew && answer.class == Class::RefusedProviderToken {
                may_renew = false;
                if let Some(other) = self.replace(&provider_token)? {
                    provider_token = other;
                    continue;
                }
            }
            return answer.into_error().map_or(Ok(None), Err);
        }
    }

    async fn attempt(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Failure> {
        let (reason, source) = match within(self.attempt_timeout, self.transport.send(request)).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(error)) => ("the transport failed", Some(error)),
            Err(_elapsed) => ("no answer in the time for one attempt", None),
        };
        Err(Failure::NoAnswer { reason, source })
    }

    fn endpoint(&self, question: Question, environment: Environment) -> &Uri {
        let endpoints = match environment {
            Environment::Production => &self.production,
            Environment::Development => &self.development,
        };
        match question {
            Question::Validate => &endpoints.validate,
            Question::QueryBits => &endpoints.query_bits,
            Question::UpdateBits { .. } => &endpoints.update_bits,
        }
    }

    pub(super) fn credentials(&self) -> Credentials {
        self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn provider_token(&self) -> Result<ProviderToken, VerifyError> {
        self.credentials().provider_tokens().token(Moment::now()).map_err(VerifyError::misconfigured)
    }

    fn replace(&self, refused: &ProviderToken) -> Result<Option<ProviderToken>, VerifyError> {
        self.credentials()
            .provider_tokens()
            .replace(refused, Moment::now())
            .map_err(VerifyError::misconfigured)
    }
}

/// Why one attempt brought nothing.
enum Failure {
    Answer(Answer),
    NoAnswer { reason: &'static str, source: Option<BoxError> },
}

impl Failure {
    /// Only where asking again can do no harm and may help: nothing reached Apple, or a server in between
    /// says that it is Apple's momentary absence.
    fn is_worth_another_attempt(&self) -> bool {
        match self {
            Self::Answer(answer) => matches!(answer.status.as_u16(), 502..=504) && !answer.has_retry_after,
            Self::NoAnswer { source, .. } => {
                source.as_ref().is_some_and(|source| transport::is_connect(&**source))
            }
        }
    }
}

/// There is no answer to a question.
#[derive(Debug)]
struct NoAnswer {
    reason: &'static str,
    environment: Environment,
    question: Question,
    source: Option<BoxError>,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}{}", self.reason, self.environment, self.question.path())
    }
}

impl Error for NoAnswer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.source {
            Some(source) => Some(&**source),
            None => None,
        }
    }
}
