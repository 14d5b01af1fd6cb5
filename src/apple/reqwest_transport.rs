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
use crate::apple::pools::{Pools, Sent};
use crate::apple::resolver::SharedLookups;
use crate::apple::transport::{LongestAnswer, TransportError, chain, is_turned_away};
use crate::apple::{error::ClientError, task::Interest};

/// The default transport to Apple, based on reqwest. Feature `reqwest`.
///
/// It uses rustls with the operating system's root certificates, speaks HTTP/2 if the server does, keeps connections
/// alive, and follows no redirects. It needs a tokio runtime with time and I/O. Several runtimes may share it; each has
/// its own connections.
///
/// A request that fails or times out makes its connection suspect. Further requests use a new connection.
///
/// reqwest takes proxies from the environment: `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`. Plain `http` never goes through
/// a proxy. An answer over 4 KiB, over 32 KiB in place of a receipt, is an error, and its rest is not read. Cloning is cheap: clones share their
/// connections.
#[derive(Clone)]
pub struct ReqwestTransport(Arc<Shared>);

struct Shared {
    make: Make,
    /// Clients made at start-up, where an error can stop the server. They replace a client that cannot be made later.
    https: reqwest::Client,
    http: reqwest::Client,
    pools: Pools,
}

/// Makes a client with its own connections: for `https` if the argument is true, otherwise for `http`.
type Make = Box<dyn Fn(bool) -> Result<reqwest::Client, BoxError> + Send + Sync>;

/// The deadline for connecting. It is shorter than the default deadline of an attempt, so that a second attempt has
/// time left.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

impl ReqwestTransport {
    /// Makes a transport with its own connections. The deadline for connecting is 2 seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if TLS cannot be set up, for example because there are no root certificates.
    pub fn new() -> Result<Self, ClientError> {
        Self::builder().build()
    }

    /// Makes a transport like [`new`](Self::new), but with HTTP/2 prior knowledge: it speaks HTTP/2 without
    /// negotiation. Plain-text HTTP/2, as a sidecar or a fake Apple on the loopback interface may speak it, works only
    /// this way.
    ///
    /// # Errors
    ///
    /// The same as for [`new`](Self::new).
    pub fn http2_prior_knowledge() -> Result<Self, ClientError> {
        Self::builder().http2_prior_knowledge().build()
    }

    /// Makes a builder, for additional root certificates.
    pub fn builder() -> ReqwestTransportBuilder {
        ReqwestTransportBuilder {
            roots: Vec::new(),
            connect_timeout: CONNECT_TIMEOUT,
            http2_prior_knowledge: false,
        }
    }

    /// Makes a transport from your own reqwest clients, for settings that this crate does not have. The transport calls
    /// `make` now, for each server and runtime, and whenever it replaces connections. If `make` only clones one client,
    /// connections are never replaced, and only one runtime may use the transport.
    ///
    /// The client must not follow redirects (`redirect::Policy::none()`): a redirected answer is an error, but by then
    /// the provider token may have reached another server. Turn off reqwest's own retries, too, and set
    /// `https_only(true)` unless the server is on the loopback interface.
    ///
    /// # Errors
    ///
    /// Returns an error if `make` fails now. If it fails later, the transport keeps using the first client.
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
        Ok(Self(Arc::new(Shared { make, https, http, pools: Pools::default() })))
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
    /// Trusts the certificates in `pem`, one or more, in addition to the operating system's: for a proxy that inspects
    /// TLS.
    ///
    /// # Errors
    ///
    /// Returns an error if `pem` holds no certificate.
    pub fn add_root_certificate(mut self, pem: impl AsRef<[u8]>) -> Result<Self, ClientError> {
        self.roots.extend(certificates(pem.as_ref()).map_err(|error| {
            ClientError::new("root certificate: it is not in PEM form, from `-----BEGIN CERTIFICATE-----` on")
                .with_source(error)
        })?);
        Ok(self)
    }

    /// Speaks HTTP/2 with prior knowledge, that is without negotiation. Default: negotiates.
    pub const fn http2_prior_knowledge(mut self) -> Self {
        self.http2_prior_knowledge = true;
        self
    }

    /// Builds the transport.
    ///
    /// # Errors
    ///
    /// Returns an error if TLS cannot be set up: there are no root certificates, an added certificate cannot be read,
    /// or `SSL_CERT_FILE` or `SSL_CERT_DIR` cannot be read or names a file without certificates.
    pub fn build(self) -> Result<ReqwestTransport, ClientError> {
        check_environment()?;
        let lookups = Arc::new(SharedLookups::default());
        ReqwestTransport::from_make(Box::new(move |is_https| Ok(self.client(is_https, &lookups)?)))
    }

    fn client(
        &self,
        is_https: bool,
        lookups: &Arc<SharedLookups>,
    ) -> Result<reqwest::Client, reqwest::Error> {
        let builder = reqwest::Client::builder()
            .connect_timeout(self.connect_timeout)
            .redirect(Policy::none())
            // `AppleClient` decides about retries, and counts them.
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .referer(false)
            // Another crate's features of reqwest must not make it ask for compressed answers, and unpack them.
            .no_gzip()
            .no_brotli()
            .no_deflate()
            .no_zstd()
            .dns_resolver(Arc::clone(lookups))
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            // Keeps the connection for the next request, no matter how late.
            .pool_idle_timeout(None)
            // Detects a dead connection before a request runs into it.
            .http2_keep_alive_interval(Duration::from_secs(15))
            .http2_keep_alive_timeout(Duration::from_secs(5))
            .http2_keep_alive_while_idle(true);
        let builder = if self.http2_prior_knowledge { builder.http2_prior_knowledge() } else { builder };
        // `http` is for the loopback interface. A proxy would carry the provider token off the machine in the clear.
        if is_https {
            builder.https_only(true).tls_certs_merge(self.roots.iter().cloned()).build()
        } else {
            builder.no_proxy().tls_certs_only([]).build()
        }
    }
}

/// Parses the certificates in a PEM. None at all is an error.
fn certificates(pem: &[u8]) -> Result<Vec<Certificate>, BoxError> {
    let certificates = Certificate::from_pem_bundle(pem)?;
    if certificates.is_empty() { Err("there is no certificate in it".into()) } else { Ok(certificates) }
}

/// Checks the variables that name root certificates on operating systems without a certificate store. rustls itself
/// only logs what it cannot read there.
fn check_environment() -> Result<(), ClientError> {
    const READS_THEM: bool = cfg!(all(unix, not(target_vendor = "apple"), not(target_os = "android")));
    let set = |name| std::env::var_os(name).filter(|value| READS_THEM && !value.is_empty());
    let fail = |name, error| {
        ClientError::new(format!("{name}: no root certificates can be read from it: correct it, or unset it"))
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
        let longest = LongestAnswer::of(request.extensions());
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
            let pool = shared.pools.at(runtime.id(), url.origin().ascii_serialization(), || {
                let first = if is_https { &shared.https } else { &shared.http };
                (shared.make)(is_https).unwrap_or_else(|_| first.clone())
            });
            // At a warm pool nobody waits, and a call goes on even if its callers have left.
            let waits = !pool.is_warm();
            let _turn = pool.turn().await;
            if waits && interest.is_some_and(|interest| !interest.is_there()) {
                return Err(TransportError::not_sent());
            }
            let is_reused = pool.is_warm();
            let sent = Sent::new(&shared.pools, &pool);
            let answer = match pool.client.execute(request).await {
                Ok(response) if *response.url() != url => {
                    Err(TransportError::other("the client followed a redirect"))
                }
                Ok(response) => read(response, longest, is_reused).await,
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

/// Whether the error says that the connection, if there was one, cannot serve further requests.
fn is_over(error: &TransportError) -> bool {
    let is_shutdown = |error: &h2::Error| error.is_go_away();
    error.is_connect()
        || error.is_stale()
        || chain(error).any(|error| error.downcast_ref().is_some_and(is_shutdown))
}

async fn read(
    mut response: reqwest::Response,
    longest: usize,
    is_reused: bool,
) -> Result<Response<Bytes>, TransportError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(error, is_reused))? {
        // One byte too many says that the answer is too long. Its status and its headers count.
        let room = longest + 1 - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() > longest {
            break;
        }
    }
    let mut answer = Response::new(body.freeze());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}

/// `is_reused` says that the server has answered over this pool before.
fn failure(error: reqwest::Error, is_reused: bool) -> TransportError {
    // Drops the URL: the caller's error names the operation and the environment.
    let error = error.without_url();
    // A stream that the server resets says nothing about the connection.
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
