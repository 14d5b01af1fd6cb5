//! A Redis whose place another one takes, and connections that end.

use std::time::{Duration, Instant};

use http::StatusCode;
use tower_devicecheck::{Redis, Rejection, replay::RedisReplayGuard};

use crate::{
    redis_proxy::Proxy,
    redis_server::{RedisServer, client, guard},
    support::{App, Apple, rejection},
};

async fn single_use(url: &str) -> (Apple, App) {
    let apple = Apple::new();
    let guard = RedisReplayGuard::new(Redis::connect(url).await.unwrap());
    let app = App::new(&apple.layer().with_single_use(guard));
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    (apple, app)
}

/// Until new devices are admitted again.
async fn served_within(limit: Duration, apple: &Apple, app: &App) {
    let started = Instant::now();
    while app.status(&apple.genuine()).await != StatusCode::OK {
        assert!(started.elapsed() < limit, "no service after {:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK, "it stays");
    }
}

#[tokio::test]
async fn c06_a_primary_that_became_a_replica_is_left() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let proxy = Proxy::new(&old.url(), Duration::ZERO).await;
    let (apple, app) = single_use(&proxy.url()).await;
    let port = new.url().trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
    let mut operator = client(&old).await;
    let () = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port).query_async(&mut operator).await.unwrap();
    proxy.lead_to(&new.url());
    served_within(Duration::from_secs(1), &apple, &app).await;
}

#[tokio::test]
async fn c06_a_primary_that_froze_is_left() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let proxy = Proxy::new(&old.url(), Duration::ZERO).await;
    let (apple, app) = single_use(&proxy.url()).await;
    old.freeze();
    proxy.lead_to(&new.url());
    served_within(Duration::from_secs(3), &apple, &app).await;
}

#[tokio::test]
async fn c06_a_connection_that_the_server_closed_is_not_missed() {
    let server = RedisServer::start();
    let (apple, app) = single_use(&server.url()).await;
    let mut operator = client(&server).await;
    for _ in 0..5 {
        let killed: usize = redis::cmd("CLIENT")
            .arg("KILL")
            .arg("TYPE")
            .arg("normal")
            .arg("SKIPME")
            .arg("yes")
            .query_async(&mut operator)
            .await
            .unwrap();
        assert!(killed > 0);
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    }
}

/// The new primary has none of the old one's writes. Tokens that were spent there are good again, once each; refused
/// ones stay refused.
#[tokio::test]
async fn a_failover_that_loses_writes_admits_spent_tokens_once_more_and_no_refused_one() {
    let (mut old, new) = (RedisServer::start(), RedisServer::start());
    let proxy = Proxy::new(&old.url(), Duration::ZERO).await;
    let (apple, app) = single_use(&proxy.url()).await;
    let spent: Vec<_> = (0..5).map(|_| apple.genuine()).collect();
    let forged: Vec<_> = (0..5).map(|_| apple.fake.forged_token()).collect();
    let expired = apple.genuine();
    for token in spent.iter().chain([&expired]) {
        assert_eq!(app.status(token).await, StatusCode::OK);
        assert_eq!(rejection(&app.get(token).await), Rejection::ReusedToken);
    }
    for token in &forged {
        assert_eq!(rejection(&app.get(token).await), Rejection::RefusedToken);
    }
    // Apple refuses a token that has expired since it was spent.
    apple.fake.expire(&expired);

    proxy.lead_to(&new.url());
    old.kill();
    served_within(Duration::from_secs(3), &apple, &app).await;
    // A process that knew nothing before, beside the one that remembers refusals.
    let fresh = App::new(&apple.layer().with_single_use(guard(&new).await));
    let (admitted, asked) = (app.inner.calls(), apple.calls());
    for token in &spent {
        assert_eq!(app.status(token).await, StatusCode::OK, "the write was lost");
        for app in [&app, &fresh] {
            assert_eq!(rejection(&app.get(token).await), Rejection::ReusedToken, "good once more only");
        }
    }
    assert_eq!((app.inner.calls(), apple.calls()), (admitted + spent.len(), asked + spent.len()));
    // Redis keeps from the second process what Apple has refused to the first.
    for token in forged.iter().chain([&expired]) {
        assert_eq!(rejection(&app.get(token).await), Rejection::RefusedToken);
        assert_eq!(rejection(&fresh.get(token).await), Rejection::ReusedToken);
    }
    assert_eq!((app.inner.calls(), fresh.inner.calls()), (admitted + spent.len(), 0));
    assert_eq!(apple.calls(), asked + spent.len() + forged.len() + 1);
}
