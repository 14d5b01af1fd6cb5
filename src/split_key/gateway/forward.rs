//! The innermost service: one request to the provider for each that was given its key.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, select};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, request};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use tower_service::Service;

use crate::BoxError;
use crate::gate::body::ResponseBody;
use crate::runtime::{Elapsed, within};
use crate::split_key::api_key::ApiKey;
use crate::split_key::gateway::access::Access;
use crate::split_key::gateway::answer_body::{AnswerBody, is_event_stream};
use crate::split_key::gateway::body::{PassedBody, Progress};
use crate::split_key::gateway::error_shape::ErrorShape;
use crate::split_key::gateway::refusals::{Refusals, is_refusal};
use crate::split_key::gateway::rejection::GatewayRejection;
use crate::split_key::gateway::target::Target;
use crate::split_key::gateway::{batches, errors, headers};
use crate::split_key::usage::body::{Metered, MeteredBody};
use crate::split_key::usage::log::UsageLog;

/// The longest error of a provider's that is read. A longer one is replaced.
const MAX_ERROR: usize = 64 * 1024;
/// The time for which an answer is awaited without a look at its key.
const UNWATCHED: Duration = Duration::from_millis(200);

/// A service that sends requests to their providers through an HTTP client, which is any tower service.
///
/// It belongs inside of [`GatewayLayer`](crate::split_key::gateway::GatewayLayer) and
/// [`SplitKeyLayer`](crate::split_key::SplitKeyLayer), which leave the [`Target`] and the [`ApiKey`] with the request.
/// The client gets the provider's URL, the headers that may cross, and the API key in a header that is marked sensitive.
/// It must follow no redirects and repeat no request: the key goes nowhere else, and nothing is charged twice.
///
/// The response has the provider's status, and the headers that may cross. The body streams, until the key is revoked or
/// expires: then it ends with an error, within a second. A silent stream of events gets a comment every 15 s, so that
/// nobody on the way takes the connection to be dead, and the header `X-Accel-Buffering: no`. Answers about Anthropic's
/// batches are read first, up to 1 MiB, because their links lead around the gateway. An answer of the provider's that is
/// no success is read first, up to 64 KiB: one that quotes the key, or that cannot be read, becomes
/// [`ProviderError`](GatewayRejection::ProviderError), and a refusal of the key
/// [`KeyRefused`](GatewayRejection::KeyRefused).
///
/// The service is always ready, and has no errors of its own: each one becomes a response. Dropping its future drops the
/// client's.
#[derive(Clone, Debug)]
#[must_use]
pub struct Forward<C> {
    client: C,
    settings: Settings,
}

#[derive(Clone, Debug)]
struct Settings {
    body_limit: u64,
    upload: Duration,
    head: Duration,
    idle: Duration,
    refusals: Arc<Refusals>,
    usage: Option<UsageLog>,
}

impl<C> Forward<C> {
    /// Makes a service that sends requests through `client`, with the defaults of all other methods.
    pub fn new(client: C) -> Self {
        let settings = Settings {
            body_limit: 32 * 1024 * 1024,
            upload: Duration::from_secs(120),
            // The providers' SDKs wait so long.
            head: Duration::from_secs(600),
            idle: Duration::from_secs(600),
            refusals: Arc::default(),
            usage: None,
        };
        Self { client, settings }
    }

    /// Sets how many bytes a request's body may have. Default: 32 MiB.
    pub fn with_body_limit(mut self, bytes: u64) -> Self {
        self.settings.body_limit = bytes;
        self
    }

    /// Sets how long the client may be silent within its body. Default: 120 s. There is no limit to the whole. All three
    /// times need a tokio runtime.
    pub fn with_upload_timeout(mut self, limit: Duration) -> Self {
        self.settings.upload = limit;
        self
    }

    /// Sets the time from the last piece of the client's body to the head of the provider's response. Default: 600 s, as
    /// long as the providers' SDKs wait.
    pub fn with_head_timeout(mut self, limit: Duration) -> Self {
        self.settings.head = limit;
        self
    }

    /// Sets how long the provider may be silent within its response. Default: 600 s. There is no limit to the whole.
    pub fn with_idle_timeout(mut self, limit: Duration) -> Self {
        self.settings.idle = limit;
        self
    }

    /// Sets where refusals of keys are noted. Default: a list that nobody else sees.
    pub fn with_refusals(mut self, refusals: Arc<Refusals>) -> Self {
        self.settings.refusals = refusals;
        self
    }

    /// Sets the log that counts the provider's answers, and the tokens that they state; see
    /// [`MeteredBody`]. Default: none.
    pub fn with_usage(mut self, usage: UsageLog) -> Self {
        self.settings.usage = Some(usage);
        self
    }

    async fn send<B, R>(mut self, head: request::Parts, body: B) -> Answer<R>
    where
        C: Service<Request<PassedBody<B>>, Response = Response<R>, Error: Into<BoxError>>,
        B: Body,
        R: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let Some(target) = head.extensions.get::<Target>() else {
            return own(GatewayRejection::UnknownProvider, None);
        };
        let answer = match outgoing(&head, target) {
            Ok((request, key)) => {
                if let Some(access) = head.extensions.get::<Access>() {
                    access.set_key(&key);
                }
                let progress = Progress::new();
                let body = PassedBody::request(body, self.settings.body_limit, self.settings.upload);
                let request = request.map(|()| body.with_progress(&progress));
                let answer = self.ask(request, target, &key, &progress).await;
                answer.map(|answer| (answer, key))
            }
            Err(rejection) => Err(rejection),
        };
        match answer {
            Ok((answer, key)) => self.settings.pass(answer, &head, target, &key).await,
            Err(rejection) => own(rejection, Some(target)),
        }
    }

    /// The provider's answer, if there is one.
    async fn ask<B, R>(
        &mut self,
        request: Request<PassedBody<B>>,
        target: &Target,
        key: &ApiKey,
        progress: &Progress,
    ) -> Result<Response<R>, GatewayRejection>
    where
        C: Service<Request<PassedBody<B>>, Response = Response<R>, Error: Into<BoxError>>,
    {
        let client = &mut self.client;
        let answer = pin!(async {
            poll_fn(|cx| client.poll_ready(cx)).await?;
            client.call(request).await
        });
        let answer = in_time(answer, self.settings.head, key, progress).await?;
        let answer = answer.map_err(|error| {
            let error = error.into();
            let rejection = rejection_in(&*error);
            tracing::warn!(
                provider = target.provider().name(),
                reason = rejection.code(),
                error = &*error,
                "not forwarded"
            );
            rejection
        })?;
        // Nobody asked for another protocol, and the client would take the rest of the connection to be one.
        if answer.status().is_informational() {
            return Err(GatewayRejection::ProviderUnreachable);
        }
        Ok(answer)
    }
}

/// Waits for an answer: for this time since the last piece of the upload, and no longer than the key may be used.
async fn in_time<T>(
    mut answer: Pin<&mut impl Future<Output = T>>,
    limit: Duration,
    key: &ApiKey,
    progress: &Progress,
) -> Result<T, GatewayRejection> {
    // Most answers come before anybody could revoke a key.
    if let Ok(answer) = within(UNWATCHED.min(limit), answer.as_mut()).await {
        return Ok(answer);
    }
    let mut answer = select(answer, key.revoked());
    loop {
        let left = limit.saturating_sub(progress.elapsed());
        match within(left, &mut answer).await {
            Ok(Either::Left((answer, _))) => return Ok(answer),
            Ok(Either::Right(((), _))) => return Err(GatewayRejection::KeyRevoked),
            Err(Elapsed) if progress.elapsed() < limit => {}
            Err(Elapsed) => return Err(GatewayRejection::ProviderTimeout),
        }
    }
}

impl Settings {
    async fn pass<R>(
        &self,
        answer: Response<R>,
        asked: &request::Parts,
        target: &Target,
        key: &ApiKey,
    ) -> Answer<R>
    where
        R: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let (head, body) = answer.into_parts();
        let finished = self.counts(asked, key);
        let body = PassedBody::response(body, self.idle);
        let body = MeteredBody::new(body, &asked.method, &head.headers, finished);
        let kept = headers::to_client(&head.headers, key);
        // Redirects, too: like errors they are short, and may quote the request.
        if !head.status.is_success() {
            let body = read(&head.headers, body, MAX_ERROR).await;
            let mut response = self.error(head.status, body, target, key);
            // The answer's own headers say what its body is.
            let own = std::mem::replace(response.headers_mut(), kept);
            if response.extensions().get::<GatewayRejection>().is_some() {
                for name in [CONTENT_ENCODING, CONTENT_LENGTH] {
                    response.headers_mut().remove(name);
                }
            }
            response.headers_mut().extend(own);
            return response.map(ResponseBody::rejection);
        }
        self.refusals.accepted(key);
        if batches::hold_links(target) {
            let body = read(&head.headers, body, batches::MAX_ANSWER).await;
            return batches::answer(head.status, kept, body, target).map(ResponseBody::rejection);
        }
        let is_stream = is_event_stream(&head.headers);
        let mut body = AnswerBody::new(body, key.key_use());
        // Google's SDKs fail at a comment.
        if is_stream && target.error_shape() != ErrorShape::Google {
            body = body.with_comments();
        }
        let mut response = Response::new(ResponseBody::inner(body));
        *response.status_mut() = head.status;
        *response.headers_mut() = kept;
        if is_stream {
            // nginx would hold events back.
            let name = HeaderName::from_static("x-accel-buffering");
            response.headers_mut().insert(name, HeaderValue::from_static("no"));
        }
        response
    }

    /// The report of an answer to the usage log and the access log.
    fn counts(&self, asked: &request::Parts, key: &ApiKey) -> impl FnOnce(Metered) + Send + 'static {
        let counter = self.usage.as_ref().map(|usage| usage.count_answers(key));
        let access = asked.extensions.get::<Access>().cloned();
        move |metered| {
            if let Some(counter) = counter {
                counter.count(&metered.usage);
            }
            if let Some(access) = access {
                access.set_usage(metered.usage);
            }
        }
    }

    /// An error of the provider's: with its own body, if that could be read and does not quote the key. A refusal of the
    /// key is not the app's business, which would make new device tokens.
    fn error(
        &self,
        status: StatusCode,
        body: Option<Bytes>,
        target: &Target,
        key: &ApiKey,
    ) -> Response<Bytes> {
        let shape = Some(target.error_shape());
        if is_refusal(status, body.as_deref().unwrap_or_default()) {
            self.refusals.refused(key, status);
            let mut response = errors::respond(GatewayRejection::KeyRefused, shape);
            // The SDKs repeat what has this status.
            let no_retry = HeaderName::from_static("x-should-retry");
            response.headers_mut().insert(no_retry, HeaderValue::from_static("false"));
            return response;
        }
        match body {
            Some(body) if !headers::quotes(&body, key) => {
                let mut response = Response::new(body);
                *response.status_mut() = status;
                response
            }
            _ => errors::respond(GatewayRejection::ProviderError { status }, shape),
        }
    }
}

type Answer<R> = Response<ResponseBody<AnswerBody<MeteredBody<PassedBody<R>>>>>;

/// The gateway's own answer.
fn own<R>(rejection: GatewayRejection, target: Option<&Target>) -> Answer<R> {
    errors::respond(rejection, target.map(Target::error_shape)).map(ResponseBody::rejection)
}

/// The head of the request to the provider, and the key in it.
fn outgoing(head: &request::Parts, target: &Target) -> Result<(Request<()>, ApiKey), GatewayRejection> {
    // Only a CORS preflight comes here without a key.
    let key = head.extensions.get::<ApiKey>().ok_or(GatewayRejection::MethodNotAllowed)?;
    let provider = target.provider();
    if key.provider() != provider.name() {
        return Err(GatewayRejection::WrongProvider);
    }
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = target.uri().clone();
    *request.headers_mut() = headers::to_provider(&head.headers);
    provider.endpoint.complete(request.headers_mut(), key);
    Ok((request, key.clone()))
}

/// The body, if all of it comes, and it is neither too long nor compressed.
async fn read(
    headers: &HeaderMap,
    body: impl Body<Data = Bytes, Error = BoxError>,
    limit: usize,
) -> Option<Bytes> {
    let encoded = headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let body = Limited::new(body, limit).collect().await.ok()?.to_bytes();
    Some(body).filter(|_| !encoded)
}

/// The side at fault if there is no response.
fn rejection_in(error: &(dyn Error + 'static)) -> GatewayRejection {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rejection) = error.downcast_ref::<GatewayRejection>() {
            return *rejection;
        }
        cause = error.source();
    }
    GatewayRejection::ProviderUnreachable
}

impl<C, B, R> Service<Request<B>> for Forward<C>
where
    C: Service<Request<PassedBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    C::Future: Send,
    C::Error: Into<BoxError> + Send,
    B: Body + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Answer<R>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer<R>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        let this = self.clone();
        Box::pin(async move { Ok(this.send(head, body).await) })
    }
}
