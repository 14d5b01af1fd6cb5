//! Replicas that share a Redis: a real server, which is lied to.

use std::time::{Duration, Instant};

use futures::{FutureExt, future::join_all};
use http::StatusCode;
use redis::AsyncCommands;
use tower_devicecheck::{
    Environment, Evidence, Owner, Redis, Rejection, Verdict,
    cache::{CachedVerdict, MayAsk, MemoryCache, RedisCache, Tiered, VerdictCache, VerdictKey},
    replay::{Claim, Claimed, ReplayGuard, ReplayKey},
    testing::Reply,
};

use crate::{
    cache_contract,
    redis_server::{PATIENT, RedisServer, cache, client, guard, handle, replicas},
    single_use,
    support::{App, Apple, rejection},
};

#[tokio::test]
async fn the_cache_keeps_the_contract() {
    let server = RedisServer::start();
    let sleep = async |time| tokio::time::sleep(time).await;
    cache_contract::contract(&cache(&server).await, sleep).await;
    cache_contract::contract(&cache(&server).await.with_secret(b"secret"), sleep).await;
    let leased = cache(&server).await.with_fleet_single_flight(Duration::from_secs(5));
    cache_contract::contract(&leased, sleep).await;
    let connection = client(&server).await;
    let given = RedisCache::new(Redis::new(connection).with_deadline(PATIENT).with_prefix("another"));
    cache_contract::contract(&given, sleep).await;
    cache_contract::contract(&Tiered::new(MemoryCache::new(), cache(&server).await), sleep).await;
}

#[tokio::test]
async fn the_guard_keeps_the_contract() {
    let server = RedisServer::start();
    let (lease, window) = (Duration::from_millis(300), Duration::from_millis(300));
    let guard = guard(&server).await.with_lease(lease).with_retention(PATIENT);
    single_use::contract(&guard, lease, window, async |time| tokio::time::sleep(time).await).await;
}

#[tokio::test]
async fn c04_reserving_twice_by_one_owner_is_once_in_redis() {
    let server = RedisServer::start();
    single_use::reserving_twice(&guard(&server).await, Duration::from_secs(10)).await;
}

#[tokio::test]
async fn c05_a_verdict_lives_no_longer_than_its_value_in_redis() {
    let server = RedisServer::start();
    let cache = cache(&server).await;
    let token = "AAAA".parse().unwrap();
    let key = VerdictKey::new("TEAM123456", Environment::Production, &token);
    let now = std::time::SystemTime::now();
    let minute = Duration::from_secs(60);
    // A reader whose clock is behind by nearly a minute sees this.
    let verdict = CachedVerdict::new(Verdict::Genuine, key.digest(), now, minute);
    cache.put(&key, verdict).await.unwrap();
    let mut client = client(&server).await;
    let keys: Vec<String> = client.keys("*").await.unwrap();
    let () = client.pexpire(&keys[0], 2_000).await.unwrap();
    let found = cache.get(&key).await.unwrap().unwrap();
    assert!(found.time_to_live() <= Duration::from_secs(2), "{:?}", found.time_to_live());
    assert!(found.time_to_live() > Duration::ZERO);
    if let MayAsk::NoNeed(found) = cache.with_fleet_single_flight(minute).lease(&key).await {
        assert!(found.time_to_live() <= Duration::from_secs(2), "{:?}", found.time_to_live());
    } else {
        panic!("the verdict is there");
    }
}

#[tokio::test]
async fn keys_hold_no_token_and_values_end_by_themselves() {
    let server = RedisServer::start();
    let apple = Apple::new();
    let token = apple.genuine();
    let shared = RedisCache::new(handle(&server).await.with_prefix("mine"));
    assert_eq!(App::new(&apple.layer().with_cache(shared)).status(&token).await, StatusCode::OK);
    let mut client = client(&server).await;
    let keys: Vec<String> = client.keys("*").await.unwrap();
    let digest = token.parse::<tower_devicecheck::DeviceToken>().unwrap().digest();
    assert_eq!(keys, [format!("mine:v2:{}:p:{{{digest}}}", apple.fake.team_id())]);
    let left: i64 = client.pttl(&keys[0]).await.unwrap();
    assert!((1..=300_000).contains(&left), "{left}");
    let value: Vec<u8> = client.get(&keys[0]).await.unwrap();
    assert_eq!(value.len(), 54);
}

#[tokio::test]
async fn a_token_admitted_by_one_replica_is_a_hit_in_the_others() {
    let server = RedisServer::start();
    let apple = Apple::new();
    let apps =
        replicas(&apple, &server, |layer, shared| layer.with_cache(Tiered::new(MemoryCache::new(), shared)))
            .await;
    let (token, forged) = (apple.genuine(), apple.fake.forged_token());
    assert_eq!(apps[0].status(&token).await, StatusCode::OK);
    assert_eq!(apps[0].status(&forged).await, StatusCode::UNAUTHORIZED);
    for app in &apps {
        for _ in 0..2 {
            assert_eq!(app.status(&token).await, StatusCode::OK);
            assert_eq!(app.evidence(), Evidence::CACHE);
            assert_eq!(app.status(&forged).await, StatusCode::UNAUTHORIZED);
        }
    }
    assert_eq!(apple.calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_requests_over_three_replicas() {
    let server = RedisServer::start();
    let ask_at_once = async |apple: &Apple, apps: &[App]| {
        apple.fake.always(Reply::normal().delay(Duration::from_millis(200)));
        let token = apple.genuine();
        let requests = (0..300).map(|number| {
            let (app, token) = (apps[number % 3].clone(), token.clone());
            tokio::spawn(async move { app.status(&token).await })
        });
        let statuses = join_all(requests).await;
        statuses.into_iter().filter(|status| *status.as_ref().unwrap() == StatusCode::OK).count()
    };

    let apple = Apple::new();
    let apps = replicas(&apple, &server, |layer, shared| layer.with_cache(shared)).await;
    assert_eq!(ask_at_once(&apple, &apps).await, 300);
    assert!((1..=3).contains(&apple.calls()), "{}", apple.calls());

    let apple = Apple::new();
    let lease = Duration::from_secs(10);
    let apps = replicas(&apple, &server, |layer, shared| {
        layer.with_cache(Tiered::new(MemoryCache::new(), shared.with_fleet_single_flight(lease)))
    })
    .await;
    assert_eq!(ask_at_once(&apple, &apps).await, 300);
    assert_eq!(apple.calls(), 1);

    let apple = Apple::new();
    let mut apps = Vec::new();
    for _ in 0..3 {
        apps.push(App::new(&apple.layer().with_single_use(guard(&server).await)));
    }
    assert_eq!(ask_at_once(&apple, &apps).await, 1);
    assert_eq!(apple.calls(), 1);
}

#[tokio::test]
async fn a_lease_ends_with_the_verdict_with_its_release_or_with_its_time() {
    let server = RedisServer::start();
    let lease = Duration::from_secs(20);
    let (one, two) = (
        cache(&server).await.with_fleet_single_flight(lease),
        cache(&server).await.with_fleet_single_flight(lease),
    );
    let text = |text: &str| text.parse::<tower_devicecheck::DeviceToken>().unwrap();
    let (first, second, third) = (text("AAAA"), text("AAAB"), text("AAAC"));
    let key = |token| VerdictKey::new("TEAM123456", Environment::Production, token);
    let granted = |lease| match lease {
        MayAsk::UnderLease(owner) => owner,
        other => panic!("not granted: {other:?}"),
    };

    let asked = key(&first);
    granted(one.lease(&asked).await);
    let verdict = CachedVerdict::new(Verdict::Genuine, asked.digest(), std::time::SystemTime::now(), lease);
    let waiting = async { two.lease(&key(&first)).await };
    let asking = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        one.put(&asked, verdict).await.unwrap();
    };
    let (found, ()) = tokio::join!(waiting, asking);
    assert!(matches!(found, MayAsk::NoNeed(found) if found.verdict() == Verdict::Genuine));

    let asked = key(&second);
    let holder = granted(one.lease(&asked).await);
    one.release(&asked, Owner::random()).await;
    let mut waiting = Box::pin(two.lease(&asked));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_err(), "not the owner's");
    one.release(&asked, holder).await;
    granted(waiting.await);

    let short = cache(&server).await.with_fleet_single_flight(Duration::from_millis(200));
    let asked = key(&third);
    granted(short.lease(&asked).await);
    // The holder has died.
    granted(two.lease(&asked).await);
}

#[tokio::test]
async fn nothing_but_a_value_of_ours_admits_anybody() {
    let server = RedisServer::start();
    let apple = Apple::new();
    let mut client = client(&server).await;
    let team = apple.fake.team_id().to_owned();
    let name = |token: &str| {
        let digest = token.parse::<tower_devicecheck::DeviceToken>().unwrap().digest();
        format!("tower-devicecheck:v2:{team}:p:{{{digest}}}")
    };
    // A good value, to be carried off.
    let genuine = apple.genuine();
    let secret = b"the operator's secret";
    let plain = App::new(&apple.layer().with_cache(cache(&server).await));
    let secretive = App::new(&apple.layer().with_cache(cache(&server).await.with_secret(secret)));
    assert_eq!(plain.status(&genuine).await, StatusCode::OK);
    let good: Vec<u8> = client.get(name(&genuine)).await.unwrap();
    assert_eq!(secretive.status(&genuine).await, StatusCode::OK);
    assert_eq!(secretive.evidence(), Evidence::APPLE, "without the secret it is rubbish");
    let sealed: Vec<u8> = client.get(name(&genuine)).await.unwrap();

    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut value = good.clone();
        change(&mut value);
        value
    };
    let values: Vec<(&str, Vec<u8>)> = vec![
        ("another token's", good.clone()),
        ("another token's, with the secret", sealed),
        ("another version", with(&|value| value[0] = 2)),
        ("a later end", with(&|value| value[10] = 1)),
        ("half", with(&|value| value.truncate(25))),
        ("more", with(&|value| value.push(0))),
        ("huge", vec![b'G'; 1 << 20]),
        ("a word", b"genuine".to_vec()),
        ("JSON", br#"{"verdict":"Genuine","expires_at":9999999999999}"#.to_vec()),
        ("true", b"1".to_vec()),
        ("zeros", vec![0; 50]),
        ("letters", [&b"\x01G"[..], &[0xff; 48]].concat()),
    ];
    let forged = || apple.fake.forged_token();
    for app in [&plain, &secretive] {
        let reached = app.inner.calls();
        for (value_name, value) in &values {
            let token = forged();
            let () = client.set(name(&token), value).await.unwrap();
            let asked = apple.calls();
            assert_eq!(rejection(&app.get(&token).await), Rejection::RefusedToken, "{value_name}");
            assert_eq!(apple.calls(), asked + 1, "{value_name}: Apple decides");
            assert_eq!(rejection(&app.get(&token).await), Rejection::RefusedToken, "{value_name}");
            assert_eq!(apple.calls(), asked + 1, "{value_name}: written over");
        }
        let token = forged();
        let () = client.lpush(name(&token), "genuine").await.unwrap();
        assert_eq!(rejection(&app.get(&token).await), Rejection::RefusedToken, "a list");
        assert_eq!(app.inner.calls(), reached);
    }
}

#[tokio::test]
async fn nothing_in_redis_makes_a_guard_admit() {
    let server = RedisServer::start();
    let apple = Apple::new();
    let mut client = client(&server).await;
    let guard = guard(&server).await;
    let app = App::new(&apple.layer().with_single_use(guard.dangerously_admit_without_redis(true)));
    let team = apple.fake.team_id().to_owned();
    for (number, value) in ["", "r:", "s:", "s:00:9999999999999:-", "free", "\0\u{1}"].into_iter().enumerate()
    {
        let token = apple.genuine();
        let digest = token.parse::<tower_devicecheck::DeviceToken>().unwrap().digest();
        let name = format!("tower-devicecheck:use1:{team}:{{{digest}}}");
        let () = client.set(&name, value).await.unwrap();
        assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken, "{value:?}");
        if number == 0 {
            let () = client.del(&name).await.unwrap();
            let () = client.lpush(&name, "x").await.unwrap();
            assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken, "a list");
        }
    }
    assert_eq!((apple.calls(), app.inner.calls()), (0, 0));
}

/// Each deletion is worth one more admission of the token, and Apple is asked again.
#[tokio::test]
async fn a_key_of_the_guard_that_is_deleted_makes_its_own_token_good_again() {
    let server = RedisServer::start();
    let apple = Apple::new();
    let mut client = client(&server).await;
    let app = App::new(&apple.layer().with_single_use(guard(&server).await));
    let (token, other, forged) = (apple.genuine(), apple.genuine(), apple.fake.forged_token());
    assert_eq!(app.status(&other).await, StatusCode::OK);
    assert_eq!(rejection(&app.get(&forged).await), Rejection::RefusedToken);
    let name = |token: &str| {
        let digest = token.parse::<tower_devicecheck::DeviceToken>().unwrap().digest();
        format!("tower-devicecheck:use1:{}:{{{digest}}}", apple.fake.team_id())
    };
    for round in 1..=3 {
        assert_eq!(app.status(&token).await, StatusCode::OK);
        assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken);
        assert_eq!((app.inner.calls(), apple.calls()), (1 + round, 2 + round));
        let deleted: usize = client.del(name(&token)).await.unwrap();
        assert_eq!(deleted, 1);
    }
    assert_eq!(rejection(&app.get(&other).await), Rejection::ReusedToken);
    // A refused token stays refused, whatever is deleted.
    let () = client.del(name(&forged)).await.unwrap();
    assert_eq!(rejection(&app.get(&forged).await), Rejection::RefusedToken);
    let () = redis::cmd("FLUSHALL").query_async(&mut client).await.unwrap();
    assert_eq!(rejection(&app.get(&forged).await), Rejection::RefusedToken);
    assert_eq!((app.inner.calls(), apple.calls()), (4, 7));
}

#[tokio::test]
async fn a_client_that_goes_away_gives_its_token_back() {
    let server = RedisServer::start();
    let apple = Apple::new();
    let guard = guard(&server).await;
    let app = App::new(&apple.layer().with_single_use(guard.clone()));
    let token = apple.genuine();
    apple.fake.script(Reply::hang());
    let mut gone = Box::pin(app.get(&token));
    while apple.calls() == 0 {
        assert!(gone.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken);
    drop(gone);
    let digest = token.parse::<tower_devicecheck::DeviceToken>().unwrap().digest();
    let key = ReplayKey::new(apple.fake.team_id(), digest);
    let claim = Claim::new(Owner::random());
    let deadline = Instant::now() + Duration::from_secs(60);
    while guard.reserve(&key, &claim).await.unwrap() == Claimed::Taken {
        assert!(Instant::now() < deadline, "not given back");
    }
    guard.release(&key, &claim).await.unwrap();
    assert_eq!(app.status(&token).await, StatusCode::OK);
}
