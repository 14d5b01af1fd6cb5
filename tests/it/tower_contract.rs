//! The duties of a tower middleware.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{join_all, poll_immediate};
use http::{Request, Response, StatusCode, request};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_devicecheck::{DeviceCheckLayer, Enforcement, Route, testing::Reply};

use crate::{
    readiness::ReadinessProbe,
    support::{Apple, get, plain},
};

type Body = Full<bytes::Bytes>;

async fn answer(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::default()))
}

#[tokio::test]
async fn r20_the_service_that_was_polled_ready_is_the_one_called() {
    let apple = Apple::new();
    let exempt = |_: &request::Parts| Route::Exempt;
    let monitor = || apple.layer().with_enforcement(Enforcement::Monitor);
    let token = apple.genuine();
    let cases: Vec<(&str, DeviceCheckLayer, Request<Body>, u16)> = vec![
        ("exempt", apple.layer().with_routing(exempt), plain(), 200),
        ("miss", apple.layer(), get(&token), 200),
        ("refused", apple.layer(), get(&apple.fake.forged_token()), 401),
        ("no token", apple.layer(), plain(), 401),
        ("monitored, no token", monitor(), plain(), 200),
        ("monitored, miss", monitor(), get(&token), 200),
        ("monitored, refused", monitor(), get(&apple.fake.forged_token()), 200),
    ];
    for (name, layer, request, status) in cases {
        let mut service = layer.layer(ReadinessProbe::new(service_fn(answer)));
        // The second round is a hit where the first was a miss.
        for round in 1..=2 {
            let response = service.ready().await.unwrap().call(request.clone()).await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{name}, round {round}");
        }
        // And on a clone that has not been polled.
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{name}, clone");
    }
    assert_eq!(apple.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn r21_a_slow_apple_does_not_exhaust_a_concurrency_limit_inside() {
    let apple = Apple::new();
    let layer = apple.layer();
    let remembered = apple.genuine();
    let service = layer.layer(ConcurrencyLimitLayer::new(1).layer(service_fn(answer)));
    assert_eq!(service.clone().oneshot(get(&remembered)).await.unwrap().status(), StatusCode::OK);

    apple.fake.always(Reply::hang());
    // One connection's service each, polled ready and then waiting for Apple.
    let mut waiting: Vec<_> = Vec::new();
    for _ in 0..10 {
        let mut service = service.clone();
        let token = apple.genuine();
        service.ready().await.unwrap();
        let mut call = Box::pin(service.call(get(&token)));
        assert!(poll_immediate(&mut call).await.is_none());
        waiting.push((service, call));
    }
    let hit = tokio::time::timeout(Duration::from_millis(1), service.clone().oneshot(get(&remembered))).await;
    assert_eq!(hit.expect("the limit's one permit is free").unwrap().status(), StatusCode::OK);
    assert_eq!(apple.calls(), 11);
    for (_, call) in waiting {
        assert_eq!(call.await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn r21_a_rejected_request_gives_its_permit_back_at_once() {
    let apple = Apple::new();
    let service = apple.layer().layer(ConcurrencyLimitLayer::new(1).layer(service_fn(answer)));
    let mut idle_connection = service.clone();
    assert_eq!(idle_connection.ready().await.unwrap().call(plain()).await.unwrap().status(), 401);
    let other = tokio::time::timeout(Duration::from_secs(60), service.oneshot(get(&apple.genuine()))).await;
    assert_eq!(other.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(apple.calls(), 1);
    drop(idle_connection);
}

/// Takes one request after each time that it was asked whether it is ready. A clone was not asked.
#[derive(Default)]
struct Strict {
    is_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request<Body>> for Strict {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready));
        assert!(request.extensions().get::<tower_devicecheck::VerifiedDevice>().is_some());
        std::future::ready(Ok(Response::new(Body::default())))
    }
}

#[tokio::test(start_paused = true)]
async fn the_inner_service_is_ready_when_it_is_called_after_the_verdict() {
    let apple = Apple::new();
    let mut service = apple.layer().layer(Strict::default());
    let response = service.ready().await.unwrap().call(get(&apple.genuine())).await;
    assert_eq!(response.unwrap().status(), StatusCode::OK);
    assert_eq!(apple.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_in_flight_limit_requests_wait_and_beyond_the_waiting_limit_they_are_told_so() {
    let fake = tower_devicecheck::testing::FakeApple::new();
    let client = tower_devicecheck::AppleClient::builder(fake.credentials())
        .transport(fake.transport())
        .in_flight_limit(2)
        .waiting_limit(3)
        .build()
        .unwrap();
    let service = DeviceCheckLayer::new(client).layer(service_fn(answer));
    fake.always(Reply::normal().delay(Duration::from_secs(1)));
    let tokens: Vec<_> =
        (0..10).map(|_| fake.genuine_token(tower_devicecheck::Environment::Production)).collect();
    let started = tokio::time::Instant::now();
    let answers = join_all(tokens.iter().map(|token| async {
        let response = service.clone().oneshot(get(token)).await.unwrap();
        (
            response.status().as_u16(),
            response.headers().get("retry-after").cloned(),
            started.elapsed().as_secs(),
        )
    }))
    .await;
    let admitted: Vec<_> = answers.iter().filter(|(status, ..)| *status == 200).collect();
    let turned_away: Vec<_> = answers.iter().filter(|(status, ..)| *status == 503).collect();
    assert_eq!((admitted.len(), turned_away.len()), (5, 5));
    assert!(turned_away.iter().all(|(_, retry_after, seconds)| {
        retry_after.as_ref().is_some_and(|value| ["3", "4", "5"].iter().any(|s| value == s)) && *seconds == 0
    }));
    assert_eq!(fake.calls(), 5);
}
