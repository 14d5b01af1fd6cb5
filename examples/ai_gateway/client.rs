//! The HTTP client, as a tower service: hyper's, with connections that are kept.

use std::{
    io,
    path::Path,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Bytes, HttpBody},
    http::{Request, Response, Uri},
};
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client as HyperClient,
            connect::{HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tower::Service;
use tower_devicecheck::BoxError;

use super::hidden_keys::{HiddenKeys, Revealing};

/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(60);

/// Sends requests to providers, and follows no redirects. A request whose first byte went out is never repeated: hyper
/// tries another connection only for one that it had not begun to send.
pub(crate) struct Client<B> {
    // The services around it are cloned for each request.
    hyper: Arc<HyperClient<Revealing<HttpsConnector<Dial>>, B>>,
    keys: HiddenKeys,
}

impl<B> Clone for Client<B> {
    fn clone(&self) -> Self {
        Self { hyper: Arc::clone(&self.hyper), keys: self.keys.clone() }
    }
}

impl<B> Client<B>
where
    B: HttpBody<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
{
    /// Makes a client that keeps so many idle connections to each provider. It trusts the roots of the platform, and
    /// those in a file.
    pub(crate) fn new(idle_connections: usize, roots: Option<&Path>) -> Result<Self, BoxError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let more: Result<Vec<CertificateDer<'static>>, _> = match roots {
            Some(path) => CertificateDer::pem_file_iter(path).and_then(Iterator::collect),
            None => Ok(Vec::new()),
        };
        let more = more.map_err(|_| "it is not a file of certificates in PEM")?;
        if roots.is_some() && more.is_empty() {
            return Err("it has no certificate in PEM".into());
        }
        let verifier = Arc::new(Verifier::new_with_extra_roots(more, Arc::clone(&provider))?);
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            // Not dangerous: it is the platform's verifier.
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            // The keys are put into the text of HTTP/1.1.
            .enable_http1()
            .wrap_connector(Dial::new());
        let keys = HiddenKeys::default();
        let hyper = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(idle_connections)
            .build(keys.reveal(https));
        Ok(Self { hyper: Arc::new(hyper), keys })
    }
}

impl<B> Service<Request<B>> for Client<B>
where
    B: HttpBody<Data = Bytes, Error = BoxError> + Send + Unpin + 'static,
{
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let hidden = self.keys.hide(request.headers_mut());
        let answer = self.hyper.request(request);
        Box::pin(async move {
            let answer = answer.await;
            // The head is out, or never will be.
            drop(hidden);
            Ok(answer?)
        })
    }
}

/// Connects to a provider, if need be through the proxy that `HTTPS_PROXY` or `ALL_PROXY` names. Knows no proxy for
/// `http`, which is for the loopback interface: through a proxy the key would leave it.
#[derive(Clone)]
pub(crate) struct Dial {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Dial {
    fn new() -> Self {
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        direct.set_nodelay(true);
        direct.set_connect_timeout(Some(Duration::from_secs(10)));
        Self { direct, proxies: Arc::new(Matcher::from_env()) }
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let is_https = uri.scheme_str() == Some("https");
        let proxy = if is_https { self.proxies.intercept(&uri) } else { None };
        let mut direct = self.direct.clone();
        Box::pin(async move {
            let Some(proxy) = proxy else { return Ok(direct.call(uri).await?) };
            if proxy.uri().scheme_str() != Some("http") {
                return Err(io::Error::other("a proxy must be named by an http:// URL").into());
            }
            let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
            if let Some(credentials) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(credentials.clone());
            }
            Ok(tunnel.call(uri).await?)
        })
    }
}
