//! The HTTP client, as a tower service.

use std::{
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Bytes, HttpBody},
    http::{Request, Response, uri::Scheme},
};
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tower::Service;
use tower_devicecheck::BoxError;

/// Sends requests to providers.
#[derive(Clone)]
pub(crate) struct Client {
    https: reqwest::Client,
    /// Knows no proxy: `http` is for the loopback interface, and through `HTTP_PROXY` the key would leave it.
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new(idle_connections: usize) -> Result<Self, BoxError> {
        let builder = || {
            reqwest::Client::builder()
                // The client shall see what the provider says, and the key goes nowhere else.
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(Duration::from_secs(10))
                // The buffers of a connection that is kept hold the last request, key included.
                .pool_max_idle_per_host(idle_connections)
        };
        Ok(Self { https: builder().build()?, http: builder().no_proxy().build()? })
    }
}

impl<B> Service<Request<B>> for Client
where
    B: HttpBody<Data = Bytes, Error = BoxError> + Send + 'static,
{
    type Response = Response<reqwest::Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let is_http = request.uri().scheme() == Some(&Scheme::HTTP);
        let client = if is_http { self.http.clone() } else { self.https.clone() };
        let request = request.map(|body| {
            let (length, is_empty) = (body.size_hint(), body.is_end_stream());
            reqwest::Body::wrap(Shared { body: Mutex::new(Box::pin(body)), length, is_empty })
        });
        Box::pin(async move {
            let response = client.execute(request.try_into()?).await.map_err(reqwest::Error::without_url)?;
            Ok(response.into())
        })
    }
}

/// reqwest wants bodies that are `Sync`. Nobody ever waits for the lock.
struct Shared<B> {
    body: Mutex<Pin<Box<B>>>,
    length: SizeHint,
    is_empty: bool,
}

impl<B: HttpBody> HttpBody for Shared<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let body = self.get_mut().body.get_mut().unwrap_or_else(PoisonError::into_inner);
        body.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty
    }

    fn size_hint(&self) -> SizeHint {
        self.length
    }
}
