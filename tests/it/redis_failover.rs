//! A Redis whose place another one takes, and connections that end.

use std::time::{Duration, Instant};

use http::StatusCode;
use tower_devicecheck::{Redis, replay::RedisReplayGuard};

use crate::{
    redis_proxy::Proxy,
    redis_server::{RedisServer, client},
    support::{App, Apple},
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
