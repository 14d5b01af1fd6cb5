//! The adapter from an HTTP client to a transport.

use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tower_service::Service;

use crate::BoxError;
use crate::apple::transport::{LongestAnswer, TransportError};

/// Adapts an HTTP client that is a tower service, such as hyper-util's, to a transport.
///
/// Such a client returns the response body as a stream, and this transport reads the stream to its end. A body over 4
/// KiB is an error, and its rest is not read. Dropping a call drops the client's future.
///
/// This transport passes the client's errors on. [`AppleClient`](crate::AppleClient) retries if one of their causes is
/// an [`std::io::Error`] that reports a failed connect, or, with the feature `reqwest`, an HTTP/2 error that reports an
/// unprocessed request. If your client can tell more, map its errors to [`TransportError`]: a failed connect
/// ([`connect`](TransportError::connect)), or a reused connection that ended ([`stale`](TransportError::stale)).
///
/// After a timeout, the HTTP client picks the connection for the retry. hyper-util's client keeps a silent HTTP/2
/// connection until its own pings find it dead; set short ping intervals. A `ReqwestTransport` replaces such a
/// connection at once.
///
/// hyper-util's client takes a seventh to a fifth less processor time than a `ReqwestTransport`
/// (`docs/performance.md`). It does not support proxies, and its connector panics outside a tokio runtime. Without
/// `set_nodelay`, its connector may keep a token back until the server's delayed acknowledgement, on Linux for 40 ms. This
/// example configures it like `ReqwestTransport`:
///
/// ```
/// use http::Request;
/// use http_body_util::Full;
/// use hyper_util::{
///     client::legacy::{Client, Error, connect::Connect},
///     rt::{TokioExecutor, TokioTimer},
/// };
/// use std::time::Duration;
/// use tower::ServiceExt;
/// use tower_devicecheck::{AppleClient, BoxError, ClientError, Credentials, HttpTransport, TransportError};
///
/// /// For Apple, the connector must speak TLS and offer only HTTP/2, such as hyper-rustls's with `enable_http2`,
/// /// around an `HttpConnector` with `set_nodelay` and `set_connect_timeout`.
/// fn apple<C>(credentials: Credentials, connector: C) -> Result<AppleClient, ClientError>
/// where
///     C: Connect + Clone + Send + Sync + 'static,
/// {
///     let client = Client::builder(TokioExecutor::new())
///         .timer(TokioTimer::new())
///         .pool_idle_timeout(None)
///         .http2_only(true)
///         .http2_keep_alive_interval(Duration::from_secs(15))
///         .http2_keep_alive_timeout(Duration::from_secs(5))
///         .http2_keep_alive_while_idle(true)
///         .build::<C, Full<bytes::Bytes>>(connector);
///     let client = ServiceExt::<Request<Full<bytes::Bytes>>>::map_err(client, |error: Error| -> BoxError {
///         if error.is_connect() { TransportError::connect(error).into() } else { error.into() }
///     });
///     AppleClient::builder(credentials).transport(HttpTransport::new(client)).build()
/// }
/// ```
#[derive(Clone, Debug)]
pub struct HttpTransport<S> {
    client: S,
}

impl<S> HttpTransport<S> {
    /// Makes a transport that sends requests with `client`. The client must not follow redirects.
    #[must_use]
    pub const fn new(client: S) -> Self {
        Self { client }
    }
}

impl<S, B> Service<Request<Bytes>> for HttpTransport<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<Bytes>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Bytes>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.client.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let longest = LongestAnswer::of(request.extensions());
        let answer = self.client.call(request.map(Full::new));
        Box::pin(async move {
            let (head, body) = answer.await.map_err(Into::into)?.into_parts();
            let body = Limited::new(body, longest).collect().await;
            let body = match body {
                Ok(body) => body.to_bytes(),
                // One byte too many says that the answer is too long. Its status and its headers count.
                Err(error) if error.is::<LengthLimitError>() => vec![b' '; longest + 1].into(),
                Err(error) => return Err(TransportError::other(error).into()),
            };
            Ok(Response::from_parts(head, body))
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::apple::transport::is_worth_repeating;

    #[tokio::test]
    async fn a_long_answer_is_not_read_to_its_end() {
        let frame = || Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(&[b'x'; 1024])));
        for (frames, is_good) in [(4, true), (5, false), (usize::MAX, false)] {
            let client = service_fn(move |request: Request<Full<Bytes>>| {
                assert_eq!(request.uri(), "https://apple/v1");
                let body = futures_util::stream::iter(std::iter::repeat_with(frame).take(frames));
                std::future::ready(Ok::<_, std::io::Error>(Response::new(StreamBody::new(body))))
            });
            let request = Request::post("https://apple/v1").body(Bytes::new()).unwrap();
            let answer = HttpTransport::new(client).oneshot(request).await;
            assert_eq!(answer.is_ok_and(|answer| answer.body().len() == 4096), is_good, "{frames}");
        }
    }

    #[tokio::test]
    async fn what_fails_in_an_answer_is_not_repeated() {
        let client = service_fn(|_: Request<Full<Bytes>>| {
            let frame =
                Err::<http_body::Frame<Bytes>, _>(std::io::Error::from(std::io::ErrorKind::NotConnected));
            let body = StreamBody::new(futures_util::stream::iter([frame]));
            std::future::ready(Ok::<_, std::io::Error>(Response::new(body)))
        });
        let request = Request::post("https://apple/v1").body(Bytes::new()).unwrap();
        let error = HttpTransport::new(client).oneshot(request).await.unwrap_err();
        assert!(!is_worth_repeating(&*error), "{error:?}");
    }

    #[cfg(feature = "reqwest")]
    #[tokio::test]
    async fn what_the_server_cannot_have_acted_on_is_known_of_hyper_utils_client_too() {
        use hyper_util::{client::legacy::Client, rt::TokioExecutor};
        use tokio::net::TcpListener;

        let client = || {
            let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<Bytes>>();
            HttpTransport::new(client)
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let request = || {
            let url = format!("http://{}/", listener.local_addr().unwrap());
            Request::post(url).body(Bytes::new()).unwrap()
        };
        for (reason, expected) in [(h2::Reason::REFUSED_STREAM, true), (h2::Reason::CANCEL, false)] {
            let refuse = async {
                let (socket, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_reset(reason);
                }
            };
            let (answer, ()) = futures_util::future::join(client().oneshot(request()), refuse).await;
            assert_eq!(is_worth_repeating(&*answer.unwrap_err()), expected, "{reason}");
        }

        let request = request();
        drop(listener);
        assert!(is_worth_repeating(&*client().oneshot(request).await.unwrap_err()));
    }
}
