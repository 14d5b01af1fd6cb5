//! The default transport.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{
    Request, Response, Uri,
    uri::{Authority, Scheme},
};
use reqwest::redirect::Policy;
use tower_service::Service;

use crate::apple::{builder::ClientError, transport::TransportError, wire::MAX_ANSWER_LENGTH};

/// Feature `reqwest`: the default transport. rustls with the operating system's root certificates, HTTP/2
/// where the server speaks it, connections kept alive, no redirects, no cookies.
///
/// Proxies are taken from the environment, as reqwest does it: `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`. Plain
/// `http` never goes through one. It needs a tokio runtime with time and I/O. Answers over 4 KiB are an error,
/// and are not read to their end. Cloning is cheap; clones share their connections.
#[derive(Clone)]
pub struct ReqwestTransport(Arc<Shared>);

struct Shared {
    https: reqwest::Client,
    /// Knows no proxy: `http` is for the loopback interface, and through `HTTP_PROXY` the provider token would
    /// leave the machine in the clear.
    http: reqwest::Client,
    cold_start: ColdStart,
    urls: Urls,
}

/// Less than the default deadline of an attempt, so that a second one has time left.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

impl ReqwestTransport {
    /// A transport with its own connections, and 2 seconds to make one.
    ///
    /// # Errors
    ///
    /// If TLS cannot be set up, for example because there are no root certificates.
    pub fn new() -> Result<Self, ClientError> {
        Self::build(|builder| builder)
    }

    /// The same, which speaks HTTP/2 without asking the server first. Plain-text HTTP/2 is spoken no other
    /// way, so this is what a sidecar or a fake Apple on the loopback interface may need.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn http2_prior_knowledge() -> Result<Self, ClientError> {
        Self::build(reqwest::ClientBuilder::http2_prior_knowledge)
    }

    pub(super) fn with_attempt_timeout(attempt_timeout: Duration) -> Result<Self, ClientError> {
        Self::build(|builder| builder.connect_timeout(CONNECT_TIMEOUT.min(attempt_timeout)))
    }

    fn build(change: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> Result<Self, ClientError> {
        let builder = || {
            let builder = reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .redirect(Policy::none())
                // That is the client's to decide, and to count.
                .retry(reqwest::retry::never().max_retries_per_request(0))
                .referer(false)
                .tcp_nodelay(true)
                .tcp_keepalive(Duration::from_secs(30))
                // Kept warm for the next request, however long that takes.
                .pool_idle_timeout(None)
                // Finds out that a connection is dead before a request does.
                .http2_keep_alive_interval(Duration::from_secs(15))
                .http2_keep_alive_timeout(Duration::from_secs(5))
                .http2_keep_alive_while_idle(true);
            change(builder)
        };
        let fail = |error| {
            ClientError::new("the HTTP client cannot be set up: check the system's root certificates")
                .with_source::<reqwest::Error>(error)
        };
        let https = builder().https_only(true).build().map_err(fail)?;
        let http = builder().no_proxy().build().map_err(fail)?;
        Ok(Self(Arc::new(Shared { https, http, cold_start: ColdStart::default(), urls: Urls::default() })))
    }
}

impl fmt::Debug for ReqwestTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReqwestTransport").finish_non_exhaustive()
    }
}

impl Service<Request<Bytes>> for ReqwestTransport {
    type Response = Response<Bytes>;
    type Error = TransportError;
    type Future = BoxFuture<'static, Result<Response<Bytes>, TransportError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            // Outside of a runtime, tokio's sockets panic.
            if tokio::runtime::Handle::try_current().is_err() {
                return Err(TransportError::other("the reqwest transport needs a tokio runtime"));
            }
            let Shared { https, http, cold_start, urls } = &*shared;
            let client = if request.uri().scheme() == Some(&Scheme::HTTPS) { https } else { http };
            let host = request.uri().authority().cloned();
            let first = cold_start.wait(host.as_ref()).await;
            let answer = read(client.execute(urls.translate(request)?)).await;
            match &answer {
                Ok(_) if first.is_some() => cold_start.warm(host),
                Err(error) if error.is_connect() => cold_start.cool(host.as_ref()),
                _ => {}
            }
            answer
        })
    }
}

/// Lets one request through to a host that has not answered yet, and the others after its answer.
///
/// That a server speaks HTTP/2, on which all requests share a connection, is known when the first connection
/// is up. A crowd that arrives before would open one each.
#[derive(Default)]
struct ColdStart {
    warm: Mutex<Vec<Authority>>,
    one_by_one: async_lock::Mutex<()>,
}

impl ColdStart {
    async fn wait(&self, host: Option<&Authority>) -> Option<async_lock::MutexGuard<'_, ()>> {
        if self.is_warm(host) {
            return None;
        }
        let turn = self.one_by_one.lock().await;
        (!self.is_warm(host)).then_some(turn)
    }

    fn is_warm(&self, host: Option<&Authority>) -> bool {
        host.is_none_or(|host| self.hosts().contains(host))
    }

    fn warm(&self, host: Option<Authority>) {
        self.hosts().extend(host);
    }

    fn cool(&self, host: Option<&Authority>) {
        self.hosts().retain(|warm| Some(warm) != host);
    }

    /// So few that a list is the fastest.
    fn hosts(&self) -> MutexGuard<'_, Vec<Authority>> {
        lock(&self.warm)
    }
}

/// URLs as reqwest wants them. Parsing one takes as long as all else that is done for a request here, and
/// there are only a few.
#[derive(Default)]
struct Urls(Mutex<Vec<(Uri, reqwest::Url)>>);

impl Urls {
    /// More than the endpoints of both environments.
    const KEPT: usize = 8;

    fn translate(&self, request: Request<Bytes>) -> Result<reqwest::Request, TransportError> {
        let (head, body) = request.into_parts();
        let mut translated = reqwest::Request::new(head.method, self.url(&head.uri)?);
        *translated.version_mut() = head.version;
        *translated.headers_mut() = head.headers;
        *translated.body_mut() = Some(body.into());
        Ok(translated)
    }

    fn url(&self, uri: &Uri) -> Result<reqwest::Url, TransportError> {
        let mut kept = lock(&self.0);
        if let Some((_, url)) = kept.iter().find(|(known, _)| is_same(known, uri)) {
            return Ok(url.clone());
        }
        let url: reqwest::Url = uri.to_string().parse().map_err(TransportError::other)?;
        if kept.len() < Self::KEPT {
            kept.push((uri.clone(), url.clone()));
        }
        Ok(url)
    }
}

/// Stricter than `==`, for which names of users that differ in case are the same.
fn is_same(uri: &Uri, other: &Uri) -> bool {
    uri.authority().map(Authority::as_str) == other.authority().map(Authority::as_str)
        && uri.path_and_query() == other.path_and_query()
        && uri.scheme() == other.scheme()
}

/// Nothing that runs under these locks can leave a list half changed.
fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(
    answer: impl Future<Output = Result<reqwest::Response, reqwest::Error>>,
) -> Result<Response<Bytes>, TransportError> {
    let mut response = answer.await.map_err(failure)?;
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(failure)? {
        if body.len() + chunk.len() > MAX_ANSWER_LENGTH {
            return Err(TransportError::other("the answer is longer than 4 KiB"));
        }
        body.extend_from_slice(&chunk);
    }
    let mut answer = Response::new(body.freeze());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}

fn failure(error: reqwest::Error) -> TransportError {
    // The caller says what was asked of whom, in its own words.
    let error = error.without_url();
    if error.is_connect() {
        TransportError::connect(error)
    } else if is_turned_away(&error) {
        TransportError::turned_away(error)
    } else {
        TransportError::other(error)
    }
}

/// Two ways in which an HTTP/2 server says that it has not looked at a request (RFC 9113, section 8.7): the
/// connection is being shut down, or the stream is refused.
fn is_turned_away(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.find_map(|cause| cause.downcast_ref::<h2::Error>()).is_some_and(|error| {
        let by_shutdown = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        let by_refusal = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (by_shutdown || by_refusal)
    })
}

#[cfg(test)]
mod tests;
