//! Marks in a fleet: a change over one replica holds over the others, with one Redis.

use std::time::Duration;

use http::StatusCode;
use redis::AsyncCommands;
use tower_devicecheck::{
    BitsErrorKind,
    cache::{MemoryCache, RedisCache, Tiered},
    testing::{Endpoint, Reply},
};

use crate::{
    redis_server::{RedisServer, cache, client, handle},
    support::{App, Apple, rejection},
};

#[tokio::test]
async fn a_device_that_one_replica_blocks_is_denied_by_the_next_request_over_another() {
    for is_tiered in [false, true] {
        let (server, apple) = (RedisServer::start(), Apple::new());
        let mut replicas = Vec::new();
        for _ in 0..2 {
            let shared = cache(&server).await.with_fleet_single_flight(Duration::from_secs(5));
            let layer = match is_tiered {
                true => apple.marked().with_cache(Tiered::new(MemoryCache::new(), shared)),
                false => apple.marked().with_cache(shared),
            };
            replicas.push((App::new(&layer), layer.mark_writer(apple.client.clone())));
        }
        let [(first, writer), (second, _)] = &replicas[..] else { panic!("two replicas") };
        let token = apple.token_of("phone");
        for app in [first, second, first, second] {
            assert_eq!(app.status(&token).await, StatusCode::OK);
        }
        assert_eq!(apple.each(), (0, 1, 0), "one call for the fleet");
        writer.update(&first.device(), None, true).await.unwrap();
        for app in [second, first] {
            assert_eq!(rejection(&app.get(&token).await).code(), "denied");
            assert_eq!(rejection(&app.get(&apple.token_of("phone")).await).code(), "denied");
        }
        assert_eq!(apple.each(), (0, 5, 1), "one call a request, for 20 seconds");
    }
}

#[tokio::test]
async fn a_check_under_way_over_another_replica_leaves_nothing_behind() {
    let (server, apple) = (RedisServer::start(), Apple::new());
    let first = apple.marked().with_cache(cache(&server).await);
    let writer = first.mark_writer(apple.client.clone());
    let first = App::new(&first);
    let second = App::new(&apple.marked().with_cache(cache(&server).await));
    let token = apple.token_of("phone");
    let slow = Reply::normal().delay(Duration::from_millis(300)).for_endpoint(Endpoint::QueryBits);
    apple.fake.script(slow);
    let early = second.clone();
    let early_token = token.clone();
    let early = tokio::spawn(async move { early.status(&early_token).await });
    while apple.calls() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(first.status(&token).await, StatusCode::OK);
    writer.update(&first.device(), None, true).await.unwrap();
    assert_eq!(early.await.unwrap(), StatusCode::OK, "it began before");
    for app in [&first, &second] {
        assert_eq!(app.status(&token).await, StatusCode::FORBIDDEN);
    }
    assert_eq!(apple.each(), (0, 4, 1));
}

#[tokio::test]
async fn redis_keeps_bits_and_forgets_them() {
    let server = RedisServer::start();
    let cache = cache(&server).await;
    crate::cache_contract::marks(&cache, async |time| tokio::time::sleep(time).await).await;
    let secret = RedisCache::new(handle(&server).await.with_prefix("other")).with_secret(b"secret");
    crate::cache_contract::marks(&secret, async |time| tokio::time::sleep(time).await).await;
    let mut client = client(&server).await;
    let keys: Vec<String> = client.keys("*").await.unwrap();
    for key in keys {
        let left: i64 = client.pttl(&key).await.unwrap();
        assert!(left > 0, "{key} ends by itself");
    }
}

#[tokio::test]
async fn a_redis_that_is_gone_is_reported_and_the_bits_are_set() {
    let (mut server, apple) = (RedisServer::start(), Apple::new());
    let shared = RedisCache::new(handle(&server).await.with_deadline(Duration::from_millis(50)));
    let layer = apple.marked().with_cache(shared);
    let (app, writer) = (App::new(&layer), layer.mark_writer(apple.client.clone()));
    let token = apple.token_of("phone");
    assert_eq!(app.status(&token).await, StatusCode::OK);
    server.kill();
    let error = writer.update(&app.device(), None, true).await.unwrap_err();
    assert_eq!(error.kind(), BitsErrorKind::StillRemembered);
    assert_eq!(apple.fake.bits(&token), Some((false, true)));
    // A cache that fails counts as empty.
    assert_eq!(app.status(&token).await, StatusCode::FORBIDDEN);
    assert_eq!(apple.each(), (0, 2, 1));
}
