//! Single use on a Redis that is slow, far away, or waited for by many.

use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use tower_devicecheck::{Redis, Rejection, replay::RedisReplayGuard, testing::Reply};

use crate::{
    redis_proxy::{Proxy, Stalling},
    redis_server::{RedisServer, client},
    support::{App, Apple, rejection},
};

/// A stall at one step of a request, and whether Apple fails, so that the second step is the release.
async fn stall(deadline: Option<Duration>, stalls: Option<usize>, delay: Duration, apple_fails: bool) {
    const DEVICES: usize = 50;
    let server = RedisServer::start();
    let connection = client(&server).await;
    let apple = Apple::new();
    let devices = (0..DEVICES).map(async |_| {
        let mut redis = Redis::new(Stalling::new(connection.clone(), stalls, delay));
        if let Some(deadline) = deadline {
            redis = redis.with_deadline(deadline);
        }
        let apple = if apple_fails { Apple::new() } else { apple.clone() };
        let app = App::new(&apple.layer().with_single_use(RedisReplayGuard::new(redis)));
        let token = apple.genuine();
        if apple_fails {
            apple.fake.script(Reply::status(400));
        }
        let mut response = app.get(&token).await;
        let mut tries = 1;
        while response.status() == StatusCode::SERVICE_UNAVAILABLE && tries < 4 {
            let retry_after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            tokio::time::sleep(Duration::from_secs(retry_after)).await;
            response = app.get(&token).await;
            tries += 1;
        }
        assert_eq!(
            response.status(),
            StatusCode::OK,
            "try {tries}: {:?}",
            response.extensions().get::<Rejection>()
        );
        assert!(tries <= 2, "{tries} tries");
        assert_eq!(app.inner.calls(), 1);
        assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken, "once");
    });
    join_all(devices).await;
}

const DEADLINE: Option<Duration> = Some(Duration::from_millis(50));
const HICCUP: Duration = Duration::from_millis(120);

#[tokio::test]
async fn c01_a_hiccup_while_the_token_is_reserved() {
    stall(DEADLINE, Some(0), HICCUP, false).await;
    stall(None, Some(0), HICCUP, false).await;
}

#[tokio::test]
async fn c01_a_hiccup_while_the_token_is_confirmed() {
    stall(DEADLINE, Some(1), HICCUP, false).await;
    stall(None, Some(1), HICCUP, false).await;
}

#[tokio::test]
async fn c01_a_hiccup_while_the_token_is_released() {
    stall(DEADLINE, Some(1), HICCUP, true).await;
    stall(None, Some(1), HICCUP, true).await;
}

#[tokio::test]
async fn c01_thirty_milliseconds_at_every_command() {
    stall(None, None, Duration::from_millis(30), false).await;
    stall(None, None, Duration::from_millis(30), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_a_burst_of_new_devices_on_three_replicas() {
    let server = RedisServer::start();
    for devices in [300, 900, 1_800] {
        let apple = Apple::new();
        let mut apps = Vec::new();
        for _ in 0..3 {
            let guard = RedisReplayGuard::new(Redis::connect(server.url()).await.unwrap());
            apps.push(App::new(&apple.layer().with_single_use(guard)));
        }
        let requests = (0..devices).map(|number| {
            let (app, token) = (apps[number % 3].clone(), apple.genuine());
            tokio::spawn(async move { app.status(&token).await })
        });
        let statuses = join_all(requests).await;
        let admitted = statuses.iter().filter(|status| *status.as_ref().unwrap() == StatusCode::OK).count();
        assert_eq!(admitted, devices);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_a_redis_that_is_far_away() {
    const DEVICES: usize = 60;
    let server = RedisServer::start();
    for delay in [10, 24, 40].map(Duration::from_millis) {
        let proxy = Proxy::new(&server.url(), delay).await;
        let apple = Apple::new();
        let guard = RedisReplayGuard::new(Redis::connect(proxy.url()).await.unwrap());
        let app = App::new(&apple.layer().with_single_use(guard));
        let tokens: Vec<_> = (0..DEVICES).map(|_| apple.genuine()).collect();
        for token in tokens {
            assert_eq!(app.status(&token).await, StatusCode::OK, "{delay:?}");
            assert_eq!(app.status(&token).await, StatusCode::UNAUTHORIZED, "{delay:?}");
        }
    }
}
