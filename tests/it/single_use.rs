//! Single use: a token admits one request, whatever happens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use allocation_counter::measure;
use bytes::Bytes;
use futures::{FutureExt, future::join_all};
use http::{HeaderName, Request, StatusCode};
use http_body_util::Full;
use tower_devicecheck::{
    Environment, Evidence, Owner, Rejection, Route, TokenDigest,
    cache::MemoryCache,
    replay::{Claim, Claimed, GuardError, MemoryReplayGuard, ReplayGuard, ReplayKey},
    testing::Reply,
};

use crate::support::{App, Apple, get, rejection};

const LEASE: Duration = Duration::from_secs(30);
const RETENTION: Duration = Duration::from_secs(60 * 60);

fn with_key(token: &str, name: &'static str, key: &str) -> Request<Full<Bytes>> {
    let mut request = get(token);
    request.headers_mut().append(HeaderName::from_static(name), key.parse().unwrap());
    request
}

/// The duties of every guard. `advance` lets time pass.
pub(crate) async fn contract(
    guard: &impl ReplayGuard,
    lease: Duration,
    window: Duration,
    advance: impl AsyncFn(Duration),
) {
    use Claimed::{Taken, Yours};
    let digest = |byte: u8| TokenDigest::from([byte; 32]);
    let key = |byte| ReplayKey::new("TEAM123456", digest(byte));
    let claim = || Claim::new(Owner::random());

    let (first, second) = (claim(), claim());
    assert_eq!(guard.reserve(&key(1), &first).await.unwrap(), Yours);
    assert_eq!(guard.reserve(&key(1), &second).await.unwrap(), Taken);
    let other_team = ReplayKey::new("TEAM654321", digest(1));
    assert_eq!(guard.reserve(&other_team, &second).await.unwrap(), Yours, "another team's token");
    guard.release(&key(1), &second).await.unwrap();
    assert_eq!(guard.reserve(&key(1), &second).await.unwrap(), Taken, "only the owner releases");
    assert_eq!(guard.confirm(&key(1), &second).await.unwrap(), Taken, "only the owner confirms");
    assert_eq!(guard.confirm(&key(1), &first).await.unwrap(), Yours);
    assert_eq!(guard.confirm(&key(1), &first).await.unwrap(), Yours, "as often as it likes");
    guard.release(&key(1), &first).await.unwrap();
    assert_eq!(guard.reserve(&key(1), &claim()).await.unwrap(), Taken, "spent is spent");

    let first = claim();
    assert_eq!(guard.reserve(&key(2), &first).await.unwrap(), Yours);
    guard.release(&key(2), &first).await.unwrap();
    assert_eq!(guard.reserve(&key(2), &second).await.unwrap(), Yours, "released");

    // Leases that lapse.
    let (slow, thief, late) = (claim(), claim(), claim());
    assert_eq!(guard.reserve(&key(3), &slow).await.unwrap(), Yours);
    assert_eq!(guard.reserve(&key(4), &late).await.unwrap(), Yours);
    advance(lease + Duration::from_millis(50)).await;
    assert_eq!(guard.reserve(&key(3), &thief).await.unwrap(), Yours);
    assert_eq!(guard.confirm(&key(3), &slow).await.unwrap(), Taken, "another has it now");
    assert_eq!(guard.confirm(&key(3), &thief).await.unwrap(), Yours);
    assert_eq!(guard.confirm(&key(4), &late).await.unwrap(), Yours, "nobody took it");
    assert_eq!(guard.reserve(&key(4), &claim()).await.unwrap(), Taken);

    // One retry.
    let retry = |idempotency_key: &[u8]| claim().with_retry(idempotency_key, window);
    let first = retry(b"a");
    assert_eq!(guard.reserve(&key(5), &first).await.unwrap(), Yours);
    assert_eq!(guard.reserve(&key(5), &retry(b"a")).await.unwrap(), Taken, "not while it is checked");
    assert_eq!(guard.confirm(&key(5), &first).await.unwrap(), Yours);
    assert_eq!(guard.reserve(&key(5), &retry(b"b")).await.unwrap(), Taken, "another key");
    assert_eq!(guard.reserve(&key(5), &claim()).await.unwrap(), Taken, "no key");
    let again = retry(b"a");
    assert_eq!(guard.reserve(&key(5), &again).await.unwrap(), Yours);
    assert_eq!(guard.reserve(&key(5), &retry(b"a")).await.unwrap(), Taken, "only one");
    assert_eq!(guard.confirm(&key(5), &again).await.unwrap(), Yours);
    guard.release(&key(5), &again).await.unwrap();
    assert_eq!(guard.reserve(&key(5), &retry(b"a")).await.unwrap(), Taken, "the retry is spent, too");

    let first = retry(b"a");
    assert_eq!(guard.reserve(&key(6), &first).await.unwrap(), Yours);
    assert_eq!(guard.confirm(&key(6), &first).await.unwrap(), Yours);
    advance(window + Duration::from_millis(50)).await;
    assert_eq!(guard.reserve(&key(6), &retry(b"a")).await.unwrap(), Taken, "too late");
}

/// A store that is asked twice, because the first answer was lost on the way, says the same.
pub(crate) async fn reserving_twice(guard: &impl ReplayGuard, window: Duration) {
    use Claimed::{Taken, Yours};
    let key = ReplayKey::new("TEAM123456", TokenDigest::from([7; 32]));
    let retry = || Claim::new(Owner::random()).with_retry(b"a", window);
    let (first, second, third) = (retry(), retry(), retry());
    for _ in 0..3 {
        assert_eq!(guard.reserve(&key, &first).await.unwrap(), Yours);
        assert_eq!(guard.reserve(&key, &second).await.unwrap(), Taken);
    }
    for _ in 0..3 {
        assert_eq!(guard.confirm(&key, &first).await.unwrap(), Yours);
    }
    for _ in 0..3 {
        assert_eq!(guard.reserve(&key, &second).await.unwrap(), Yours, "the one retry");
        assert_eq!(guard.reserve(&key, &third).await.unwrap(), Taken);
    }
    for _ in 0..3 {
        assert_eq!(guard.confirm(&key, &second).await.unwrap(), Yours);
        assert_eq!(guard.reserve(&key, &third).await.unwrap(), Taken);
    }
}

#[tokio::test(start_paused = true)]
async fn c04_reserving_twice_by_one_owner_is_once() {
    reserving_twice(&MemoryReplayGuard::new(), Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn c03_reservations_that_were_given_back_take_no_room() {
    let guard = MemoryReplayGuard::with_capacity(100);
    let made_up = ReplayKey::new("TEAM123456", TokenDigest::from([1; 32]));
    for _ in 0..10_000 {
        let claim = Claim::new(Owner::random());
        assert_eq!(guard.reserve(&made_up, &claim).await.unwrap(), Claimed::Yours);
        guard.abandon(&made_up, &claim);
    }
    assert_eq!(guard.len(), 0);
    for byte in 2..100 {
        let key = ReplayKey::new("TEAM123456", TokenDigest::from([byte; 32]));
        let claim = Claim::new(Owner::random());
        assert_eq!(guard.reserve(&key, &claim).await.unwrap(), Claimed::Yours);
        assert_eq!(guard.confirm(&key, &claim).await.unwrap(), Claimed::Yours);
    }
}

#[tokio::test(start_paused = true)]
async fn c03_no_request_pays_for_all_that_lapse_at_once() {
    const TOKENS: u32 = 200_000;
    let guard = MemoryReplayGuard::new().with_lease(LEASE);
    let digest = |number: u32| {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&number.to_be_bytes());
        TokenDigest::from(digest)
    };
    // The memory that a request frees tells how much it removes: ten tokens or so share a piece.
    let reserve = |number| {
        let key = ReplayKey::new("TEAM123456", digest(number));
        let used = measure(|| {
            let reserved = guard.reserve(&key, &Claim::new(Owner::random())).now_or_never();
            assert_eq!(reserved.unwrap().unwrap(), Claimed::Yours);
        });
        used.count_current
    };
    for number in 0..TOKENS {
        reserve(number);
    }
    tokio::time::advance(LEASE).await;
    let freed: Vec<_> = (0..1_000).map(|number| -reserve(number)).collect();
    assert!(freed.iter().all(|pieces| *pieces < 20), "{:?}", freed.iter().max());
    assert!(freed.iter().sum::<i64>() > 0, "nothing is removed");
}

#[tokio::test(start_paused = true)]
async fn the_memory_guard_keeps_the_contract_and_forgets_in_time() {
    let guard = MemoryReplayGuard::new().with_lease(LEASE).with_retention(RETENTION);
    contract(&guard, LEASE, Duration::from_secs(10), tokio::time::advance).await;
    assert!(!guard.is_empty());
    tokio::time::advance(RETENTION).await;
    assert_eq!(guard.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_guard_forgets_nothing_early() {
    let guard = MemoryReplayGuard::with_capacity(2).with_lease(LEASE).with_retention(RETENTION);
    let key = |byte| ReplayKey::new("TEAM123456", TokenDigest::from([byte; 32]));
    let claim = Claim::new(Owner::random());
    guard.reserve(&key(1), &claim).await.unwrap();
    guard.confirm(&key(1), &claim).await.unwrap();
    guard.reserve(&key(2), &claim).await.unwrap();
    let other = Claim::new(Owner::random());
    assert!(guard.reserve(&key(3), &other).await.is_err());
    assert_eq!(guard.reserve(&key(1), &other).await.unwrap(), Claimed::Taken);
    tokio::time::advance(LEASE).await;
    assert_eq!(guard.reserve(&key(3), &other).await.unwrap(), Claimed::Yours);
}

#[tokio::test]
async fn a_token_admits_one_request() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_single_use(MemoryReplayGuard::new()));
    let token = apple.genuine();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.evidence(), Evidence::APPLE);
    for _ in 0..3 {
        let response = app.get(&token).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(rejection(&response), Rejection::ReusedToken);
    }
    assert_eq!((apple.calls(), app.inner.calls()), (1, 1));
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!(apple.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn of_many_at_once_exactly_one_is_admitted() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_single_use(MemoryReplayGuard::new()));
    let token = apple.genuine();
    apple.fake.always(Reply::normal().delay(Duration::from_millis(200)));
    let statuses = join_all((0..300).map(|_| app.status(&token))).await;
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::OK).count(), 1);
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::UNAUTHORIZED).count(), 299);
    assert_eq!((apple.calls(), app.inner.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_the_retry_works() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_single_use(MemoryReplayGuard::new()));
    let token = apple.genuine();
    for reply in [Reply::status(500), Reply::status(429), Reply::status(403), Reply::hang(), Reply::reset()] {
        apple.fake.always(reply);
        assert!(app.status(&token).await.is_server_error());
    }
    apple.fake.clear();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.status(&token).await, StatusCode::UNAUTHORIZED);
    assert_eq!(app.inner.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_asked_about_once_in_a_while() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_single_use(MemoryReplayGuard::new().with_lease(LEASE)));
    let token = apple.fake.forged_token();
    assert_eq!(rejection(&app.get(&token).await), Rejection::RefusedToken);
    assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken);
    assert_eq!(apple.calls(), 1);
    tokio::time::advance(LEASE).await;
    assert_eq!(rejection(&app.get(&token).await), Rejection::RefusedToken);
    assert_eq!(apple.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_gives_its_token_back() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_single_use(MemoryReplayGuard::new()));
    let token = apple.genuine();
    apple.fake.script(Reply::hang());
    let mut gone = Box::pin(app.get(&token));
    assert!(gone.as_mut().now_or_never().is_none());
    assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken);
    drop(gone);
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.inner.calls(), 1);
}

#[tokio::test]
async fn a_token_is_spent_for_both_environments() {
    let apple = Apple::new();
    let guard = Arc::new(MemoryReplayGuard::new());
    let both =
        apple.layer().with_routing(Route::ProductionThenDevelopment).with_single_use(Arc::clone(&guard));
    let token = apple.fake.genuine_token(Environment::Development);
    let app = App::new(&both);
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.device().environment(), Environment::Development);
    assert_eq!(apple.calls(), 2);
    for route in [Route::Production, Route::Development, Route::ProductionThenDevelopment] {
        let app = App::new(&apple.layer().with_routing(route).with_single_use(Arc::clone(&guard)));
        assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken, "{route:?}");
    }
    assert_eq!(apple.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_retry_with_the_same_idempotency_key_where_the_operator_lets_it() {
    const HEADER: &str = "idempotency-key";
    let window = Duration::from_secs(10);
    let apple = Apple::new();
    let guarded = || apple.layer().with_single_use(MemoryReplayGuard::new());

    let app = App::new(&guarded());
    let token = apple.genuine();
    assert_eq!(app.send(with_key(&token, HEADER, "a")).await.status(), StatusCode::OK);
    assert_eq!(
        rejection(&app.send(with_key(&token, HEADER, "a")).await),
        Rejection::ReusedToken,
        "by default"
    );

    let app = App::new(&guarded().with_retry_window(window));
    let token = apple.genuine();
    let asked = apple.calls();
    assert_eq!(app.send(with_key(&token, HEADER, "a")).await.status(), StatusCode::OK);
    assert_eq!(app.inner.last().headers[HEADER], "a", "the inner service needs it");
    assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken);
    assert_eq!(rejection(&app.send(with_key(&token, HEADER, "b")).await), Rejection::ReusedToken);
    let mut twice = with_key(&token, HEADER, "a");
    twice.headers_mut().append(HEADER, "a".parse().unwrap());
    assert_eq!(rejection(&app.send(twice).await), Rejection::ReusedToken);
    assert_eq!(app.send(with_key(&token, HEADER, "a")).await.status(), StatusCode::OK);
    assert_eq!(rejection(&app.send(with_key(&token, HEADER, "a")).await), Rejection::ReusedToken);
    assert_eq!((apple.calls() - asked, app.inner.calls()), (2, 2), "Apple has the last word");

    let app = App::new(&guarded().with_retry_window(window));
    let token = apple.genuine();
    assert_eq!(app.send(with_key(&token, HEADER, "")).await.status(), StatusCode::OK);
    assert_eq!(rejection(&app.send(with_key(&token, HEADER, "")).await), Rejection::ReusedToken, "no key");

    let app = App::new(
        &guarded().with_retry_window(window).with_idempotency_header(HeaderName::from_static("x-request")),
    );
    let token = apple.genuine();
    assert_eq!(app.send(with_key(&token, "x-request", "a")).await.status(), StatusCode::OK);
    tokio::time::advance(window).await;
    assert_eq!(
        rejection(&app.send(with_key(&token, "x-request", "a")).await),
        Rejection::ReusedToken,
        "too late"
    );
}

/// Fails at one step.
struct Broken(MemoryReplayGuard, &'static str);

impl Broken {
    fn fail(&self, step: &str) -> Result<(), GuardError> {
        if self.1 == step { Err(GuardError::new("broken, as this test wants")) } else { Ok(()) }
    }
}

impl ReplayGuard for Broken {
    async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        self.fail("reserve")?;
        self.0.reserve(key, claim).await
    }

    async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        self.fail("confirm")?;
        self.0.confirm(key, claim).await
    }

    async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        self.fail("release")?;
        self.0.release(key, claim).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_fails_admits_nobody() {
    for (step, calls) in [("reserve", 0), ("confirm", 1)] {
        let apple = Apple::new();
        let app = App::new(&apple.layer().with_single_use(Broken(MemoryReplayGuard::new(), step)));
        let response = app.get(&apple.genuine()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{step}");
        assert!(response.headers().contains_key("retry-after"), "{step}");
        assert_eq!((apple.calls(), app.inner.calls()), (calls, 0), "{step}");
    }
    // A lease that is not released lapses.
    let apple = Apple::new();
    let guard = Broken(MemoryReplayGuard::new().with_lease(LEASE), "release");
    let app = App::new(&apple.layer().with_single_use(guard));
    let token = apple.genuine();
    apple.fake.script(Reply::status(500));
    assert_eq!(app.status(&token).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken);
    tokio::time::advance(LEASE).await;
    assert_eq!(app.status(&token).await, StatusCode::OK);
}

/// Fails at one step once, after it did what it was asked for: the answer was lost.
struct Hiccup(MemoryReplayGuard, &'static str, AtomicUsize);

impl Hiccup {
    fn fail(&self, step: &str) -> Result<(), GuardError> {
        let fails = self.1 == step && self.2.fetch_add(1, Ordering::SeqCst) == 0;
        if fails { Err(GuardError::new("a hiccup, as this test wants")) } else { Ok(()) }
    }
}

impl ReplayGuard for Hiccup {
    async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        let answer = self.0.reserve(key, claim).await;
        self.fail("reserve")?;
        answer
    }

    async fn confirm(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        self.fail("confirm")?;
        self.0.confirm(key, claim).await
    }

    async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        self.fail("release")?;
        self.0.release(key, claim).await
    }
}

#[tokio::test(start_paused = true)]
async fn c01_the_hiccup_of_any_guard_costs_no_token() {
    for step in ["reserve", "confirm", "release"] {
        let apple = Apple::new();
        let app = App::new(&apple.layer().with_single_use(Hiccup(
            MemoryReplayGuard::new(),
            step,
            AtomicUsize::new(0),
        )));
        let token = apple.genuine();
        if step == "release" {
            apple.fake.script(Reply::status(400));
        }
        let response = app.get(&token).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{step}");
        let retry_after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        tokio::time::sleep(Duration::from_secs(retry_after)).await;
        assert_eq!(app.status(&token).await, StatusCode::OK, "{step}");
        assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken, "{step}");
        assert_eq!(app.inner.calls(), 1, "{step}");
    }
}

#[tokio::test]
async fn the_cache_and_single_use_exclude_each_other() {
    let apple = Apple::new();
    let token = apple.genuine();
    let cache = Arc::new(MemoryCache::new());
    let cached = apple.layer().with_cache(Arc::clone(&cache));
    assert_eq!(App::new(&cached).status(&token).await, StatusCode::OK);
    assert_eq!((apple.calls(), cache.genuine_len()), (1, 1));

    // The verdict that the cache holds is not used, and none is put.
    let app = App::new(&cached.clone().with_single_use(MemoryReplayGuard::new()));
    let second = apple.genuine();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.status(&second).await, StatusCode::OK);
    assert_eq!(app.status(&token).await, StatusCode::UNAUTHORIZED);
    assert_eq!((apple.calls(), cache.genuine_len()), (3, 1));

    let app = App::new(&cached.with_single_use(MemoryReplayGuard::new()).with_cache(MemoryCache::new()));
    for _ in 0..2 {
        assert_eq!(app.status(&second).await, StatusCode::OK);
    }
    assert_eq!(apple.calls(), 4);
}
