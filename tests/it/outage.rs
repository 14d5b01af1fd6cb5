//! The real client over real sockets: crowds and outages, and the log of those. The clock stands still, so that no busy
//! machine meets a deadline.

use std::time::Duration;

use futures::future::{join_all, poll_immediate};
use http::{StatusCode, header::RETRY_AFTER};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower_devicecheck::{
    AppleClient, AppleClientBuilder, DeviceCheckLayer, Environment, Evidence, HttpTransport,
    ReqwestTransport,
    testing::{FakeApple, FakeAppleServer, Reply},
};

use crate::support::{App, Apple, Log, StandingClock};

async fn start() -> (FakeAppleServer, App) {
    start_with(|client| client).await
}

async fn start_with(change: impl FnOnce(AppleClientBuilder) -> AppleClientBuilder) -> (FakeAppleServer, App) {
    let fake = FakeApple::new();
    let server = fake.serve().await.unwrap();
    let client = AppleClient::builder(fake.credentials())
        .base_url(Environment::Production, server.url(Environment::Production))
        .base_url(Environment::Development, server.url(Environment::Development));
    let app = App::new(&DeviceCheckLayer::new(change(client).build().unwrap()));
    (server, app)
}

fn reqwest_over_http2(client: AppleClientBuilder) -> AppleClientBuilder {
    client.transport(ReqwestTransport::http2_prior_knowledge().unwrap())
}

fn hyper_util_over_http2(client: AppleClientBuilder) -> AppleClientBuilder {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let hyper =
        Client::builder(TokioExecutor::new()).http2_only(true).build::<_, Full<bytes::Bytes>>(connector);
    client.transport(HttpTransport::new(hyper))
}

#[tokio::test(start_paused = true)]
async fn five_hundred_requests_with_one_new_token_make_one_call() {
    let clock = StandingClock::new();
    let (server, app) = start().await;
    let apple = server.apple();
    let token = apple.genuine_token(Environment::Production);
    apple.script(Reply::normal().delay(Duration::from_millis(50)));
    let requests = join_all((0..500).map(|_| app.status(&token)));
    let statuses = clock.until(Duration::from_millis(50), requests).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK));
    assert_eq!((apple.calls(), server.connections(), app.inner.calls()), (1, 1, 500));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_tokens_at_once_make_one_provider_token() {
    let _clock = StandingClock::new();
    let (server, app) = start().await;
    let apple = server.apple();
    let tokens: Vec<_> = (0..1_000).map(|_| apple.genuine_token(Environment::Production)).collect();
    let statuses = join_all(tokens.iter().map(|token| app.status(token))).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
    assert_eq!((apple.calls(), apple.provider_tokens()), (1_000, 1));
}

#[tokio::test(start_paused = true)]
async fn five_hundred_tokens_at_once_share_a_connection_where_the_server_speaks_http2() {
    let _clock = StandingClock::new();
    for (server, app) in [start_with(reqwest_over_http2).await, start_with(hyper_util_over_http2).await] {
        let fake = server.apple();
        let tokens: Vec<_> = (0..500).map(|_| fake.genuine_token(Environment::Production)).collect();
        let statuses = join_all(tokens.iter().map(|token| app.status(token))).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
        assert_eq!((fake.calls(), server.connections(), fake.provider_tokens()), (500, 1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_crowd_waits_for_the_first_answer_before_it_opens_connections() {
    let clock = StandingClock::new();
    let (server, app) = start().await;
    let apple = server.apple();
    apple.always(Reply::hang());
    let tokens: Vec<_> = (0..50).map(|_| apple.genuine_token(Environment::Production)).collect();
    let mut crowd: Vec<_> = tokens.iter().map(|token| Box::pin(app.status(token))).collect();
    while apple.calls() == 0 {
        for request in &mut crowd {
            assert!(poll_immediate(request).await.is_none());
        }
        tokio::task::yield_now().await;
    }
    assert_eq!((apple.calls(), server.connections()), (1, 1));
    drop(crowd);

    apple.clear();
    // The call that was sent goes on, and the crowd waits half a second for its answer.
    let requests = join_all(tokens.iter().map(|token| app.status(token)));
    let statuses = clock.until(Duration::from_millis(50), requests).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
    assert_eq!(apple.calls(), 51);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_503_in_time_and_service_returns_by_itself() {
    outage(start().await).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_over_another_http_client_is_the_same() {
    outage(start_with(hyper_util_over_http2).await).await;
}

async fn outage((server, app): (FakeAppleServer, App)) {
    let clock = StandingClock::new();
    let apple = server.apple();
    let remembered = apple.genuine_token(Environment::Production);
    assert_eq!(app.status(&remembered).await, StatusCode::OK);

    let replies = [
        ("500", Reply::status(500)),
        ("503", Reply::status(503)),
        ("reset", Reply::reset()),
        ("hang", Reply::hang()),
        ("rubbish", Reply::status(400).body("\u{0}\u{1}rubbish")),
        ("truncated", Reply::normal().cut_short()),
        ("oversized", Reply::oversized(1 << 20)),
    ];
    for (name, reply) in replies {
        apple.always(reply);
        let asked = apple.calls();
        let tokens: Vec<_> = (0..10).map(|_| apple.genuine_token(Environment::Production)).collect();
        let requests = join_all(tokens.iter().map(|token| app.get(token)));
        for response in clock.until(Duration::from_millis(100), requests).await {
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{name}");
            assert!(response.headers().contains_key(RETRY_AFTER), "{name}");
        }
        assert!((10..=20).contains(&(apple.calls() - asked)), "{name}: at most one retry each");

        assert_eq!(app.status(&remembered).await, StatusCode::OK, "{name}: what is remembered is served");
        assert_eq!(app.evidence(), Evidence::CACHE, "{name}");

        apple.clear();
        // The client learns which of its connections have ended.
        clock.advance(Duration::from_millis(100)).await;
        assert_eq!(app.status(&tokens[0]).await, StatusCode::OK, "{name}: back by itself");
    }
}

#[tokio::test(start_paused = true)]
async fn the_plug_is_pulled_and_put_back() {
    plug(start().await).await;
    plug(start_with(hyper_util_over_http2).await).await;
}

async fn plug((mut server, app): (FakeAppleServer, App)) {
    let _clock = StandingClock::new();
    let apple = server.apple().clone();
    let (before, after) =
        (apple.genuine_token(Environment::Production), apple.genuine_token(Environment::Production));
    assert_eq!(app.status(&before).await, StatusCode::OK);

    server.stop().await;
    let response = app.get(&after).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(app.status(&before).await, StatusCode::OK);
    assert_eq!(apple.calls(), 1);

    server.restart().await.unwrap();
    assert_eq!(app.status(&after).await, StatusCode::OK);
    assert_eq!(apple.calls(), 2);
}

#[tokio::test]
async fn g11_an_outage_is_two_lines_in_the_log() {
    for (reply, level) in
        [(Reply::status(500), "WARN"), (Reply::status(429), "WARN"), (Reply::status(404), "ERROR")]
    {
        let apple = Apple::new();
        let log = Log::default();
        let _guard = log.listen(tracing::Level::INFO);
        let app = App::new(&apple.layer());
        let known = apple.genuine();
        assert_eq!(app.status(&known).await, StatusCode::OK);
        apple.fake.always(reply);
        for _ in 0..20 {
            assert!(app.status(&apple.genuine()).await.is_server_error());
            assert_eq!(app.status(&known).await, StatusCode::OK, "remembered, so it tells nothing");
        }
        let logged = log.take();
        assert_eq!(logged.lines().count(), 1, "{logged}");
        assert!(logged.contains(level) && logged.contains("error="), "{logged}");

        apple.fake.clear();
        for _ in 0..3 {
            assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
        }
        let logged = log.take();
        assert_eq!(logged.lines().count(), 1, "{logged}");
        assert!(logged.contains("INFO") && logged.contains("rejections=20"), "{logged}");
    }
}

#[tokio::test(start_paused = true)]
async fn g11_an_apple_that_fails_now_and_then_does_not_fill_the_log() {
    let apple = Apple::new();
    let log = Log::default();
    let _guard = log.listen(tracing::Level::INFO);
    let app = App::new(&apple.layer());
    for _ in 0..100 {
        for reply in [Reply::status(500), Reply::normal()] {
            apple.fake.always(reply);
            app.status(&apple.genuine()).await;
            tokio::time::advance(Duration::from_millis(50)).await;
        }
    }
    let logged = log.take();
    assert!((2..=4).contains(&logged.lines().count()), "{logged}");
    // One that lasts is told.
    apple.fake.always(Reply::status(500));
    for _ in 0..60 {
        app.status(&apple.genuine()).await;
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    let logged = log.take();
    assert_eq!(logged.matches("WARN").count(), 1, "{logged}");
}
