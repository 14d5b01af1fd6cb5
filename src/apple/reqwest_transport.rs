//! The default transport.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{
    Request, Response,
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
pub struct ReqwestTransport {
    https: reqwest::Client,
    /// Knows no proxy: `http` is for the loopback interface, and through `HTTP_PROXY` the provider token would
    /// leave the machine in the clear.
    http: reqwest::Client,
    cold_start: Arc<ColdStart>,
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
        Ok(Self { https, http, cold_start: Arc::default() })
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
        let is_https = request.uri().scheme() == Some(&Scheme::HTTPS);
        let client = if is_https { self.https.clone() } else { self.http.clone() };
        let cold_start = Arc::clone(&self.cold_start);
        Box::pin(async move {
            // Outside of a runtime, tokio's sockets panic.
            if tokio::runtime::Handle::try_current().is_err() {
                return Err(TransportError::other("the reqwest transport needs a tokio runtime"));
            }
            let host = request.uri().authority().cloned();
            let first = cold_start.wait(host.as_ref()).await;
            let answer = send(&client, request).await;
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
    warm: Mutex<HashSet<Authority>>,
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
        host.map(|host| self.hosts().remove(host));
    }

    fn hosts(&self) -> MutexGuard<'_, HashSet<Authority>> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(client: &reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
    let request = reqwest::Request::try_from(request).map_err(failure)?;
    let mut response = client.execute(request).await.map_err(failure)?;
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
    if error.is_connect() { TransportError::connect(error) } else { TransportError::other(error) }
}

#[cfg(test)]
mod tests;
