//! The same over sockets, with the real client.

use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use tokio::time::Instant;
use tower_devicecheck::{
    AppleClient, DeviceCheckLayer, Environment, ReqwestTransport,
    testing::{FakeApple, FakeAppleServer, Reply},
};

use crate::support::{App, StandingClock};

const SECOND: Duration = Duration::from_secs(1);

async fn start(slots: usize) -> (FakeAppleServer, App) {
    let server = FakeApple::new().serve().await.unwrap();
    let client = AppleClient::builder(server.apple().credentials())
        .base_url(Environment::Production, server.url(Environment::Production))
        .transport(ReqwestTransport::http2_prior_knowledge().unwrap())
        .in_flight_limit(slots)
        .build()
        .unwrap();
    (server, App::new(&DeviceCheckLayer::new(client)))
}

#[tokio::test(start_paused = true)]
async fn a06_over_sockets_apple_is_used_to_the_full() {
    let clock = StandingClock::new();
    // Apple bears 64 calls a second, and is offered 192.
    let (server, app) = start(64).await;
    let apple = server.apple();
    apple.always(Reply::normal().delay(SECOND));
    let started = Instant::now();
    let mut requests = Vec::new();
    while started.elapsed() < 14 * SECOND {
        let (app, token) = (app.clone(), apple.genuine_token(Environment::Production));
        requests.push(tokio::spawn(async move {
            let arrived = Instant::now();
            let status = app.status(&token).await;
            (status, arrived.elapsed(), started.elapsed())
        }));
        clock.advance(SECOND / 192).await;
    }
    let answers = clock.until(SECOND / 10, join_all(requests)).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    let admitted = |(status, _, _): &&(StatusCode, Duration, Duration)| *status == StatusCode::OK;
    for window in 3..7 {
        let (from, to) = (2 * window * SECOND, 2 * (window + 1) * SECOND);
        let count = answers.iter().filter(admitted).filter(|(_, _, at)| (from..to).contains(at)).count();
        assert!(count * 10 >= 9 * 128, "window {window}: {count} of 128");
    }
    let mut waits: Vec<_> =
        answers.iter().filter(|answer| !admitted(answer)).map(|(_, wait, _)| *wait).collect();
    waits.sort_unstable();
    assert!(waits[waits.len() / 2] < Duration::from_millis(100), "{:?}", waits[waits.len() / 2]);
    assert!(apple.calls() <= answers.iter().filter(admitted).count() + 64);
}
