//! More load than Apple can bear, an Apple that hangs, and one that wants to be left alone.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use allocation_counter::measure;
use bytes::Bytes;
use futures::{FutureExt, future::join_all};
use http::{Request, Response, StatusCode};
use tokio::time::{Instant, sleep, timeout};
use tower::service_fn;
use tower_devicecheck::{
    AppleClient, AppleClientBuilder, Availability, DeviceCheckLayer, Environment, Evidence, TransportError,
    Verdict,
    cache::{CachedVerdict, MemoryCache, VerdictCache, VerdictKey},
    testing::{FakeApple, Reply, realistic_token},
};

use crate::support::{App, Apple, Counter};

const SECOND: Duration = Duration::from_secs(1);

/// A client of an Apple that takes this time for each answer, and the calls that it gets.
fn slow_apple(answer_time: Duration) -> (AppleClientBuilder, Counter) {
    let calls = Counter::default();
    let count = calls.clone();
    let transport = service_fn(move |_: Request<Bytes>| {
        count.add();
        async move {
            sleep(answer_time).await;
            Ok::<_, TransportError>(Response::new(Bytes::new()))
        }
    });
    (AppleClient::builder(FakeApple::new().credentials()).transport(transport), calls)
}

#[tokio::test(start_paused = true)]
async fn a06_under_overload_apple_is_used_to_the_full() {
    for (load, answer_time) in [(1.5, 1), (3.0, 1), (1.5, 2), (3.0, 2)] {
        let answer_time = Duration::from_secs(answer_time);
        let (client, calls) = slow_apple(answer_time);
        let app = App::new(&DeviceCheckLayer::new(client.build().unwrap()));
        let capacity = 256.0 / answer_time.as_secs_f64();
        let started = Instant::now();
        let mut requests = Vec::new();
        let windows = 10;
        while started.elapsed() < 2 * windows * answer_time {
            let app = app.clone();
            requests.push(tokio::spawn(async move {
                let arrived = Instant::now();
                let status = app.status(&realistic_token()).await;
                (status, arrived.elapsed(), started.elapsed())
            }));
            sleep(Duration::from_secs_f64(1.0 / (load * capacity))).await;
        }
        let answers: Vec<_> = join_all(requests).await.into_iter().map(Result::unwrap).collect();
        for window in 3..windows {
            let (from, to) = (2 * window * answer_time, 2 * (window + 1) * answer_time);
            let admitted =
                answers.iter().filter(|(status, _, at)| *status == StatusCode::OK && (from..to).contains(at));
            let share = admitted.count() as f64 / (capacity * 2.0 * answer_time.as_secs_f64());
            assert!(share >= 0.9, "load {load}, {answer_time:?}, window {window}: {share}");
        }
        let mut waits: Vec<_> = answers
            .iter()
            .filter(|(status, ..)| *status != StatusCode::OK)
            .map(|(_, wait, _)| *wait)
            .collect();
        waits.sort_unstable();
        assert!(
            waits[waits.len() / 2] < Duration::from_millis(100),
            "load {load}, {answer_time:?}: {waits:?}"
        );
        assert!(answers.iter().all(|(_, wait, _)| *wait <= Duration::from_millis(5_500)));
        // No call was made in vain.
        let admitted = answers.iter().filter(|(status, ..)| *status == StatusCode::OK).count();
        assert!(calls.get() <= admitted + admitted / 20, "{} calls, {admitted} admitted", calls.get());
    }
}

#[tokio::test(start_paused = true)]
async fn a06_a_flood_takes_no_more_than_its_share_and_what_was_asked_is_remembered() {
    // 250 made-up tokens a second beside 10 genuine devices, and an Apple that bears 128.
    let apple = FakeApple::new();
    apple.always(Reply::normal().delay(2 * SECOND));
    let client = AppleClient::builder(apple.credentials()).transport(apple.transport()).build().unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    let mut devices = Vec::new();
    for tick in 0..5_000 {
        let token = match tick % 25 {
            0 => apple.genuine_token(Environment::Production),
            _ => apple.forged_token(),
        };
        let app = app.clone();
        let request = tokio::spawn(async move {
            // As apps do: they wait for three seconds, and come back with the token.
            for _ in 0..3 {
                match timeout(3 * SECOND, app.status(&token)).await {
                    Ok(StatusCode::OK) => return true,
                    Ok(StatusCode::UNAUTHORIZED) => break,
                    _ => sleep(SECOND).await,
                }
            }
            false
        });
        if tick % 25 == 0 {
            devices.push(request);
        }
        sleep(Duration::from_millis(4)).await;
    }
    let devices = join_all(devices).await;
    let admitted = devices.iter().filter(|admitted| *admitted.as_ref().unwrap()).count();
    // Apple bears 128 of 250 new tokens a second. The share of the devices is the share of their requests.
    assert!(admitted * 100 >= devices.len() * 45, "{admitted} of {}", devices.len());
}

#[tokio::test(start_paused = true)]
async fn a06_a_verdict_is_remembered_when_all_who_waited_have_left() {
    let apple = Apple::new();
    apple.fake.always(Reply::normal().delay(SECOND));
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    assert!(timeout(Duration::from_millis(100), app.status(&token)).await.is_err());
    sleep(2 * SECOND).await;
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.evidence(), Evidence::CACHE);
    assert_eq!(apple.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a07_while_apple_hangs_a_new_device_is_answered_at_once() {
    for crowd in [1_000, 5_000] {
        let fake = FakeApple::new();
        let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
        let app = App::new(&DeviceCheckLayer::new(client.clone()));
        let token = || fake.genuine_token(Environment::Production);
        let crowd: Vec<_> = (0..crowd).map(|_| token()).collect();
        fake.always(Reply::hang());
        let started = Instant::now();
        let statuses = join_all(crowd.iter().map(|token| app.status(token))).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::SERVICE_UNAVAILABLE));
        assert!(started.elapsed() <= Duration::from_millis(5_500), "{:?}", started.elapsed());
        assert_eq!(client.availability(Environment::Production), Availability::Down);
        assert_eq!(client.availability(Environment::Development), Availability::Available);

        let mut waits = Vec::new();
        let calls = fake.calls();
        for _ in 0..500 {
            let (arrived, token) = (Instant::now(), token());
            // A probe may take as long as an attempt.
            let status = timeout(Duration::from_millis(50), app.status(&token)).await;
            waits.push(arrived.elapsed());
            assert_ne!(status.ok(), Some(StatusCode::OK));
            sleep(Duration::from_millis(20)).await;
        }
        waits.sort_unstable();
        assert!(waits[250] <= Duration::from_millis(50), "{:?}", waits[250]);
        // Seldom asked, too.
        for _ in 0..5 {
            let arrived = Instant::now();
            assert_eq!(app.status(&token()).await, StatusCode::SERVICE_UNAVAILABLE);
            assert!(arrived.elapsed() <= Duration::from_millis(50), "{:?}", arrived.elapsed());
            sleep(2 * SECOND).await;
        }
        // One probe a second.
        assert!(fake.calls() - calls <= 22, "{}", fake.calls() - calls);

        fake.clear();
        let back = Instant::now();
        while app.status(&token()).await != StatusCode::OK {
            sleep(Duration::from_millis(20)).await;
        }
        assert!(back.elapsed() <= 3 * SECOND, "{:?}", back.elapsed());
        assert_eq!(client.availability(Environment::Production), Availability::Available);
    }
}

#[tokio::test(start_paused = true)]
async fn a07_a_client_that_makes_one_call_at_a_time_learns_soon_that_apple_hangs() {
    let fake = FakeApple::new();
    fake.always(Reply::hang());
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
    let client = client.in_flight_limit(1).build().unwrap();
    let app = App::new(&DeviceCheckLayer::new(client.clone()));
    let started = Instant::now();
    while client.availability(Environment::Production) == Availability::Available {
        assert_eq!(app.status(&realistic_token()).await, StatusCode::SERVICE_UNAVAILABLE);
    }
    // Each call has two attempts, which take five seconds.
    assert!(started.elapsed() <= 15 * SECOND, "{:?}", started.elapsed());
    assert!((5..=6).contains(&fake.calls()), "{}", fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a08_apple_is_left_alone_for_as_long_as_it_said() {
    for status in [429, 503] {
        let apple = Apple::new();
        apple.fake.always(Reply::status(status).header("retry-after", "60"));
        let app = App::new(&apple.layer());
        for number in 0..600 {
            let response = app.get(&apple.genuine()).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            if number == 300 {
                // The rest of the minute, a little spread.
                let rest: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
                assert!((1..=90).contains(&rest), "{status}: {rest}");
            }
            sleep(Duration::from_millis(10)).await;
        }
        assert!(apple.calls() <= 2, "{status}: {}", apple.calls());
        apple.fake.clear();
        sleep(60 * SECOND).await;
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a09_an_apple_with_a_fault_is_not_asked_twice_as_often() {
    let apple = Apple::new();
    apple.fake.always(Reply::status(503));
    let app = App::new(&apple.layer());
    for _ in 0..400 {
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::SERVICE_UNAVAILABLE);
        sleep(Duration::from_millis(15)).await;
    }
    assert!(apple.calls() * 10 <= 400 * 12, "{}", apple.calls());

    // A fault now and then, so that nobody takes it for an outage.
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    for number in 0..400 {
        if number % 2 == 0 {
            apple.fake.script(Reply::status(503));
        }
        app.status(&apple.genuine()).await;
    }
    assert!(apple.calls() * 10 <= 400 * 12, "{}", apple.calls());
}

#[tokio::test(start_paused = true)]
async fn stale_verdicts_count_while_apple_is_known_to_be_down_and_no_longer() {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    for (age, is_admitted) in [(minutes(15) - SECOND, true), (minutes(15) + SECOND, false)] {
        let apple = Apple::new();
        let (genuine, forged) = (apple.genuine(), apple.fake.forged_token());
        let checked_at = SystemTime::now() - age;
        let cache = Arc::new(MemoryCache::new());
        let token = genuine.parse().unwrap();
        let credentials = apple.fake.credentials();
        let key = VerdictKey::new(credentials.team_id(), Environment::Production, &token);
        let hour = Duration::from_secs(60 * 60);
        let verdict = CachedVerdict::new(Verdict::Genuine, key.digest(), checked_at, hour);
        cache.put(&key, verdict).await.unwrap();
        let layer = apple.layer().with_cache(Arc::clone(&cache)).with_stale_verdicts(minutes(10));
        let app = App::new(&layer);
        apple.fake.always(Reply::status(503));
        // Nobody knows yet that Apple is down.
        assert_eq!(app.status(&genuine).await, StatusCode::SERVICE_UNAVAILABLE);
        while apple.client.availability(Environment::Production) == Availability::Available {
            assert_eq!(app.status(&apple.genuine()).await, StatusCode::SERVICE_UNAVAILABLE);
        }
        let calls = apple.calls();
        let expected = if is_admitted { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        assert_eq!(app.status(&genuine).await, expected, "{age:?}");
        if is_admitted {
            assert_eq!(app.evidence(), Evidence::STALE);
            assert!(!app.evidence().is_fresh());
        }
        assert_eq!(app.status(&forged).await, StatusCode::SERVICE_UNAVAILABLE);
        // Without the switch it counts for nothing.
        let strict = App::new(&apple.layer().with_cache(cache));
        assert_eq!(strict.status(&genuine).await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(apple.calls(), calls);

        apple.fake.clear();
        sleep(2 * SECOND).await;
        assert_eq!(app.status(&genuine).await, StatusCode::OK);
        assert_eq!(app.evidence(), Evidence::APPLE);
        assert_eq!(apple.calls(), calls + 1);
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a08_the_fleet_leaves_apple_alone_for_as_long_as_one_process_was_told() {
    use tower_devicecheck::Redis;

    let server = crate::redis_server::RedisServer::start();
    let fake = FakeApple::new();
    let mut replicas = Vec::new();
    for _ in 0..3 {
        let redis = Redis::connect(server.url()).await.unwrap();
        let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
        let client = client.share_retry_after(redis).build().unwrap();
        replicas.push((App::new(&DeviceCheckLayer::new(client.clone())), client));
    }
    let token = || fake.genuine_token(Environment::Production);
    fake.always(Reply::status(429).header("retry-after", "60"));
    assert_eq!(replicas[0].0.status(&token()).await, StatusCode::SERVICE_UNAVAILABLE);
    // The first one does not wait for Redis.
    let redis = redis::Client::open(server.url()).unwrap();
    let mut connection = redis.get_multiplexed_async_connection().await.unwrap();
    let key = format!("tower-devicecheck:hold1:{}:p", fake.credentials().team_id());
    while !redis::cmd("EXISTS").arg(&key).query_async::<bool>(&mut connection).await.unwrap() {
        tokio::task::yield_now().await;
    }
    for (app, client) in &replicas {
        let response = app.get(&token()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let rest: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((50..=90).contains(&rest), "{rest}");
        assert_eq!(client.availability(Environment::Production), Availability::HeldOff);
        assert_eq!(client.availability(Environment::Development), Availability::Available);
    }
    assert_eq!(fake.calls(), 1);

    // Without Redis each process goes by what it was told itself.
    drop(server);
    fake.clear();
    let redis = Redis::connect("redis://127.0.0.1:1").await.unwrap();
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
    let app = App::new(&DeviceCheckLayer::new(client.share_retry_after(redis).build().unwrap()));
    assert_eq!(app.status(&token()).await, StatusCode::OK);
    assert_eq!(fake.calls(), 2);
}

/// A Redis that knows for how long another process was told to leave Apple alone, and counts how often it is told.
#[cfg(feature = "redis")]
#[derive(Clone, Default)]
struct SharedHold {
    milliseconds: Arc<std::sync::Mutex<i64>>,
    told: Counter,
}

#[cfg(feature = "redis")]
impl redis::aio::ConnectionLike for SharedHold {
    fn req_packed_command<'a>(&'a mut self, command: &'a redis::Cmd) -> redis::RedisFuture<'a, redis::Value> {
        let is_set = matches!(command.args_iter().next(), Some(redis::Arg::Simple(b"SET")));
        let left = *self.milliseconds.lock().unwrap();
        if is_set {
            self.told.add();
        }
        Box::pin(async move { Ok(if is_set { redis::Value::Okay } else { redis::Value::Int(left) }) })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a redis::Pipeline,
        _: usize,
        _: usize,
    ) -> redis::RedisFuture<'a, Vec<redis::Value>> {
        unreachable!("a hold is one command")
    }

    fn get_db(&self) -> i64 {
        0
    }
}

#[cfg(feature = "redis")]
#[tokio::test(start_paused = true)]
async fn a08_a_shorter_time_does_not_take_the_place_of_a_longer_one() {
    // milliseconds that are left of another process's time, whether 5 seconds take its place
    for (milliseconds, told) in [(-2, 1), (1_000, 1), (4_999, 1), (5_000, 0), (60_000, 0)] {
        let (fake, shared) = (FakeApple::new(), SharedHold::default());
        *shared.milliseconds.lock().unwrap() = -2;
        let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
        let redis = tower_devicecheck::Redis::new(shared.clone());
        let app = App::new(&DeviceCheckLayer::new(client.share_retry_after(redis).build().unwrap()));
        let token = || fake.genuine_token(Environment::Production);
        // It has looked, and does not look again within the second.
        assert_eq!(app.status(&token()).await, StatusCode::OK);
        *shared.milliseconds.lock().unwrap() = milliseconds;
        fake.always(Reply::status(429).header("retry-after", "5"));
        assert_eq!(app.status(&token()).await, StatusCode::SERVICE_UNAVAILABLE);
        sleep(SECOND).await;
        assert_eq!((shared.told.get(), fake.calls()), (told, 2), "{milliseconds}");
    }
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "a figure for people")]
async fn a10_the_memory_of_a_request_that_waits() {
    let fake = FakeApple::new();
    fake.always(Reply::hang());
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
    let app = App::new(&DeviceCheckLayer::new(client.in_flight_limit(1).build().unwrap()));
    let mut asking = Box::pin(app.status("AAAA"));
    assert!(asking.as_mut().now_or_never().is_none());
    let tokens: Vec<_> = (0..1_000).map(|_| realistic_token()).collect();
    let mut waiting = Vec::new();
    // A captured log would grow meanwhile.
    let _silence = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
    let used = measure(|| {
        for token in &tokens {
            let mut request = Box::pin(app.status(token));
            assert!(request.as_mut().now_or_never().is_none());
            waiting.push(request);
        }
    });
    // With its head, the token and the future of the test's own service.
    println!("{} bytes for a request that waits", used.bytes_current / 1_000);
    assert!(used.bytes_current <= 8_700 * 1_000, "{used:?}");
    drop((asking, waiting));
    assert_eq!(fake.calls(), 1);
}

#[test]
fn a10_a_wave_of_5000_leaves_nothing_behind() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let fake = FakeApple::new();
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    let wave = async || {
        fake.always(Reply::hang());
        let statuses = join_all((0..5_000).map(|_| async { app.status(&realistic_token()).await })).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::SERVICE_UNAVAILABLE));
        fake.clear();
        while app.status(&fake.genuine_token(Environment::Production)).await != StatusCode::OK {
            sleep(SECOND / 4).await;
        }
    };
    // The maps keep their room, and the cache the verdicts.
    runtime.block_on(wave());
    let used = measure(|| runtime.block_on(wave()));
    assert!(used.bytes_current <= 100_000, "{used:?}");
    assert!(fake.calls() <= 2 * (2 * 256 + 10), "{}", fake.calls());
}
