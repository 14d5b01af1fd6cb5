//! Tokens, caches and replays.

use std::{sync::Arc, time::Duration};

use allocation_counter::measure;
use futures::{
    executor::block_on,
    future::{join_all, poll_immediate},
};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::Full;
use tower_devicecheck::{
    AppleClient, BearerToken, DeviceCheckLayer, DeviceVerifier, Environment, Evidence, HeaderToken,
    MAX_TOKEN_LENGTH, MalformedToken, Observer, Rejection, TokenQuestion, Verdict, VerifyError,
    cache::{CacheError, CachedVerdict, MemoryCache, Tiered, VerdictCache, VerdictKey},
    testing::{FakeApple, Reply, tokens},
};

use crate::support::{App, Apple, Counter, TOKEN_HEADER, get, plain, rejection};

fn with_headers(headers: &[(&str, &[u8])]) -> Request<Full<bytes::Bytes>> {
    let mut request = plain();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
    }
    request
}

#[tokio::test]
async fn r11_aliases_of_a_token_are_refused() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    // Two bytes more than a multiple of three, so that there is padding and there are trailing bits.
    let token = apple.genuine();
    let token = format!("{}Pg", &token[..token.trim_end_matches('=').len() / 4 * 4]);
    assert_eq!(app.status(&token).await, StatusCode::UNAUTHORIZED, "well formed, but none of Apple's");
    assert_eq!(app.status(&format!("{token}==")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(apple.calls(), 1, "canonical padding or none is the same token");

    let aliases = [
        ("one padding", format!("{token}=")),
        ("three paddings", format!("{token}===")),
        ("trailing bits", format!("{}h", &token[..token.len() - 1])),
        ("white space inside", format!("{} {}", &token[..8], &token[8..])),
        ("a letter of the URL-safe alphabet", format!("{}-_{}", &token[..8], &token[10..])),
        ("padding inside", format!("{token}==AAAA")),
        ("percent-encoded padding", format!("{token}%3D%3D")),
    ];
    for (name, alias) in aliases {
        let response = app.get(&alias).await;
        assert_eq!(rejection(&response), MalformedToken::NotCanonical.into(), "{name}");
    }
    assert_eq!((apple.calls(), app.inner.calls()), (1, 0));
}

#[tokio::test]
async fn r11_a_cached_genuine_token_does_not_make_its_aliases_genuine() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    for alias in [format!("{token}="), format!("{token}=="), format!("{token}===="), format!("{token} =")] {
        assert_eq!(app.status(&alias).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!((apple.calls(), app.inner.calls()), (1, 1));
}

#[tokio::test]
async fn r12_repeated_empty_and_overlong_headers_are_refused_without_asking_apple() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    let long = "A".repeat(MAX_TOKEN_LENGTH + 1);
    let token = token.as_bytes();
    type Row<'a> = (&'a str, &'a [(&'a str, &'a [u8])], MalformedToken);
    let cases: &[Row<'_>] = &[
        ("twice the same", &[(TOKEN_HEADER, token), (TOKEN_HEADER, token)], MalformedToken::Repeated),
        ("two different", &[(TOKEN_HEADER, token), (TOKEN_HEADER, b"AgAA")], MalformedToken::Repeated),
        ("empty", &[(TOKEN_HEADER, b"")], MalformedToken::Empty),
        ("blank", &[(TOKEN_HEADER, b" \t ")], MalformedToken::Empty),
        ("too long", &[(TOKEN_HEADER, long.as_bytes())], MalformedToken::TooLong),
        ("not ASCII", &[(TOKEN_HEADER, b"Ag\xc3\xa4A")], MalformedToken::NotCanonical),
    ];
    for (name, headers, reason) in cases {
        let response = app.send(with_headers(headers)).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{name}");
        assert_eq!(rejection(&response), Rejection::MalformedToken(*reason), "{name}");
    }
    assert_eq!((apple.calls(), app.inner.calls()), (0, 0));
}

#[tokio::test]
async fn two_token_sources_must_agree() {
    let apple = Apple::new();
    let layer = apple.layer().with_token_source(HeaderToken::default()).add_token_source(BearerToken::new());
    let app = App::new(&layer);
    let token = apple.genuine();
    let bearer = format!("Bearer part.metadata.{token}");
    let both: &[(&str, &[u8])] = &[(TOKEN_HEADER, token.as_bytes()), ("authorization", bearer.as_bytes())];
    for headers in [&both[..1], &both[1..], both] {
        assert_eq!(app.send(with_headers(headers)).await.status(), StatusCode::OK);
        let seen = app.inner.last().headers;
        assert!(!seen.contains_key(TOKEN_HEADER));
        let left = seen.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        assert!(left.is_none_or(|left| left == "Bearer part.metadata"));
    }
    assert_eq!(apple.calls(), 1);

    let other = apple.genuine();
    let differ: &[(&str, &[u8])] = &[(TOKEN_HEADER, other.as_bytes()), ("authorization", bearer.as_bytes())];
    let response = app.send(with_headers(differ)).await;
    assert_eq!(rejection(&response), MalformedToken::Disagreement.into());
    assert_eq!((apple.calls(), app.inner.calls()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn r13_concurrent_requests_with_one_token_make_one_call() {
    for layer in [Apple::layer, |apple: &Apple| apple.layer().without_cache()] {
        let apple = Apple::new();
        let app = App::new(&layer(&apple));
        let token = apple.genuine();
        apple.fake.always(Reply::normal().delay(Duration::from_millis(100)));
        let statuses = join_all((0..500).map(|_| app.status(&token))).await;
        assert!(statuses.iter().all(|status| *status == StatusCode::OK));
        assert_eq!((apple.calls(), app.inner.calls()), (1, 500));
    }
}

#[tokio::test(start_paused = true)]
async fn r13_the_first_caller_leaves_and_the_others_are_served() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    apple.fake.always(Reply::normal().delay(Duration::from_millis(100)));
    let mut first = Box::pin(app.status(&token));
    let mut second = Box::pin(app.status(&token));
    assert!(poll_immediate(&mut first).await.is_none());
    assert!(poll_immediate(&mut second).await.is_none());
    drop(first);
    assert_eq!(second.await, StatusCode::OK);
    assert_eq!((apple.calls(), app.inner.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn r13_all_callers_leave_and_the_next_one_asks_anew() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    apple.fake.script(Reply::hang());
    let mut callers: Vec<_> = (0..3).map(|_| Box::pin(app.status(&token))).collect();
    for caller in &mut callers {
        assert!(poll_immediate(caller).await.is_none());
    }
    assert_eq!(apple.calls(), 1);
    drop(callers);
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!((apple.calls(), app.inner.calls()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn r13_a_failure_is_shared_with_those_who_wait_and_not_stored() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    apple.fake.script(Reply::status(500).delay(Duration::from_millis(100)));
    let statuses = join_all((0..10).map(|_| app.status(&token))).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(apple.calls(), 1);
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!((apple.calls(), app.inner.calls()), (2, 1));
}

/// Panics at the first call, then believes everything. Counts.
#[derive(Clone, Default)]
struct PanicsOnce(Counter);

impl DeviceVerifier for PanicsOnce {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        self.0.add();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(self.0.get() > 1, "a panic, as this test wants");
        Ok(Verdict::Genuine)
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

#[tokio::test(start_paused = true)]
async fn r14_a_panic_in_the_verifier_fails_those_waiting_and_frees_the_slot() {
    let verifier = PanicsOnce::default();
    let app = App::new(&DeviceCheckLayer::new(verifier.clone()));
    let token = tokens::realistic();
    for response in join_all((0..3).map(|_| app.get(&token))).await {
        assert!(matches!(rejection(&response), Rejection::Unavailable { .. }));
    }
    assert_eq!((verifier.0.get(), app.inner.calls()), (1, 0));
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!((verifier.0.get(), app.inner.calls()), (2, 1));
}

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
    const FLOOD: u64 = 1_000_000;
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
    assert!(cache.refused_len() <= MemoryCache::REFUSED, "{}", cache.refused_len());
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
    fn decision(&self, _: &tower_devicecheck::Event<'_>) {}

    fn cache_error(&self, _: &CacheError) {
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
    let pem = theirs.private_key_pem();
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
