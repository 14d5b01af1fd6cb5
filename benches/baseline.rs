//! The rival: the layer that a good engineer puts together in an afternoon from moka and SHA-256. Verdicts in
//! moka, keyed by the token's SHA-256, coalesced by `try_get_with`, with a deadline; the token header is
//! removed and an extension inserted, as ours does.

pub(crate) mod apple;

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use moka::future::Cache;
use sha2::{Digest, Sha256};
use tower::Service;

pub(crate) const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-apple-device-token");

/// The value that the afternoon layer leaves in the extensions.
#[derive(Clone)]
pub(crate) struct Verified {
    _digest: [u8; 32],
}

/// Asks Apple; the error stands for everything that can go wrong.
pub(crate) trait Verify: Send + Sync + 'static {
    fn verify(&self, token: HeaderValue) -> impl Future<Output = Result<bool, ()>> + Send;
}

pub(crate) struct Afternoon<S, V> {
    inner: S,
    shared: Arc<Shared<V>>,
}

struct Shared<V> {
    verifier: V,
    verdicts: Cache<[u8; 32], bool>,
}

impl<S, V> Afternoon<S, V> {
    pub(crate) fn new(inner: S, verifier: V) -> Self {
        let verdicts = Cache::builder().max_capacity(100_000).time_to_live(Duration::from_secs(300)).build();
        Self { inner, shared: Arc::new(Shared { verifier, verdicts }) }
    }
}

impl<S: Clone, V> Clone for Afternoon<S, V> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<S, V, B> Service<Request<()>> for Afternoon<S, V>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Default,
    V: Verify,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<()>) -> Self::Future {
        let unready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, unready);
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let Some(token) = request.headers_mut().remove(TOKEN_HEADER) else {
                return Ok(answer(StatusCode::UNAUTHORIZED));
            };
            let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
            // `get` first: `try_get_with` costs more where the entry is there.
            let verdict = match shared.verdicts.get(&digest).await {
                Some(genuine) => Ok(genuine),
                None => {
                    let ask = async {
                        let deadline = Duration::from_secs(3);
                        tokio::time::timeout(deadline, shared.verifier.verify(token)).await.unwrap_or(Err(()))
                    };
                    shared.verdicts.try_get_with(digest, ask).await
                }
            };
            match verdict {
                Ok(true) => {
                    request.extensions_mut().insert(Verified { _digest: digest });
                    inner.call(request).await
                }
                Ok(false) => Ok(answer(StatusCode::UNAUTHORIZED)),
                Err(_) => Ok(answer(StatusCode::SERVICE_UNAVAILABLE)),
            }
        })
    }
}

fn answer<B: Default>(status: StatusCode) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = status;
    response
}
