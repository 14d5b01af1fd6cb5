//! The largest and the smallest of every duration and count that a user can set.

use std::time::Duration;

use http::StatusCode;
use tower_devicecheck::{Evidence, Verdict, cache::MemoryCache, replay::MemoryReplayGuard};

use crate::support::{App, Apple};

#[tokio::test]
async fn c08_the_longest_time_to_live_is_kept() {
    let apple = Apple::new();
    let token = apple.genuine();
    let forever = |layer: tower_devicecheck::DeviceCheckLayer| {
        layer
            .with_time_to_live(Verdict::Genuine, Duration::MAX)
            .with_time_to_live(Verdict::Refused, Duration::MAX)
    };
    let app = App::new(&forever(apple.layer()));
    for evidence in [Evidence::APPLE, Evidence::CACHE] {
        assert_eq!(app.status(&token).await, StatusCode::OK);
        assert_eq!(app.evidence(), evidence);
    }
    let never = App::new(&apple.layer().with_time_to_live(Verdict::Genuine, Duration::ZERO));
    for _ in 0..2 {
        assert_eq!(never.status(&token).await, StatusCode::OK);
        assert_eq!(never.evidence(), Evidence::APPLE);
    }
}

#[tokio::test]
async fn c08_capacities() {
    let apple = Apple::new();
    for capacity in [0, 1, 2, usize::MAX / 2, usize::MAX] {
        let app = App::new(&apple.layer().with_cache(MemoryCache::with_capacity(capacity, capacity)));
        let token = apple.genuine();
        for _ in 0..2 {
            assert_eq!(app.status(&token).await, StatusCode::OK, "{capacity}");
            assert_eq!(app.status(&apple.fake.forged_token()).await, StatusCode::UNAUTHORIZED, "{capacity}");
        }
        let guard = MemoryReplayGuard::with_capacity(capacity);
        let status = App::new(&apple.layer().with_single_use(guard)).status(&apple.genuine()).await;
        let full = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(status, if capacity == 0 { full } else { StatusCode::OK }, "{capacity}");
    }
}

#[tokio::test]
async fn c08_times_of_guards() {
    let apple = Apple::new();
    for time in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX / 2, Duration::MAX] {
        let guard = MemoryReplayGuard::new().with_lease(time).with_retention(time);
        let app = App::new(&apple.layer().with_single_use(guard).with_retry_window(time));
        let token = apple.genuine();
        assert_eq!(app.status(&token).await, StatusCode::OK, "{time:?}");
        if time > Duration::from_secs(1) {
            assert_eq!(app.status(&token).await, StatusCode::UNAUTHORIZED, "{time:?}");
        }
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn c08_times_in_redis() {
    use tower_devicecheck::{Redis, cache::RedisCache, replay::RedisReplayGuard};

    let server = crate::redis_server::RedisServer::start();
    let apple = Apple::new();
    let redis = Redis::connect(server.url()).await.unwrap();
    for time in [Duration::from_secs(1_000_000_000_000), Duration::MAX / 2, Duration::MAX] {
        let redis = redis.clone().with_deadline(time);
        let cache = RedisCache::new(redis.clone()).with_fleet_single_flight(time);
        let layer = apple.layer().with_cache(cache).with_time_to_live(Verdict::Genuine, time);
        let app = App::new(&layer);
        let token = apple.genuine();
        for evidence in [Evidence::APPLE, Evidence::CACHE] {
            assert_eq!(app.status(&token).await, StatusCode::OK, "{time:?}");
            assert_eq!(app.evidence(), evidence, "{time:?}");
        }
        let guard = RedisReplayGuard::new(redis).with_lease(time).with_retention(time);
        let app = App::new(&apple.layer().with_single_use(guard).with_retry_window(time));
        let token = apple.genuine();
        for expected in [StatusCode::OK, StatusCode::UNAUTHORIZED] {
            assert_eq!(app.status(&token).await, expected, "{time:?}");
        }
    }
}
