//! Caches: what is remembered, for how long, and for whom.

use std::{sync::Arc, time::Duration};

use allocation_counter::measure;
use futures::{executor::block_on, future::join_all};
use http::StatusCode;
use tower_devicecheck::{
    AppleClient, DeviceCheckLayer, DeviceVerifier, Environment, Evidence, Observer, TokenQuestion, Verdict,
    VerifyError,
    cache::{CacheError, CachedVerdict, MemoryCache, Tiered, VerdictCache, VerdictKey},
    testing::{FakeApple, Reply},
};

use crate::captured;
use crate::support::{App, Apple, Counter, get};

/// Believes tokens that begin with `AgAAAgen`. Counts.
#[derive(Clone, Default)]
struct ByPrefix(Counter);

impl DeviceVerifier for ByPrefix {
    async fn verify(&self, question: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        self.0.add();
        let genuine = question.token().expose().starts_with("AgAAAgen");
        Ok(if genuine { Verdict::Genuine } else { Verdict::Refused })
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

#[test]
fn r15_a_flood_of_random_tokens_is_bounded_and_displaces_no_genuine_one() {
    // Twenty times the space for refused tokens.
    const FLOOD: u64 = 200_000;
    let verifier = ByPrefix::default();
    let cache = Arc::new(MemoryCache::new());
    let app = App::new(&DeviceCheckLayer::new(verifier.clone()).with_cache(Arc::clone(&cache)));
    assert_eq!(block_on(app.status("AgAAAgen")), StatusCode::OK);
    let memory = measure(|| {
        for number in 0..FLOOD {
            // Twelve base64 characters: digits stand for themselves.
            assert_eq!(block_on(app.status(&format!("{number:012}"))), StatusCode::UNAUTHORIZED);
        }
    });
    println!(
        "{} kB more after the flood, {} kB at most",
        memory.bytes_current / 1_000,
        memory.bytes_max / 1_000
    );
    assert!(memory.bytes_max < 3_000_000, "{memory:?}");
    assert!(cache.refused_len() <= 10_000, "{}", cache.refused_len());
    assert_eq!(cache.genuine_len(), 1);

    let asked = verifier.0.get();
    assert_eq!(asked as u64, FLOOD + 1);
    assert_eq!(block_on(app.status("AgAAAgen")), StatusCode::OK);
    assert_eq!(app.evidence(), Evidence::CACHE);
    assert_eq!((verifier.0.get(), app.inner.calls()), (asked, 2));
}

#[tokio::test(start_paused = true)]
async fn r16_time_to_live_counts_from_the_start_of_the_check() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_time_to_live(Verdict::Genuine, Duration::from_secs(10)));
    let token = apple.genuine();
    apple.fake.script(Reply::normal().delay(Duration::from_millis(2_500)));
    assert_eq!(app.status(&token).await, StatusCode::OK);

    tokio::time::advance(Duration::from_millis(7_400)).await;
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!((app.evidence(), apple.calls()), (Evidence::CACHE, 1));

    tokio::time::advance(Duration::from_millis(101)).await;
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!((app.evidence(), apple.calls()), (Evidence::APPLE, 2));
}

#[tokio::test(start_paused = true)]
async fn r16_a_check_longer_than_the_time_to_live_is_not_remembered() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_time_to_live(Verdict::Genuine, Duration::from_secs(1)));
    let token = apple.genuine();
    apple.fake.script(Reply::normal().delay(Duration::from_secs(2)));
    for calls in 1..=2 {
        assert_eq!(app.status(&token).await, StatusCode::OK);
        assert_eq!((app.evidence(), apple.calls()), (Evidence::APPLE, calls));
    }
}

#[tokio::test(start_paused = true)]
async fn verdicts_live_five_minutes_and_thirty_seconds() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let (genuine, forged) = (apple.genuine(), apple.fake.forged_token());
    let ask = async || {
        app.status(&genuine).await;
        app.status(&forged).await;
        apple.calls()
    };
    assert_eq!(ask().await, 2);
    tokio::time::advance(Duration::from_millis(29_999)).await;
    assert_eq!(ask().await, 2);
    tokio::time::advance(Duration::from_millis(2)).await;
    assert_eq!(ask().await, 3, "the refused one is asked about again");
    tokio::time::advance(Duration::from_secs(269)).await;
    assert_eq!(ask().await, 4);
    tokio::time::advance(Duration::from_millis(1_000)).await;
    assert_eq!(ask().await, 5, "the genuine one is asked about again");
}

/// Always fails.
#[derive(Clone, Copy)]
struct Broken;

impl VerdictCache for Broken {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Err(CacheError::new("down"))
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        Err(CacheError::new("down"))
    }
}

/// Counts failures of the cache.
#[derive(Clone, Default)]
struct CacheErrors(Counter);

impl Observer for CacheErrors {
    fn decision(&self, event: &tower_devicecheck::Event<'_>) {
        captured::shown(event);
    }

    fn cache_error(&self, error: &CacheError) {
        captured::shown(error);
        self.0.add();
    }
}

#[tokio::test]
async fn r17_a_failing_cache_is_a_miss_and_is_reported() {
    let apple = Apple::new();
    let errors = CacheErrors::default();
    let app = App::new(&apple.layer().with_cache(Broken).with_observer(errors.clone()));
    let token = apple.genuine();
    for round in 1..=2 {
        assert_eq!(app.status(&token).await, StatusCode::OK);
        assert_eq!((apple.calls(), errors.0.get()), (round, 2 * round), "once for get, once for put");
    }
    let near = Tiered::new(MemoryCache::new(), Broken);
    let app = App::new(&apple.layer().with_cache(near).with_observer(errors.clone()));
    for _ in 0..2 {
        assert_eq!(app.status(&token).await, StatusCode::OK);
    }
    assert_eq!((apple.calls(), errors.0.get()), (3, 6), "the near cache works on");
}

/// Never answers.
struct Hangs;

impl VerdictCache for Hangs {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        std::future::pending().await
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        std::future::pending().await
    }
}

/// Has nothing, and keeps nothing, forever.
struct HangsOnPut;

impl VerdictCache for HangsOnPut {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Ok(None)
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn r17_a_cache_that_hangs_is_a_miss() {
    let apple = Apple::new();
    for (seconds, layer) in [(2, apple.layer().with_cache(Hangs)), (1, apple.layer().with_cache(HangsOnPut))]
    {
        let app = App::new(&layer);
        apple.fake.reset_counts();
        let started = tokio::time::Instant::now();
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
        assert_eq!((started.elapsed().as_secs(), apple.calls()), (seconds, 1));
    }
}

#[tokio::test]
async fn r18_a_verdict_does_not_answer_for_another_team_or_environment() {
    let cache = Arc::new(MemoryCache::new());
    let ours = Apple::new();
    let token = ours.genuine();
    let app = App::new(&ours.layer().with_cache(Arc::clone(&cache)));
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(ours.calls(), 1);

    let development =
        ours.layer().with_cache(Arc::clone(&cache)).with_routing(tower_devicecheck::Route::Development);
    assert_eq!(App::new(&development).status(&token).await, StatusCode::UNAUTHORIZED);
    assert_eq!(ours.fake.calls_in(Environment::Development), 1);

    // Another team's verifier, with the same cache.
    let theirs = FakeApple::new();
    let pem = theirs.private_key().to_pem();
    let credentials = tower_devicecheck::Credentials::from_pem("OTHERTEAM1", "KEY1234567", &pem).unwrap();
    let client = AppleClient::builder(credentials).transport(theirs.transport()).build().unwrap();
    let app = App::new(&DeviceCheckLayer::new(client).with_cache(cache));
    assert_eq!(app.status(&token).await, StatusCode::INTERNAL_SERVER_ERROR, "this team has no key there");
    assert_eq!(theirs.calls(), 2);
}

#[tokio::test]
async fn tiers_are_searched_from_near_to_far_and_filled_on_the_way_back() {
    let apple = Apple::new();
    let (near, far) = (Arc::new(MemoryCache::new()), Arc::new(MemoryCache::new()));
    let token = apple.genuine();
    assert_eq!(App::new(&apple.layer().with_cache(Arc::clone(&far))).status(&token).await, StatusCode::OK);
    assert_eq!((near.genuine_len(), apple.calls()), (0, 1));

    let app = App::new(&apple.layer().with_cache(Tiered::new(Arc::clone(&near), FarOnly(far))));
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.evidence(), Evidence::CACHE);
    assert_eq!((near.genuine_len(), apple.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn requests_with_one_token_ask_a_far_cache_together() {
    let apple = Apple::new();
    let token = apple.genuine();
    let far = Arc::new(MemoryCache::new());
    let gets = Counter::default();
    let counted = Counted { cache: FarOnly(Arc::clone(&far)), gets: gets.clone() };
    let app = App::new(&apple.layer().with_cache(counted));
    for round in 1..=2 {
        let all = join_all((0..100).map(|_| app.status(&token))).await;
        assert!(all.iter().all(|status| *status == StatusCode::OK));
        assert_eq!((gets.get(), apple.calls()), (round, 1));
    }
}

/// Takes a while, and counts how often it is asked.
struct Counted {
    cache: FarOnly,
    gets: Counter,
}

impl VerdictCache for Counted {
    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        self.gets.add();
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.cache.get(key).await
    }

    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        self.cache.put(key, verdict).await
    }
}

/// A cache in another process: nothing to be seen of it without waiting.
struct FarOnly(Arc<MemoryCache>);

impl VerdictCache for FarOnly {
    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        tokio::task::yield_now().await;
        VerdictCache::get(&self.0, key).await
    }

    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        VerdictCache::put(&self.0, key, verdict).await
    }
}

#[tokio::test]
async fn a_layer_shares_its_cache_among_its_services() {
    let apple = Apple::new();
    let layer = apple.layer();
    let token = apple.genuine();
    for _ in 0..2 {
        assert_eq!(App::new(&layer).send(get(&token)).await.status(), StatusCode::OK);
    }
    assert_eq!(apple.calls(), 1);
}
