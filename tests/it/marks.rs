//! Marks: the two bits of a device as policy.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::future::poll_immediate;
use http::{Request, StatusCode};
use http_body_util::Full;
use tower::{Layer, ServiceExt};
use tower_devicecheck::{
    AppleClient, Availability, Bits, BitsErrorKind, DeviceCheckLayer, DeviceOutcome, Enforcement,
    Environment, MarkDecision, MarkWriter, Month, Rejection, Verdict,
    cache::{CacheError, CachedVerdict, MemoryCache, Tiered, VerdictCache, VerdictKey},
    replay::MemoryReplayGuard,
    session::{Exchange, KeyRing, MasterKey, SessionProof, Sessions},
    testing::{Endpoint, FakeApple, PrivateKey, Reply, verified_device},
};

use crate::support::{App, Apple, Counter, Stub, TOKEN_HEADER, rejection};

/// The second bit blocks for 6 months; the first one is for the handler.
pub(crate) fn blocked(bits: Bits, now: SystemTime) -> MarkDecision {
    match (bits.bit0(), bits.bit1(), bits.months_since_update(now)) {
        (_, true, Some(0..=6)) => MarkDecision::Deny,
        (true, _, _) => MarkDecision::LeaveToHandler,
        _ => MarkDecision::Admit,
    }
}

impl Apple {
    pub(crate) fn marked(&self) -> DeviceCheckLayer {
        self.layer().with_marks(blocked)
    }

    pub(crate) fn token_of(&self, device: &str) -> String {
        self.fake.genuine_token_of(device, Environment::Production)
    }

    /// Sets the bits of a device, and counts no call.
    pub(crate) async fn set(&self, device: &str, bit0: bool, bit1: bool) {
        let token = self.token_of(device).parse().unwrap();
        let device = verified_device(token, Environment::Production);
        self.client.update_bits(&device, bit0, bit1).await.unwrap();
        self.fake.reset_counts();
    }

    /// The calls: for validation, queries and updates.
    pub(crate) fn each(&self) -> (usize, usize, usize) {
        let calls = |endpoint| self.fake.calls_to(endpoint);
        (calls(Endpoint::Validate), calls(Endpoint::QueryBits), calls(Endpoint::UpdateBits))
    }
}

/// A layer whose handler blocks devices.
struct Blocking {
    apple: Apple,
    app: App,
    writer: MarkWriter,
}

impl Blocking {
    fn new(change: impl FnOnce(DeviceCheckLayer) -> DeviceCheckLayer) -> Self {
        let apple = Apple::new();
        let layer = change(apple.marked());
        let writer = layer.mark_writer(apple.client.clone());
        Self { app: App::new(&layer), apple, writer }
    }

    async fn block(&self, bit1: bool) {
        self.writer.update(&self.app.device(), None, bit1).await.unwrap();
    }

    async fn denies(&self, token: &str) -> bool {
        let response = self.app.get(token).await;
        let status = response.status();
        assert!([StatusCode::OK, StatusCode::FORBIDDEN].contains(&status), "{status}");
        status == StatusCode::FORBIDDEN && rejection(&response) == Rejection::Denied
    }
}

#[tokio::test]
async fn the_policy_decides_and_one_call_answers_both_questions() {
    // The bits; the answer of Apple in their place; the status; whether the handler decides.
    type Row = (&'static str, Option<(bool, bool)>, Option<&'static str>, u16, bool);
    let rows: [Row; 8] = [
        ("never set", None, None, 200, false),
        ("both unset again", Some((false, false)), None, 200, false),
        ("for the handler", Some((true, false)), None, 200, true),
        ("blocked", Some((false, true)), None, 403, false),
        ("both", Some((true, true)), None, 403, false),
        (
            "blocked long ago",
            None,
            Some(r#"{"bit0":false,"bit1":true,"last_update_time":"2024-01"}"#),
            200,
            false,
        ),
        (
            "long ago, both",
            None,
            Some(r#"{"bit0":true,"bit1":true,"last_update_time":"2024-01"}"#),
            200,
            true,
        ),
        ("no month", None, Some(r#"{"bit0":false,"bit1":true}"#), 200, false),
    ];
    for (name, bits, answer, status, is_left) in rows {
        let apple = Apple::new();
        if let Some((bit0, bit1)) = bits {
            apple.set("phone", bit0, bit1).await;
        }
        if let Some(answer) = answer {
            apple.fake.script(Reply::status(200).body(answer));
        }
        let app = App::new(&apple.marked());
        let token = apple.token_of("phone");
        for basis in ["apple", "cache"] {
            assert_eq!(app.status(&token).await, status, "{name} {basis}");
            if status == 200 {
                let marks = app.device().marks().unwrap();
                assert_eq!(marks.is_left_to_handler(), is_left, "{name}");
                assert_eq!(app.evidence().to_string(), basis, "{name}");
            }
            assert_eq!(apple.each(), (0, 1, 0), "{name} {basis}: one call, and none for what is remembered");
        }
    }
}

#[tokio::test]
async fn without_a_policy_there_are_no_marks_and_no_queries() {
    let apple = Apple::new();
    apple.set("phone", true, true).await;
    let app = App::new(&apple.layer());
    assert_eq!(app.status(&apple.token_of("phone")).await, StatusCode::OK);
    assert_eq!((app.device().marks(), apple.each()), (None, (1, 0, 0)));
}

#[tokio::test]
async fn apple_classifies_a_query_as_it_does_a_validation() {
    let cases = [
        (Reply::status(400).body("Bad Device Token"), 401),
        (Reply::status(400).body("Bad Timestamp"), 500),
        (Reply::status(401).body("x"), 500),
        (Reply::status(429).body("x"), 503),
        (Reply::status(500).body("x"), 503),
        (Reply::status(200).body("<html>"), 500),
        (Reply::status(200).body(""), 503),
        (Reply::status(200).body(r#"{"bit0":false,"bit1":false,"last_update_time":"x"}"#), 503),
    ];
    for (number, (reply, status)) in cases.into_iter().enumerate() {
        let apple = Apple::new();
        apple.fake.always(reply);
        let app = App::new(&apple.marked());
        assert_eq!(app.status(&apple.genuine()).await, status, "{number}");
        assert_eq!((app.inner.calls(), apple.fake.calls_to(Endpoint::Validate)), (0, 0), "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn marks_have_a_time_to_live_of_their_own() {
    for (layer, seconds) in [
        (Apple::marked as fn(&Apple) -> DeviceCheckLayer, 30),
        (|apple| apple.marked().with_mark_time_to_live(Duration::from_secs(7)), 7),
        (|apple| apple.marked().with_time_to_live(Verdict::Genuine, Duration::from_secs(3)), 3),
    ] {
        let apple = Apple::new();
        let app = App::new(&layer(&apple));
        let token = apple.token_of("phone");
        assert_eq!((app.status(&token).await, apple.each().1), (StatusCode::OK, 1));
        // On another token, which the layer does not know of.
        let other = verified_device(apple.token_of("phone").parse().unwrap(), Environment::Production);
        apple.client.update_bits(&other, None, true).await.unwrap();
        tokio::time::advance(Duration::from_millis(seconds * 1_000 - 1)).await;
        assert_eq!((app.status(&token).await, apple.each().1), (StatusCode::OK, 1), "{seconds}");
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!((app.status(&token).await, apple.each().1), (StatusCode::FORBIDDEN, 2), "{seconds}");
        // The answer to a blocked device is remembered as long.
        assert_eq!((app.status(&token).await, apple.each().1), (StatusCode::FORBIDDEN, 2), "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_blocks_and_the_next_request_is_denied() {
    type Change = fn(DeviceCheckLayer) -> DeviceCheckLayer;
    let changes: [Change; 3] = [
        |layer| layer,
        |layer| layer.with_cache(Tiered::new(MemoryCache::new(), MemoryCache::new())),
        |layer| layer.without_cache(),
    ];
    for change in changes {
        let world = Blocking::new(change);
        let (token, new) = (world.apple.token_of("phone"), world.apple.token_of("phone"));
        assert!(!world.denies(&token).await);
        world.block(true).await;
        assert_eq!(world.apple.each(), (0, 1, 1));
        assert!(world.denies(&token).await);
        assert!(world.denies(&new).await);
        assert_eq!(world.apple.each(), (0, 3, 1));
        assert!(!world.denies(&world.apple.token_of("another")).await);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_changed_is_not_remembered_for_20_seconds() {
    let world = Blocking::new(|layer| layer);
    let token = world.apple.token_of("phone");
    assert!(!world.denies(&token).await);
    world.block(true).await;
    for calls in 2..=4 {
        assert!(world.denies(&token).await);
        assert_eq!(world.apple.each().1, calls);
    }
    tokio::time::advance(Duration::from_millis(20_001)).await;
    for _ in 0..2 {
        assert!(world.denies(&token).await);
        assert_eq!(world.apple.each().1, 5);
    }
    // The block is lifted: a new token is admitted at once.
    world.apple.set("phone", false, false).await;
    assert!(!world.denies(&world.apple.token_of("phone")).await);
}

#[tokio::test(start_paused = true)]
async fn a_check_under_way_while_the_bits_change_leaves_nothing_behind() {
    for change in [(|layer| layer) as fn(DeviceCheckLayer) -> _, |layer| layer.without_cache()] {
        let world = Blocking::new(change);
        let token = world.apple.token_of("phone");
        assert!(!world.denies(&token).await);
        tokio::time::advance(Duration::from_secs(31)).await;

        // The answer is given before the change, and arrives after it.
        let slow = Reply::normal().delay(Duration::from_secs(2)).for_endpoint(Endpoint::QueryBits);
        world.apple.fake.script(slow);
        let mut early = Box::pin(world.app.status(&token));
        assert!(poll_immediate(&mut early).await.is_none());
        world.block(true).await;
        assert!(world.denies(&token).await, "it joins no check that began before");
        assert_eq!(early.await, StatusCode::OK, "it began before");
        assert!(world.denies(&token).await, "the late answer is not remembered");
        assert_eq!(world.apple.each(), (0, 4, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_that_is_given_up_leaves_nothing_behind() {
    let world = Blocking::new(|layer| layer);
    let token = world.apple.token_of("phone");
    assert!(!world.denies(&token).await);
    let slow = Reply::normal().delay(Duration::from_secs(1)).for_endpoint(Endpoint::UpdateBits);
    world.apple.fake.script(slow);
    let device = world.app.device();
    let mut update = Box::pin(world.writer.update(&device, None, true));
    assert!(poll_immediate(&mut update).await.is_none());
    assert_eq!(world.apple.each().2, 1);
    drop(update);
    assert!(world.denies(&token).await);
    // An update that Apple refuses changes nothing, and says so.
    world.apple.fake.expire_device("phone");
    let error = world.writer.update(&device, true, None).await.unwrap_err();
    assert_eq!(error.kind(), BitsErrorKind::RefusedToken);
    assert!(world.writer.update(&device, None, None).await.is_ok());
    assert_eq!(world.apple.each(), (0, 2, 2));
}

/// A user's cache that keeps neither bits nor kinds of keys apart, and does not forget.
struct Forgetless(MemoryCache);

impl VerdictCache for Forgetless {
    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        VerdictCache::get(&self.0, &key.for_marks(false)).await
    }

    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        VerdictCache::put(&self.0, &key.for_marks(false), verdict).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_cannot_forget_says_so() {
    let world = Blocking::new(|layer| layer.with_cache(Forgetless(MemoryCache::new())));
    let token = world.apple.token_of("phone");
    assert!(!world.denies(&token).await);
    let error = world.writer.update(&world.app.device(), None, true).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.rejection().status()),
        (BitsErrorKind::StillRemembered, StatusCode::SERVICE_UNAVAILABLE)
    );
    assert_eq!(world.apple.fake.bits(&token), Some((false, true)));
    assert!(!world.denies(&token).await, "the old mark");
    tokio::time::advance(Duration::from_millis(30_001)).await;
    assert!(world.denies(&token).await);
    assert_eq!(world.apple.each(), (0, 2, 1));
}

#[tokio::test]
async fn a_verdict_without_marks_does_not_answer_for_one_with_marks() {
    type Make = fn() -> Arc<dyn Fn(DeviceCheckLayer) -> DeviceCheckLayer>;
    let makes: [(Make, usize); 2] = [
        (
            || {
                let cache = Arc::new(MemoryCache::new());
                Arc::new(move |layer| layer.with_cache(Arc::clone(&cache)))
            },
            2,
        ),
        (
            || {
                let cache = Arc::new(Forgetless(MemoryCache::new()));
                Arc::new(move |layer| layer.with_cache(Arc::clone(&cache)))
            },
            2,
        ),
    ];
    for (make, calls) in makes {
        let (apple, cached) = (Apple::new(), make());
        apple.set("phone", false, true).await;
        let token = apple.token_of("phone");
        let (plain, marked) = (App::new(&cached(apple.layer())), App::new(&cached(apple.marked())));
        assert_eq!(plain.status(&token).await, StatusCode::OK);
        for _ in 0..2 {
            assert_eq!(marked.status(&token).await, StatusCode::FORBIDDEN);
        }
        assert_eq!(plain.status(&token).await, StatusCode::OK);
        assert_eq!(apple.calls(), calls);
    }
}

#[tokio::test]
async fn a_verifier_without_marks_admits_nobody() {
    let asked = Counter::default();
    for stub in
        [DeviceCheckLayer::new(Stub::genuine(&asked)), DeviceCheckLayer::new(Arc::new(Stub::genuine(&asked)))]
    {
        let app = App::new(&stub.with_marks(|_, _| MarkDecision::Admit));
        assert_eq!(app.status("AgAA").await, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!((app.inner.calls(), asked.get()), (0, 0));
    }
    // A client behind an `Arc` reads them.
    let apple = Apple::new();
    let app = App::new(&DeviceCheckLayer::new(Arc::new(apple.client.clone())).with_marks(blocked));
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!(apple.each(), (0, 1, 0));
}

#[tokio::test]
async fn the_bits_are_those_of_the_team_that_admitted() {
    let second = FakeApple::with_key(&PrivateKey::generate(), "TEAM654321", "KEY7654321");
    let client = AppleClient::builder(second.credentials()).transport(second.transport()).build().unwrap();
    let (first, second) = (Apple::new(), Apple { fake: second, client });
    let layer = first.marked().add_verifier(second.client.clone());
    let writers = [&first, &second].map(|apple| layer.mark_writer(apple.client.clone()));
    let app = App::new(&layer);
    for (apple, writer, other, calls) in [(&first, 0, 1, (1, 0)), (&second, 1, 0, (1, 1))] {
        let token = apple.token_of("phone");
        assert_eq!(app.status(&token).await, StatusCode::OK);
        assert_eq!((first.each().1, second.each().1), calls);
        let device = app.device();
        let error = writers[other].update(&device, None, true).await.unwrap_err();
        assert_eq!(error.kind(), BitsErrorKind::OtherTeam);
        writers[writer].update(&device, None, true).await.unwrap();
        let response = app.get(&token).await;
        assert_eq!(rejection(&response), Rejection::Denied);
        first.fake.reset_counts();
        second.fake.reset_counts();
        // Nobody else is asked about a blocked device.
        assert_eq!(app.status(&token).await, StatusCode::FORBIDDEN);
        let is_second = usize::from(writer == 1);
        assert_eq!(
            (first.calls(), second.calls()),
            (1 - is_second, is_second),
            "the first team's refusal is remembered"
        );
        first.fake.reset_counts();
    }
}

#[tokio::test]
async fn monitor_mode_lets_a_blocked_device_through_with_its_outcome() {
    let apple = Apple::new();
    apple.set("phone", false, true).await;
    let app = App::new(&apple.marked().with_enforcement(Enforcement::Monitor));
    for _ in 0..2 {
        assert_eq!(app.status(&apple.token_of("phone")).await, StatusCode::OK);
        let head = app.inner.last();
        let outcome = head.extensions.get::<DeviceOutcome>().unwrap();
        assert_eq!(outcome.as_str(), "denied");
    }
    assert_eq!(apple.each(), (0, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn single_use_and_marks_work_together() {
    let apple = Apple::new();
    let layer = apple.marked().with_single_use(MemoryReplayGuard::new());
    let writer = layer.mark_writer(apple.client.clone());
    let app = App::new(&layer);
    let token = apple.token_of("phone");
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken);
    writer.update(&app.device(), None, true).await.unwrap();
    let token = apple.token_of("phone");
    assert_eq!(rejection(&app.get(&token).await), Rejection::Denied);
    assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken, "Apple is not asked again");
    assert_eq!(apple.each(), (0, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_503_and_never_403() {
    let hour = Duration::from_secs(60 * 60);
    // The status of a token whose remembered bits are clean, with and without stale verdicts.
    for (stale, expected) in [(Duration::ZERO, 503), (hour, 200)] {
        let apple = Apple::new();
        let cache = Arc::new(MemoryCache::new());
        let checked_at = SystemTime::now() - hour / 6;
        let [clean, blocked, unknown] = [Some(false), Some(true), None].map(|bit1| (apple.genuine(), bit1));
        for (text, bit1) in [&clean, &blocked, &unknown] {
            let token = text.parse().unwrap();
            let key = VerdictKey::new("TEAM123456", Environment::Production, &token).for_marks(true);
            let bits = bit1.map(|bit1| Bits::new(false, bit1, Month::new(9_999, 1)));
            let verdict = CachedVerdict::new(Verdict::Genuine, key.digest(), checked_at, hour);
            cache.put(&key, verdict.with_bits(bits)).await.unwrap();
        }
        let app = App::new(&apple.marked().with_cache(cache).with_stale_verdicts(stale));
        apple.fake.always(Reply::status(503));
        while apple.client.availability(Environment::Production) == Availability::Available {
            assert_eq!(app.status(&apple.genuine()).await, StatusCode::SERVICE_UNAVAILABLE);
        }
        let calls = apple.calls();
        assert_eq!(app.status(&clean.0).await, expected);
        for (token, _) in [&blocked, &unknown] {
            assert_eq!(app.status(token).await, StatusCode::SERVICE_UNAVAILABLE);
        }
        if expected == 200 {
            assert_eq!(app.evidence().to_string(), "stale");
            assert!(app.device().marks().is_some());
        }
        assert_eq!(apple.calls(), calls, "known to be down");
    }
}

#[tokio::test]
async fn a_blocked_device_buys_no_session_and_is_out_at_the_next_renewal() {
    let apple = Apple::new();
    let sessions =
        Sessions::new("", "TEAM123456.com.example.app", &KeyRing::new(MasterKey::new(1, [1; 32]))).unwrap();
    let layer = apple.marked();
    let exchange = layer.layer(Exchange::new(sessions.clone()));
    let buy = async |device: &str| {
        let purchase = Request::post("/session").header(TOKEN_HEADER, apple.token_of(device));
        exchange.clone().oneshot(purchase.body(Full::<bytes::Bytes>::default()).unwrap()).await.unwrap()
    };
    assert_eq!(buy("phone").await.status(), StatusCode::OK);
    apple.set("phone", false, true).await;
    assert_eq!(buy("phone").await.status(), StatusCode::FORBIDDEN);
    // Left to the handler: a session has no marks, by which it could decide.
    apple.set("phone", true, false).await;
    let response = buy("phone").await;
    assert_eq!(
        (response.status(), response.extensions().get()),
        (StatusCode::FORBIDDEN, Some(&Rejection::Denied))
    );
    let hand_out = App::new(&layer.with_sessions(SessionProof::new(sessions).with_hand_out(true)));
    let response = hand_out.get(&apple.token_of("phone")).await;
    assert_eq!(
        (response.status(), response.headers().contains_key("x-device-session")),
        (StatusCode::OK, false)
    );
    let response = hand_out.get(&apple.token_of("another")).await;
    assert!(response.headers().contains_key("x-device-session"));
    assert_eq!(apple.each(), (0, 3, 0));
}
