//! The largest and the smallest of every duration and count that a user can set.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, request};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{
    AppleClient, AppleClientBuilder, DeviceCheckLayer, DeviceVerifier, Environment, Evidence, Facts,
    GateBody, Proof, ReadBodies, Step, TokenQuestion, Verdict, VerifyError,
    cache::{CacheError, CachedVerdict, MemoryCache, VerdictCache, VerdictKey},
    replay::MemoryReplayGuard,
    split_key::{FileSplitKeyStore, Limits, SplitKeyState, SplitKeyStore, Splitter, retire},
    testing::{FakeApple, Reply, realistic_token},
};

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

/// From nothing to for ever.
const TIMES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_nanos(1),
    Duration::from_millis(1),
    Duration::from_secs(1_000_000_000_000),
    Duration::from_nanos(u64::MAX),
    Duration::MAX,
];

#[tokio::test(start_paused = true)]
async fn c08_times_and_counts_of_the_client() {
    type Change = fn(AppleClientBuilder, Duration) -> AppleClientBuilder;
    let times: [(&str, Change); 2] = [
        ("attempt_timeout", |client, time| client.attempt_timeout(time)),
        ("total_timeout", |client, time| client.total_timeout(time)),
    ];
    for (name, change) in times {
        for time in TIMES {
            let fake = FakeApple::new();
            // Longer than the short times, much shorter than the long ones.
            fake.always(Reply::normal().delay(Duration::from_millis(100)));
            let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
            let client = change(client, time).build();
            assert_eq!(client.is_err(), time.is_zero(), "{name} {time:?}");
            let Ok(client) = client else { continue };
            let app = App::new(&DeviceCheckLayer::new(client));
            let status = app.status(&fake.genuine_token(Environment::Production)).await;
            let (expected, calls) = match (name, time < Duration::from_millis(100)) {
                (_, false) => (StatusCode::OK, 1),
                ("attempt_timeout", true) => (StatusCode::SERVICE_UNAVAILABLE, 2),
                _ => (StatusCode::SERVICE_UNAVAILABLE, 1),
            };
            assert_eq!((status, fake.calls()), (expected, calls), "{name} {time:?}");
        }
    }
    for (in_flight, waiting) in [(0, 1), (1, 0), (1, usize::MAX), (usize::MAX, 0), (usize::MAX, usize::MAX)] {
        let fake = FakeApple::new();
        let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
        let client = client.in_flight_limit(in_flight).waiting_limit(waiting).build();
        assert_eq!(client.is_err(), in_flight == 0, "{in_flight} {waiting}");
        let Ok(client) = client else { continue };
        let app = App::new(&DeviceCheckLayer::new(client));
        let token = fake.genuine_token(Environment::Production);
        assert_eq!(app.status(&token).await, StatusCode::OK, "{in_flight} {waiting}");
        assert_eq!(fake.calls(), 1, "{in_flight} {waiting}");
    }
}

#[cfg(feature = "limit")]
#[tokio::test(start_paused = true)]
async fn c08_permits_and_times_of_limiters() {
    use tower_devicecheck::limit::RateLimiter;

    for time in TIMES {
        for permits in [0, 1, 2, u32::MAX / 2, u32::MAX] {
            for clients in [0, 1, usize::MAX] {
                let apple = Apple::new();
                let limiter = RateLimiter::new(permits, time, |_: &request::Parts| Some("a".into()));
                let app = App::new(&apple.layer().with_limiter(limiter.with_capacity(clients)));
                let name = format!("{permits} in {time:?} for {clients}");
                for number in 0..3 {
                    let response = app.get(&apple.genuine()).await;
                    // In the shortest times all permits come back between two requests.
                    tokio::time::advance(Duration::from_micros(1)).await;
                    let is_short = time < Duration::from_micros(1);
                    let has_passed = permits > 0 && (is_short || number < permits);
                    let expected = if has_passed { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
                    assert_eq!(response.status(), expected, "{name}");
                    if !has_passed {
                        let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
                        assert!((1..=366 * 24 * 60 * 60).contains(&wait), "{name}: {wait}");
                    }
                }
                let longest = 3_u32.min(permits) as usize;
                let calls = if time < Duration::from_micros(1) && permits > 0 { 3 } else { longest };
                assert_eq!(apple.calls(), calls, "{name}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c08_the_deadline_of_the_layer() {
    for time in TIMES {
        let apple = Apple::new();
        apple.fake.always(Reply::normal().delay(Duration::from_millis(100)));
        let is_short = time < Duration::from_millis(100);
        let expected = if is_short { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let app = App::new(&apple.layer().with_deadline(time));
        assert_eq!(app.status(&apple.genuine()).await, expected, "{time:?}");
        assert_eq!(apple.calls(), 1, "{time:?}");
    }
}

#[tokio::test]
async fn c08_bounds_of_bodies() {
    for (limit, time, expected) in [
        (0, Duration::MAX, StatusCode::PAYLOAD_TOO_LARGE),
        (4, Duration::MAX, StatusCode::OK),
        (usize::MAX, Duration::MAX, StatusCode::OK),
        // The whole body is there already.
        (usize::MAX, Duration::ZERO, StatusCode::OK),
    ] {
        let apple = Apple::new();
        let bodies = ReadBodies::new().with_limit(limit).with_deadline(time);
        let layer = apple.layer().with_bodies(bodies).add_proof_before(AnyBody).unwrap();
        let service = layer.layer(service_fn(async |_: Request<GateBody<Full<Bytes>>>| {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }));
        let response = service.oneshot(Request::new(Full::from("body"))).await.unwrap();
        assert_eq!((response.status(), apple.calls()), (expected, 0), "{limit} {time:?}");
    }
}

/// Admits every request whose body could be read.
struct AnyBody;

impl Proof for AnyBody {
    fn scheme(&self) -> &'static str {
        "AnyBody"
    }

    fn judge(&self, _: &mut request::Parts, facts: &Facts) -> Step {
        let facts = facts.clone();
        Step::needs_body(usize::MAX, move |digest| {
            Step::verified(facts.verified(Evidence::fresh("AnyBody", "body"), digest.into()))
        })
    }

    fn strip(&self, _: &mut request::Parts) {}

    fn reads_body(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn c08_the_time_after_which_a_verifier_wants_to_be_asked_again() {
    struct Later(Duration);

    impl DeviceVerifier for Later {
        async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
            Err(VerifyError::throttled(Some(self.0), "too many"))
        }

        fn scope(&self) -> &str {
            "TEAM123456"
        }
    }

    for time in TIMES {
        let response = App::new(&DeviceCheckLayer::new(Later(time))).get(&realistic_token()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=300).contains(&seconds), "{time:?}: {seconds}");
    }
}

#[tokio::test]
async fn c08_times_of_verdicts_that_a_cache_returns() {
    struct Fixed(CachedVerdict);

    impl VerdictCache for Fixed {
        async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
            Ok(Some(CachedVerdict::new(
                Verdict::Genuine,
                key.digest(),
                self.0.checked_at(),
                self.0.time_to_live(),
            )))
        }

        async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
            Ok(())
        }
    }

    let now = SystemTime::now();
    let far = Duration::from_secs(1 << 40);
    for (name, checked_at, time_to_live, is_believed) in [
        ("now", now, Duration::MAX, true),
        ("at the beginning", UNIX_EPOCH, Duration::MAX, false),
        ("before it", UNIX_EPOCH - Duration::from_secs(1), Duration::MAX, false),
        // The wall clock was put back: the cache's own time counts.
        ("far ahead", now + far, Duration::MAX, true),
    ] {
        let apple = Apple::new();
        let token = apple.genuine();
        let key_digest = token.parse::<tower_devicecheck::DeviceToken>().unwrap().digest();
        let cached = CachedVerdict::new(Verdict::Genuine, key_digest, checked_at, time_to_live);
        let app = App::new(&apple.layer().with_cache(Fixed(cached)));
        assert_eq!(app.status(&token).await, StatusCode::OK, "{name}");
        assert_eq!(app.evidence() == Evidence::CACHE, is_believed, "{name}");
        assert_eq!(apple.calls(), usize::from(!is_believed), "{name}");
    }
}

#[tokio::test]
async fn c08_times_and_counts_of_split_keys() {
    const KEY: &str = "sk-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6";
    let folder = std::env::temp_dir().join(format!("extremes-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let now = SystemTime::now();
    for interval in [Duration::ZERO, Duration::MAX] {
        let store =
            FileSplitKeyStore::open_or_create(folder.join("keys")).unwrap().with_check_interval(interval);
        for (until, is_usable) in [
            (UNIX_EPOCH - Duration::from_secs(1 << 40), false),
            (UNIX_EPOCH, false),
            (now + Duration::from_secs(1 << 40), true),
        ] {
            let limits = Limits::none().with_expiry(until);
            let split = Splitter::new().issue(&store, "app", "openai", KEY, limits).await.unwrap();
            let id = split.record().split();
            for _ in ["expires", "retires"] {
                let record = store.get("app", id).await.unwrap().unwrap();
                let is_over = matches!(record.state(), SplitKeyState::Retiring { until, .. } if until <= now);
                let found = record.limits().expires_at() > Some(now) && !is_over;
                assert_eq!(found, is_usable, "{until:?} {interval:?}");
                retire(&store, "app", id, until).await.unwrap();
            }
            let rotated = Splitter::new().rotate(&store, "app", id, KEY, Duration::MAX).await.unwrap();
            assert!(store.get("app", rotated.record().split()).await.unwrap().is_some());
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}
