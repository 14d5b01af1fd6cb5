//! The duties of every cache, run for each of them.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use tower_devicecheck::{
    Bits, DeviceToken, Environment, MalformedToken, Month, Rejection, Verdict,
    cache::{CacheError, CachedVerdict, MayAsk, MemoryCache, Tiered, VerdictCache, VerdictKey},
    testing::{FakeApple, Reply},
};
use web_time::{SystemTime, UNIX_EPOCH};

use crate::support::{App, Apple, rejection};

const TEAM: &str = "TEAM123456";
const MINUTE: Duration = Duration::from_secs(60);

fn token() -> DeviceToken {
    FakeApple::new().forged_token().parse().unwrap()
}

/// `advance` lets time pass.
pub(crate) async fn contract(cache: &impl VerdictCache, advance: impl AsyncFn(Duration)) {
    let (token, other) = (token(), token());
    let key = VerdictKey::new(TEAM, Environment::Production, &token);
    // Caches keep milliseconds.
    let checked_at = UNIX_EPOCH
        + Duration::from_millis(
            u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap(),
        );
    let verdict = |verdict, time_to_live| CachedVerdict::new(verdict, key.digest(), checked_at, time_to_live);

    assert_eq!(cache.get(&key).await.unwrap(), None, "nothing yet");
    for expected in [Verdict::Genuine, Verdict::Refused, Verdict::Genuine] {
        cache.put(&key, verdict(expected, MINUTE)).await.unwrap();
        let found = cache.get(&key).await.unwrap().expect("it was put just now");
        assert_eq!(found.verdict(), expected, "the newest verdict counts");
        assert_eq!(found.digest(), key.digest());
        assert_eq!(found.checked_at(), checked_at);
        assert!(found.time_to_live() <= MINUTE && found.time_to_live() > MINUTE / 2);
        assert!(cache.peek(&key).is_none_or(|peeked| peeked.verdict() == expected));
    }
    for (name, other) in [
        ("another team", VerdictKey::new("TEAM654321", Environment::Production, &token)),
        ("no team", VerdictKey::new("", Environment::Production, &token)),
        ("another environment", VerdictKey::new(TEAM, Environment::Development, &token)),
        ("another token", VerdictKey::new(TEAM, Environment::Production, &other)),
    ] {
        assert_eq!(cache.get(&other).await.unwrap(), None, "{name}");
        assert_eq!(cache.peek(&other), None, "{name}");
    }

    let short = Duration::from_millis(200);
    cache.put(&key, verdict(Verdict::Genuine, short)).await.unwrap();
    advance(short * 2).await;
    assert_eq!(cache.get(&key).await.unwrap(), None, "its time is over");
    assert_eq!(cache.peek(&key), None, "its time is over");
    let third = self::token();
    let key = VerdictKey::new(TEAM, Environment::Production, &third);
    cache.put(&key, verdict(Verdict::Genuine, Duration::ZERO)).await.unwrap();
    assert_eq!(cache.get(&key).await.unwrap(), None, "no time at all");

    match cache.lease(&key).await {
        MayAsk::Freely => {}
        MayAsk::UnderLease(owner) => cache.release(&key, owner).await,
        MayAsk::NoNeed(verdict) => panic!("nobody has asked: {verdict:?}"),
    }
    assert!(matches!(cache.lease(&key).await, MayAsk::Freely | MayAsk::UnderLease(_)));
}

/// The duties of a cache of a layer with marks. `advance` lets time pass.
pub(crate) async fn marks(cache: &impl VerdictCache, advance: impl AsyncFn(Duration)) {
    let token = token();
    let plain = VerdictKey::new(TEAM, Environment::Production, &token);
    let key = plain.for_marks(true);
    let hold = Duration::from_millis(300);
    let of =
        |verdict, bits| CachedVerdict::new(verdict, key.digest(), SystemTime::now(), MINUTE).with_bits(bits);
    let bits = Some(Bits::new(false, true, Month::new(2026, 4)));
    for bits in [Some(Bits::default()), bits] {
        cache.put(&key, of(Verdict::Genuine, bits)).await.unwrap();
        assert_eq!(cache.get(&key).await.unwrap().unwrap().bits(), bits);
        assert_eq!(cache.get(&plain).await.unwrap(), None, "a verdict without marks is another one");
    }
    cache.put(&plain, of(Verdict::Genuine, None)).await.unwrap();
    assert_eq!(cache.get(&key).await.unwrap().unwrap().bits(), bits);

    cache.forget(&key, hold).await.unwrap();
    for _ in 0..2 {
        assert_eq!((cache.get(&key).await.unwrap(), cache.peek(&key)), (None, None));
        cache.put(&key, of(Verdict::Genuine, bits)).await.unwrap();
    }
    assert_eq!(cache.get(&plain).await.unwrap().unwrap().bits(), None, "it is not forgotten");
    cache.put(&key, of(Verdict::Refused, None)).await.unwrap();
    assert_eq!(cache.get(&key).await.unwrap().unwrap().verdict(), Verdict::Refused);
    cache.put(&key, of(Verdict::Genuine, bits)).await.unwrap();
    assert_eq!(cache.get(&key).await.unwrap().unwrap().verdict(), Verdict::Refused);
    advance(hold * 2).await;
    cache.put(&key, of(Verdict::Genuine, bits)).await.unwrap();
    assert_eq!(cache.get(&key).await.unwrap().unwrap().bits(), bits);
}

#[tokio::test(start_paused = true)]
async fn memory() {
    marks(&Arc::new(MemoryCache::new()), tokio::time::advance).await;
    contract(&MemoryCache::new(), tokio::time::advance).await;
    contract(&Arc::new(MemoryCache::with_capacity(100, 100)), tokio::time::advance).await;
}

#[tokio::test(start_paused = true)]
async fn tiered() {
    let (near, far) = (Arc::new(MemoryCache::new()), Arc::new(MemoryCache::new()));
    marks(&Tiered::new(Arc::clone(&near), Arc::clone(&far)), tokio::time::advance).await;
    assert_eq!((near.genuine_len(), far.genuine_len()), (1, 2), "without and with marks");
    contract(&Tiered::new(MemoryCache::new(), MemoryCache::new()), tokio::time::advance).await;
}

#[tokio::test]
async fn tiered_fills_the_near_cache_from_the_far_one() {
    let (near, far) = (Arc::new(MemoryCache::new()), Arc::new(MemoryCache::new()));
    let cache = Tiered::new(Arc::clone(&near), Arc::clone(&far));
    let token = token();
    let key = VerdictKey::new(TEAM, Environment::Production, &token);
    far.put(&key, CachedVerdict::new(Verdict::Genuine, key.digest(), SystemTime::now(), MINUTE))
        .await
        .unwrap();
    assert!(near.peek(&key).is_none());
    assert!(cache.get(&key).await.unwrap().is_some());
    assert!(near.peek(&key).is_some());
}

/// Takes a while to find nothing, and never keeps anything.
struct SlowCache;

impl SlowCache {
    const GET: Duration = Duration::from_millis(30);
    const DEADLINE: Duration = Duration::from_millis(50);
}

impl VerdictCache for SlowCache {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        tokio::time::sleep(Self::GET).await;
        Ok(None)
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        std::future::pending().await
    }

    fn deadline(&self) -> Duration {
        Self::DEADLINE
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_cache_for_one_deadline_in_all() {
    let apple = Apple::new();
    let asked_for = Duration::from_secs(2);
    apple.fake.always(Reply::normal().delay(asked_for));
    for layer in [
        apple.layer().with_cache(SlowCache),
        apple.layer().with_cache(Arc::new(SlowCache)),
        apple.layer().with_cache(Tiered::new(MemoryCache::new(), SlowCache)),
    ] {
        let app = App::new(&layer);
        apple.fake.reset_counts();
        let started = tokio::time::Instant::now();
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
        assert_eq!((started.elapsed() - asked_for, apple.calls()), (SlowCache::DEADLINE, 1));
    }
}

/// Finds a genuine verdict for whatever it is asked about, and never compares a text.
struct Credulous;

impl VerdictCache for Credulous {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        Some(CachedVerdict::new(Verdict::Genuine, key.digest(), SystemTime::now(), MINUTE))
    }

    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Ok(self.peek(key))
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        Ok(())
    }
}

#[tokio::test]
async fn no_cache_makes_a_token_of_what_is_none() {
    let apple = Apple::new();
    for layer in [
        apple.layer().with_cache(Credulous),
        apple.layer().with_cache(Tiered::new(MemoryCache::new(), Credulous)),
    ] {
        let app = App::new(&layer);
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
        for text in ["Ah==", "AgAA AgAA", "not-base64"] {
            let malformed = Rejection::MalformedToken(MalformedToken::NotCanonical);
            assert_eq!(rejection(&app.get(text).await), malformed, "{text}");
        }
        assert_eq!((apple.calls(), app.inner.calls()), (0, 1));
    }
}
