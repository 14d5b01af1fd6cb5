//! The default transport.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Request, Response};
use reqwest::{Certificate, redirect::Policy};
use tower_service::Service;

use crate::BoxError;
use crate::apple::links::{Links, Sent};
use crate::apple::transport::{TransportError, chain, is_turned_away};
use crate::apple::{error::ClientError, task::Interest, wire::MAX_ANSWER_LENGTH};

/// The default transport. Feature `reqwest`.
///
/// It uses rustls with the operating system's root certificates, speaks HTTP/2 if the server does, keeps
/// connections alive, and follows no redirects. It needs a tokio runtime with time and I/O; several runtimes may share
/// it, and each has connections of its own.
///
/// A request that breaks off or runs out of time makes its connection suspect, and further requests go over a new one.
///
/// reqwest takes proxies from the environment: `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`. Plain `http` never goes
/// through a proxy. An answer over 4 KiB is an error, and the rest of it is not read. Cloning is cheap; clones
/// share their connections.
#[derive(Clone)]
pub struct ReqwestTransport(Arc<Shared>);

struct Shared {
    make: Make,
    /// Made at start, where an error can stop the server. They stand in for one that cannot be made later.
    https: reqwest::Client,
    http: reqwest::Client,
    links: Links,
}

/// Makes a client with connections of its own, for `https` or else for `http`.
type Make = Box<dyn Fn(bool) -> Result<reqwest::Client, BoxError> + Send + Sync>;

/// The time to make a connection. Less than the default deadline of an attempt, so that a second attempt has time
/// left.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

impl ReqwestTransport {
    /// A transport with its own connections, and 2 seconds to make one.
    ///
    /// # Errors
    ///
    /// Returns an error if TLS cannot be set up, for example because there are no root certificates.
    pub fn new() -> Result<Self, ClientError> {
        Self::builder().build()
    }

    /// A transport as from [`new`](Self::new) that speaks HTTP/2 without asking the server first. Plain-text HTTP/2
    /// works no other way, and a sidecar or a fake Apple on the loopback interface may need it.
    ///
    /// # Errors
    ///
    /// The same as for [`new`](Self::new).
    pub fn http2_prior_knowledge() -> Result<Self, ClientError> {
        Self::builder().http2_prior_knowledge().build()
    }

    /// A builder, for further root certificates.
    pub fn builder() -> ReqwestTransportBuilder {
        ReqwestTransportBuilder {
            roots: Vec::new(),
            connect_timeout: CONNECT_TIMEOUT,
            http2_prior_knowledge: false,
        }
    }

    /// A transport of your own reqwest clients, for settings that this crate does not have. `make` is called now, for
    /// each server and runtime, and whenever connections are to be replaced. Where it clones one client,
    /// connections are never replaced, and no second runtime may use them.
    ///
    /// The client must follow no redirects (`redirect::Policy::none()`): an answer after one is an error, but the
    /// provider token may have gone elsewhere by then. Turn reqwest's own retries off, too, and take
    /// `https_only(true)` unless the server is on the loopback interface.
    ///
    /// # Errors
    ///
    /// Returns an error if `make` fails. A later failure keeps the client that was made first.
    pub fn from_clients<E: Into<BoxError>>(
        make: impl Fn() -> Result<reqwest::Client, E> + Send + Sync + 'static,
    ) -> Result<Self, ClientError> {
        Self::from_make(Box::new(move |_| make().map_err(Into::into)))
    }

    fn from_make(make: Make) -> Result<Self, ClientError> {
        let fail = |error| {
            ClientError::new(
                "the HTTP client cannot be set up: check the system's root certificates, or the files that \
                 SSL_CERT_FILE and SSL_CERT_DIR name",
            )
            .with_source::<BoxError>(error)
        };
        let (https, http) = (make(true).map_err(fail)?, make(false).map_err(fail)?);
        Ok(Self(Arc::new(Shared { make, https, http, links: Links::default() })))
    }
}

/// Builds a [`ReqwestTransport`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ReqwestTransportBuilder {
    roots: Vec<Certificate>,
    pub(super) connect_timeout: Duration,
    http2_prior_knowledge: bool,
}

impl ReqwestTransportBuilder {
    /// Trusts the certificates in `pem`, one or many, beside the operating system's: for a proxy that inspects TLS.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no certificate in it.
    pub fn add_root_certificate(mut self, pem: impl AsRef<[u8]>) -> Result<Self, ClientError> {
        self.roots.extend(certificates(pem.as_ref()).map_err(|error| {
            ClientError::new("root certificate: it is not in PEM form, from `-----BEGIN CERTIFICATE-----` on")
                .with_source(error)
        })?);
        Ok(self)
    }

    /// Speaks HTTP/2 without asking the server first. Default: asks.
    pub const fn http2_prior_knowledge(mut self) -> Self {
        self.http2_prior_knowledge = true;
        self
    }

    /// Builds the transport.
    ///
    /// # Errors
    ///
    /// Returns an error if TLS cannot be set up: there are no root certificates, a given one cannot be read, or
    /// `SSL_CERT_FILE` or `SSL_CERT_DIR` names something without any.
    pub fn build(self) -> Result<ReqwestTransport, ClientError> {
        check_environment()?;
        ReqwestTransport::from_make(Box::new(move |is_https| Ok(self.client(is_https)?)))
    }

    fn client(&self, is_https: bool) -> Result<reqwest::Client, reqwest::Error> {
        let builder = reqwest::Client::builder()
            .connect_timeout(self.connect_timeout)
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
        let builder = if self.http2_prior_knowledge { builder.http2_prior_knowledge() } else { builder };
        // `http` is for the loopback interface, and a proxy would take the provider token out of the machine in the
        // clear.
        if is_https {
            builder.https_only(true).tls_certs_merge(self.roots.iter().cloned()).build()
        } else {
            builder.no_proxy().tls_certs_only([]).build()
        }
    }
}

/// The certificates in a PEM, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<Certificate>, BoxError> {
    let certificates = Certificate::from_pem_bundle(pem)?;
    if certificates.is_empty() { Err("there is no certificate in it".into()) } else { Ok(certificates) }
}

/// The variables that rustls takes the roots from where the operating system has no store of its own. It only logs
/// what it cannot read there.
fn check_environment() -> Result<(), ClientError> {
    const READS_THEM: bool = cfg!(all(unix, not(target_vendor = "apple"), not(target_os = "android")));
    let set = |name| std::env::var_os(name).filter(|value| READS_THEM && !value.is_empty());
    let fail = |name, error| {
        ClientError::new(format!(
            "{name}: there are no root certificates to be read: set it right, or unset it"
        ))
        .with_source::<BoxError>(error)
    };
    if let Some(file) = set("SSL_CERT_FILE") {
        let pem = std::fs::read(file).map_err(|error| fail("SSL_CERT_FILE", error.into()))?;
        certificates(&pem).map_err(|error| fail("SSL_CERT_FILE", error))?;
    }
    for folder in set("SSL_CERT_DIR").iter().flat_map(std::env::split_paths) {
        std::fs::read_dir(folder).map_err(|error| fail("SSL_CERT_DIR", error.into()))?;
    }
    Ok(())
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

    fn call(&mut self, mut request: Request<Bytes>) -> Self::Future {
        let interest = request.extensions_mut().remove::<Interest>();
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            // tokio's sockets panic outside a runtime.
            let Ok(runtime) = tokio::runtime::Handle::try_current() else {
                return Err(TransportError::other("the reqwest transport needs a tokio runtime"));
            };
            let request = reqwest::Request::try_from(request)
                .map_err(|error| TransportError::other(error.without_url()))?;
            let url = request.url().clone();
            let is_https = url.scheme() == "https";
            let link = shared.links.at(runtime.id(), url.origin().ascii_serialization(), || {
                let first = if is_https { &shared.https } else { &shared.http };
                (shared.make)(is_https).unwrap_or_else(|_| first.clone())
            });
            let _turn = link.turn().await;
            if interest.is_some_and(|interest| !interest.is_there()) {
                return Err(TransportError::other("the caller left before its turn"));
            }
            let is_reused = link.is_warm();
            let sent = Sent::new(&shared.links, &link);
            let answer = match link.client.execute(request).await {
                Ok(response) if *response.url() != url => {
                    Err(TransportError::other("the client followed a redirect"))
                }
                Ok(response) => read(response, is_reused).await,
                Err(error) => Err(failure(error, is_reused)),
            };
            match &answer {
                Ok(_) => sent.answered(),
                Err(error) => sent.failed(is_over(error)),
            }
            answer
        })
    }
}

/// Whether the error says that the connection, if there was one, serves no further request.
fn is_over(error: &TransportError) -> bool {
    let is_shutdown = |error: &h2::Error| error.is_go_away();
    error.is_connect()
        || error.is_stale()
        || chain(error).any(|error| error.downcast_ref().is_some_and(is_shutdown))
}

async fn read(mut response: reqwest::Response, is_reused: bool) -> Result<Response<Bytes>, TransportError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(error, is_reused))? {
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

/// `is_reused` says that the server has answered over this link before.
fn failure(error: reqwest::Error, is_reused: bool) -> TransportError {
    // Without the URL: the caller's error names the operation and the environment.
    let error = error.without_url();
    // A stream that the server ends says nothing about the connection.
    let is_reset_stream =
        chain(&error).any(|error| error.downcast_ref().is_some_and(|error: &h2::Error| error.is_reset()));
    if error.is_connect() {
        TransportError::connect(error)
    } else if chain(&error).any(is_turned_away) {
        TransportError::turned_away(error)
    } else if is_reused && !is_reset_stream && !error.is_builder() {
        TransportError::stale(error)
    } else {
        TransportError::other(error)
    }
}

#[cfg(test)]
mod tests;
