//! The default transport.

use std::collections::hash_map::{Entry, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Request, Response};
use reqwest::{Url, redirect::Policy};
use tower_service::Service;

use crate::apple::transport::{TransportError, chain, is_turned_away};
use crate::apple::{error::ClientError, wire::MAX_ANSWER_LENGTH};
use crate::runtime::{lock, within};

/// The default transport. Feature `reqwest`.
///
/// It uses rustls with the operating system's root certificates, speaks HTTP/2 if the server does, keeps
/// connections alive, and follows no redirects. It needs a tokio runtime with time and I/O.
///
/// reqwest takes proxies from the environment: `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`. Plain `http` never goes
/// through a proxy. An answer over 4 KiB is an error, and the rest of it is not read. Cloning is cheap; clones
/// share their connections.
#[derive(Clone)]
pub struct ReqwestTransport(Arc<HttpClients>);

struct HttpClients {
    https: reqwest::Client,
    /// Uses no proxy: `http` is for the loopback interface, and a proxy would take the provider token out of the
    /// machine in the clear.
    http: reqwest::Client,
    turnstiles: Turnstiles,
}

/// The time to make a connection. Less than the default deadline of an attempt, so that a second attempt has time
/// left.
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

    /// A transport as from [`new`](Self::new) that speaks HTTP/2 without asking the server first. Plain-text HTTP/2
    /// works no other way, and a sidecar or a fake Apple on the loopback interface may need it.
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
                // `AppleClient` decides about retries, and counts them.
                .retry(reqwest::retry::never().max_retries_per_request(0))
                .referer(false)
                .tcp_nodelay(true)
                .tcp_keepalive(Duration::from_secs(30))
                // Keeps the connection for the next request, however late that comes.
                .pool_idle_timeout(None)
                // Detects a dead connection before a request runs into it.
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
        Ok(Self(Arc::new(HttpClients { https, http, turnstiles: Turnstiles::default() })))
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
        let clients = Arc::clone(&self.0);
        Box::pin(async move {
            // tokio's sockets panic outside of a runtime.
            if tokio::runtime::Handle::try_current().is_err() {
                return Err(TransportError::other("the reqwest transport needs a tokio runtime"));
            }
            let request = reqwest::Request::try_from(request).map_err(failure)?;
            let client = if request.url().scheme() == "https" { &clients.https } else { &clients.http };
            let turnstile = clients.turnstiles.at(request.url());
            let turn = turnstile.turn().await;
            let answer = read(client.execute(request)).await;
            match &answer {
                Ok(_) if turn.is_some() => turnstile.set_warm(true),
                Err(error) if is_without_connection(error) => turnstile.set_warm(false),
                _ => {}
            }
            answer
        })
    }
}

/// Whether there was no connection, or the server has shut the connection down.
fn is_without_connection(error: &TransportError) -> bool {
    let is_shutdown = |error: &h2::Error| error.is_go_away();
    error.is_connect() || chain(error).any(|error| error.downcast_ref().is_some_and(is_shutdown))
}

/// The turnstiles of the servers that were asked, by scheme, host and port.
#[derive(Default)]
struct Turnstiles(Mutex<HashMap<String, Arc<Turnstile>>>);

impl Turnstiles {
    /// The number of servers, more than Apple has. A request to a further one gets its own turnstile and never
    /// waits.
    const KEPT: usize = 8;

    fn at(&self, url: &Url) -> Arc<Turnstile> {
        let mut kept = lock(&self.0);
        let is_full = kept.len() >= Self::KEPT;
        match kept.entry(url.origin().ascii_serialization()) {
            Entry::Vacant(_) if is_full => Arc::default(),
            entry => Arc::clone(entry.or_default()),
        }
    }
}

/// Lets one request through to a cold server, and the others after its answer.
///
/// All requests share a connection if the server speaks HTTP/2, which is known once the first connection is up. A
/// crowd that arrives earlier would open one connection for each request.
#[derive(Default)]
struct Turnstile {
    /// True from the first answer until a request fails for lack of a connection.
    warm: AtomicBool,
    /// Held by the request that goes first.
    first: async_lock::Mutex<()>,
}

impl Turnstile {
    /// How long to wait for the first request to a cold server: longer than most answers take, well under the
    /// timeout of an attempt.
    const PATIENCE: Duration = Duration::from_millis(500);

    /// Waits until the caller may send its request. Returns a guard to the first caller, who holds it until the
    /// answer.
    async fn turn(&self) -> Option<async_lock::MutexGuard<'_, ()>> {
        if self.is_warm() {
            return None;
        }
        let turn = within(Self::PATIENCE, self.first.lock()).await.ok()?;
        (!self.is_warm()).then_some(turn)
    }

    fn is_warm(&self) -> bool {
        self.warm.load(Ordering::Relaxed)
    }

    fn set_warm(&self, warm: bool) {
        self.warm.store(warm, Ordering::Relaxed);
    }
}

async fn read(
    answer: impl Future<Output = Result<reqwest::Response, reqwest::Error>>,
) -> Result<Response<Bytes>, TransportError> {
    let mut response = answer.await.map_err(failure)?;
    let mut body = BytesMut::new();
    let broken_off = |error: reqwest::Error| TransportError::other(error.without_url());
    // The server has answered, and so has acted on the request, even if reading the body fails.
    while let Some(chunk) = response.chunk().await.map_err(broken_off)? {
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
    // Without the URL: the caller's error names the operation and the environment.
    let error = error.without_url();
    if error.is_connect() {
        TransportError::connect(error)
    } else if chain(&error).any(is_turned_away) {
        TransportError::turned_away(error)
    } else {
        TransportError::other(error)
    }
}

#[cfg(test)]
mod tests;
