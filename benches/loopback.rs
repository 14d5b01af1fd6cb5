//! Misses over a socket: a fake Apple with a thread of its own, so that the time of the calling thread is what
//! the client side costs, with all that the kernel does for it.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cpu_time::ThreadTime;
use futures::{StreamExt, stream};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt, util::ServiceFn};
use tower_devicecheck::{
    AppleClient, AppleClientBuilder, DeviceCheck, DeviceCheckLayer, Environment, HttpTransport,
    ReqwestTransport,
    testing::{FakeApple, FakeAppleServer},
};

use crate::{
    baseline::{Afternoon, apple::AppleVerifier},
    common::{Bare, bare_service, header_value, request},
};

/// A fake Apple on the loopback interface.
pub(crate) struct Loopback {
    server: FakeAppleServer,
    /// Runs the server, on one thread.
    _runtime: Runtime,
}

impl Loopback {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(FakeApple::new().serve()).unwrap();
        Self { server, _runtime: runtime }
    }

    pub(crate) const fn server(&self) -> &FakeAppleServer {
        &self.server
    }

    pub(crate) const fn apple(&self) -> &FakeApple {
        self.server.apple()
    }

    pub(crate) fn fresh_token(&self) -> HeaderValue {
        header_value(self.apple().genuine_token(Environment::Production))
    }

    /// Our layer and client, over HTTP/2.
    pub(crate) fn ours(&self) -> DeviceCheck<ServiceFn<Bare>> {
        self.ours_with(|client| client.transport(ReqwestTransport::http2_prior_knowledge().unwrap()))
    }

    /// The same with hyper-util's client in the place of reqwest.
    pub(crate) fn ours_with_hyper_util(&self) -> DeviceCheck<ServiceFn<Bare>> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(Duration::from_secs(15))
            .http2_keep_alive_while_idle(true)
            .build::<_, Full<Bytes>>(connector);
        self.ours_with(|apple| apple.transport(HttpTransport::new(client)))
    }

    fn ours_with(
        &self,
        transport: impl FnOnce(AppleClientBuilder) -> AppleClientBuilder,
    ) -> DeviceCheck<ServiceFn<Bare>> {
        let client = AppleClient::builder(self.apple().credentials())
            .base_url(Environment::Production, self.server.url(Environment::Production));
        DeviceCheckLayer::new(transport(client).build().unwrap()).layer(bare_service())
    }

    /// The afternoon layer. reqwest's defaults are HTTP/1.1 on a plain-text connection and HTTP/2 with
    /// Apple, so HTTP/2 is the fair one.
    pub(crate) fn afternoon(&self, http2: bool) -> Afternoon<ServiceFn<Bare>, AppleVerifier> {
        let builder = reqwest::Client::builder();
        let builder = if http2 { builder.http2_prior_knowledge() } else { builder };
        let apple = self.apple();
        let verifier = AppleVerifier::new(
            builder.build().unwrap(),
            &self.server.url(Environment::Production),
            apple.team_id(),
            apple.key_id(),
            &apple.private_key().to_pem(),
        );
        Afternoon::new(bare_service(), verifier)
    }

    /// reqwest alone, with a request that was made before: what no client can do without.
    pub(crate) fn transport(
        &self,
    ) -> impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + use<>
    {
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let url = format!("{}/v1/validate_device_token", self.server.url(Environment::Production));
        let url: reqwest::Url = url.parse().unwrap();
        let apple = self.apple();
        let now = std::time::SystemTime::now();
        let bearer = apple.private_key().provider_token(apple.team_id(), apple.key_id(), now);
        let bearer = header_value(format!("Bearer {bearer}"));
        let timestamp = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let token = apple.genuine_token(Environment::Production);
        let body = Bytes::from(format!(
            r#"{{"device_token":"{token}","transaction_id":"{}","timestamp":{timestamp}}}"#,
            uuid::Uuid::new_v4()
        ));
        tower::service_fn(move |_: Request<()>| {
            let mut request = reqwest::Request::new(http::Method::POST, url.clone());
            request.headers_mut().insert("authorization", bearer.clone());
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(body.clone().into());
            let answer = client.execute(request);
            async move {
                let answer = answer.await.unwrap();
                let status = answer.status();
                answer.bytes().await.unwrap();
                let mut response = Response::new(());
                *response.status_mut() = status;
                Ok(response)
            }
        })
    }
}

/// The time that a number of requests took.
pub(crate) struct Spent {
    /// Of this thread.
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
    /// Of each request, in ascending order.
    pub(crate) latencies: Vec<Duration>,
}

/// Sends a request for each token, so many at a time, all of which must be admitted.
pub(crate) async fn spend<S, B>(service: &S, tokens: Vec<HeaderValue>, concurrency: usize) -> Spent
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    let requests: Vec<_> = tokens.into_iter().map(request).collect();
    let mut latencies = Vec::with_capacity(requests.len());
    let (cpu, wall) = (ThreadTime::now(), Instant::now());
    let mut calls = stream::iter(requests)
        .map(|request| async move {
            let started = Instant::now();
            let response = service.clone().oneshot(request).await.unwrap();
            assert!(response.status().is_success(), "{}", response.status());
            started.elapsed()
        })
        .buffer_unordered(concurrency);
    while let Some(latency) = calls.next().await {
        latencies.push(latency);
    }
    let (cpu, wall) = (cpu.elapsed(), wall.elapsed());
    latencies.sort_unstable();
    Spent { cpu, wall, latencies }
}
