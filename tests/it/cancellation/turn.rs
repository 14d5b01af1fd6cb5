//! Clients that leave while their calls wait for the first answer of a cold server.

use std::time::Duration;

use http::StatusCode;
use tower_devicecheck::{
    AppleClient, Availability, DeviceCheckLayer, Environment, ReqwestTransport, testing::FakeApple,
    testing::Reply,
};

use crate::support::{App, StandingClock, keep_events_enabled};

const PRODUCTION: Environment = Environment::Production;

/// More than the failures in a row by which Apple is known to be down.
const CROWD: usize = 40;

/// The first request to a cold server goes alone. Those whose clients leave before their turn are not sent, and say
/// nothing about Apple.
#[tokio::test(start_paused = true)]
async fn a22_calls_that_are_not_sent_are_no_outage() {
    keep_events_enabled();
    let clock = StandingClock::new();
    let tick = Duration::from_millis(10);
    let fake = FakeApple::new();
    let server = fake.serve().await.unwrap();
    let client = AppleClient::builder(fake.credentials())
        .transport(ReqwestTransport::http2_prior_knowledge().unwrap())
        .base_url(PRODUCTION, server.url(PRODUCTION))
        .build()
        .unwrap();
    let app = App::new(&DeviceCheckLayer::new(client.clone()));
    let ask = || {
        let (app, token) = (app.clone(), fake.genuine_token(PRODUCTION));
        tokio::spawn(async move { app.status(&token).await })
    };
    fake.script(Reply::normal().delay(Duration::from_millis(300)));
    let first = ask();
    clock
        .until(tick, async {
            while fake.calls() == 0 {
                tokio::task::yield_now().await
            }
        })
        .await;
    let crowd: Vec<_> = (0..CROWD).map(|_| ask()).collect();
    clock.advance(tick).await;
    crowd.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(clock.until(tick, first).await.unwrap(), StatusCode::OK);
    clock.advance(tick).await;
    assert_eq!(client.availability(PRODUCTION), Availability::Available);
    assert_eq!(clock.until(tick, ask()).await.unwrap(), StatusCode::OK);
    assert_eq!(fake.calls(), 2);
}
