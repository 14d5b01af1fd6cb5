//! Faults that are still there. Each test fails until one is mended; then it moves to where it belongs.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use http::{Method, Request, Response, StatusCode};
use tower::{Service, service_fn};
use tower_devicecheck::{
    Environment, Route,
    cache::{CacheError, CachedVerdict, VerdictCache, VerdictKey},
    testing::Reply,
};

use crate::support::{App, Apple, Counter};

/// gRPC messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, out: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        out.put(item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, input: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(input.copy_to_bytes(input.remaining())))
    }
}

/// What tonic generates for a service with one method: it looks at the path only.
#[derive(Clone, Default)]
struct Generated {
    reached: Counter,
}

impl tonic::server::NamedService for Generated {
    const NAME: &'static str = "pkg.Service";
}

impl Service<Request<tonic::body::Body>> for Generated {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let reached = self.reached.clone();
        Box::pin(async move {
            let method = service_fn(move |request: tonic::Request<Bytes>| {
                reached.add();
                std::future::ready(Ok::<_, tonic::Status>(tonic::Response::new(request.into_inner())))
            });
            Ok(tonic::server::Grpc::new(Raw).unary(method, request).await)
        })
    }
}

#[tokio::test]
async fn forged_preflights_do_not_reach_tonic_methods() {
    let apple = Apple::new();
    let generated = Generated::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/pkg.Service/Method", listener.local_addr().unwrap());
    let incoming = futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server = tonic::transport::Server::builder().layer(apple.layer()).add_service(generated.clone());
    tokio::spawn(server.serve_with_incoming(incoming));

    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    for content_type in [Some("application/grpc"), None] {
        let mut request = client
            .request(Method::OPTIONS, &url)
            .header("origin", "https://x")
            .header("access-control-request-method", "POST")
            // Without a length, as in any stream.
            .body(reqwest::Body::wrap(http_body_util::StreamBody::new(futures::stream::once(async {
                Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(b"\0\0\0\0\x02hi")))
            }))));
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let _ = request.send().await.unwrap();
        assert_eq!(generated.reached.get(), 0, "{content_type:?}: the method ran without a device token");
    }
    assert_eq!(apple.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_to_development_keeps_the_deadline_of_a_request() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_routing(Route::ProductionThenDevelopment));
    apple.fake.script(Reply::normal().delay(Duration::from_millis(2_900)));
    apple.fake.always(Reply::hang());
    let started = tokio::time::Instant::now();
    let status = app.status(&apple.fake.genuine_token(Environment::Development)).await;
    assert_eq!((status, apple.calls()), (StatusCode::SERVICE_UNAVAILABLE, 2));
    assert!(started.elapsed() <= Duration::from_millis(5_500), "{:?}", started.elapsed());
}

/// Never answers.
struct Hangs;

impl VerdictCache for Hangs {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        std::future::pending().await
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        std::future::pending().await
    }
}

/// Has nothing, and keeps nothing, forever.
struct HangsOnPut;

impl VerdictCache for HangsOnPut {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Ok(None)
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_hangs_is_a_miss() {
    let apple = Apple::new();
    for layer in [apple.layer().with_cache(Hangs), apple.layer().with_cache(HangsOnPut)] {
        let app = App::new(&layer);
        let token = apple.genuine();
        let status = tokio::time::timeout(Duration::from_secs(60), app.status(&token)).await;
        assert_eq!(status.expect("an answer within a minute"), StatusCode::OK);
    }
}

/// Panics when it is to keep something.
struct PanicsOnPut;

impl VerdictCache for PanicsOnPut {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Ok(None)
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        panic!("a panic, as this test wants")
    }
}

#[tokio::test]
async fn a_cache_that_panics_on_put_does_not_take_the_verdict_with_it() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_cache(PanicsOnPut));
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!(apple.calls(), 1);
}
