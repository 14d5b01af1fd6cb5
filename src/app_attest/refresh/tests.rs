//! The life of receipts on a mocked clock, through all of Apple's answers.

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::join;
use web_time::{SystemTime, UNIX_EPOCH};

use crate::app_attest::refresh::stored::DAY;
use crate::app_attest::{
    Anchors, AppId, Attestation, AttestationExpected, KeyId, MemoryReceiptStore, ReceiptEvent, ReceiptKey,
    ReceiptRefresher, ReceiptStore, StoredReceipt,
};
use crate::runtime::set_wall_clock;
use crate::testing::app_attest::{FakeAttestCa, Shape, VirtualDevice};
use crate::testing::{Endpoint, FakeApple, Reply};
use crate::{AppleClient, Availability, DeviceToken, Environment, Verdict};

const HOUR: Duration = Duration::from_secs(60 * 60);
const MINUTE: Duration = Duration::from_secs(60);
const APP_ID: &str = "TEAM123456.com.example.app";
const HASH: [u8; 32] = [7; 32];

/// Its keys take a while to make.
static CA: LazyLock<FakeAttestCa> = LazyLock::new(FakeAttestCa::new);

/// A server with a refresher, and its Apple.
struct World {
    apple: FakeApple,
    client: AppleClient,
    store: Arc<MemoryReceiptStore>,
    refresher: ReceiptRefresher,
    events: Arc<Mutex<Vec<String>>>,
    now: SystemTime,
}

impl World {
    fn new() -> Self {
        let now = UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        set_wall_clock(now);
        let apple = FakeApple::new();
        apple.exchange_receipts(&CA, 3);
        let client = AppleClient::builder(apple.credentials()).transport(apple.transport()).build().unwrap();
        let store = Arc::new(MemoryReceiptStore::new());
        let events = Arc::default();
        let refresher = refresher(&client, &store, &events);
        Self { apple, client, store, refresher, events, now }
    }

    /// Attests a new key of a new device.
    async fn attest(&self, environment: Environment) -> (ReceiptKey, VirtualDevice) {
        let device = CA.device(APP_ID, Shape::Ios27, environment);
        let key_id: KeyId = device.key_id().parse().unwrap();
        let expected = AttestationExpected {
            key_id: &key_id,
            client_data_hash: &HASH,
            app_ids: &[APP_ID.parse().unwrap()],
            environments: &[environment],
            now: self.now,
            max_age: None,
        };
        let attestation =
            Attestation::verify(&device.attest(&HASH, self.now), &expected, &anchors()).unwrap();
        let key = ReceiptKey { tenant: Some("shop".parse().unwrap()), key_id };
        let stored = StoredReceipt::attested(&attestation, self.now).unwrap();
        assert!(stored.next_attempt.is_some_and(|next| (self.now..=self.now + DAY).contains(&next)));
        self.store.put(&key, stored).await.unwrap();
        (key, device)
    }

    async fn wait(&mut self, time: Duration) {
        self.now += time;
        set_wall_clock(self.now);
        tokio::time::advance(time).await;
    }

    async fn stored(&self, key: &ReceiptKey) -> StoredReceipt {
        self.store.get(key).await.unwrap().unwrap()
    }

    fn calls(&self) -> usize {
        let calls = self.apple.calls_to(Endpoint::AttestationData);
        assert_eq!(self.apple.calls(), calls, "no other endpoint is asked");
        calls
    }

    fn events(&self) -> Vec<String> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }
}

fn refresher(
    client: &AppleClient,
    store: &Arc<MemoryReceiptStore>,
    events: &Arc<Mutex<Vec<String>>>,
) -> ReceiptRefresher {
    let events = Arc::clone(events);
    ReceiptRefresher::new(client.clone(), Arc::clone(store)).with_anchors(anchors()).with_observer(
        move |event| {
            events.lock().unwrap().push(match event {
                ReceiptEvent::RiskMetric(metric) => format!("{:?} -> {}", metric.old, metric.new),
                ReceiptEvent::Failed(failure) => failure.kind.to_string(),
            });
        },
    )
}

fn anchors() -> Anchors {
    Anchors::apple()
        .with_attestation_roots(CA.attestation_root_der())
        .unwrap()
        .with_receipt_roots(CA.receipt_root_der())
        .unwrap()
}

/// The body of a 200 with this receipt.
fn base64(receipt: &[u8]) -> Reply {
    Reply::status(200).body(STANDARD.encode(receipt))
}

/// An answer of Apple's, and what follows from it.
struct Case {
    name: &'static str,
    replies: Vec<Reply>,
    calls: usize,
    event: &'static str,
    /// The time to the next attempt, from the answer on. `None` if there is none.
    next: Option<(Duration, Duration)>,
}

fn case(
    name: &'static str,
    replies: &[Reply],
    calls: usize,
    event: &'static str,
    next: Option<(Duration, Duration)>,
) -> Case {
    Case { name, replies: replies.to_vec(), calls, event, next }
}

fn cases(now: SystemTime) -> Vec<Case> {
    let page = Reply::status(200).body("<html>Log in</html>");
    let stranger = CA.device(APP_ID, Shape::Ios27, Environment::Production);
    let of_another_key = CA.refreshed(&stranger.receipt(&HASH, now).unwrap(), now, 1).unwrap();
    let of_an_attestation = base64(&stranger.receipt(&HASH, now).unwrap());
    let (outage, day) = (Some((HOUR, 2 * HOUR)), Some((DAY, 2 * DAY)));
    let slow = Reply::status(429).header("retry-after", "14400");
    let again = Reply::status(503).header("retry-after", "60");
    vec![
        case("200", &[], 1, "None -> 3", Some((DAY, DAY + 81 * DAY))),
        case("304", &[Reply::status(304)], 1, "not_yet", day),
        case("400, environment", &[Reply::status(400).body("Incorrect Environment")], 1, "rejected", None),
        case("400, payload", &[Reply::status(400).body("Bad Payload")], 1, "rejected", None),
        case("400, unknown", &[Reply::status(400)], 1, "unavailable", outage),
        case("401, once", &[Reply::status(401)], 2, "None -> 3", Some((DAY, DAY + 81 * DAY))),
        case("401", &[Reply::status(401), Reply::status(401)], 2, "misconfigured", outage),
        case("404", &[Reply::status(404).body("No Data Found")], 1, "no_data", Some((3 * DAY, 5 * DAY))),
        case("404, empty", &[Reply::status(404)], 1, "no_data", Some((3 * DAY, 5 * DAY))),
        case("429", &[Reply::status(429)], 1, "throttled", outage),
        case("429, Retry-After", &[slow], 1, "throttled", Some((4 * HOUR, 5 * HOUR))),
        case("500", &[Reply::status(500)], 1, "unavailable", outage),
        case("503, once", &[Reply::status(503)], 2, "None -> 3", Some((DAY, DAY + 81 * DAY))),
        case("503", &[Reply::status(503), Reply::status(503)], 2, "unavailable", outage),
        case("503, Retry-After", &[again], 1, "unavailable", outage),
        case("200, a page", &[page], 1, "misconfigured", outage),
        case("200, empty", &[Reply::status(200)], 1, "unverified", day),
        case("200, no base64", &[Reply::status(200).body("?")], 1, "unavailable", outage),
        case("200, no receipt", &[Reply::status(200).body("AAAA")], 1, "unverified", day),
        case("200, too long", &[Reply::oversized(33 * 1024)], 1, "unavailable", outage),
        case("200, another key", &[base64(&of_another_key)], 1, "unverified", day),
        case("200, of an attestation", &[of_an_attestation], 1, "unverified", day),
        case("reset", &[Reply::reset()], 1, "unavailable", outage),
        case("hang", &[Reply::hang(), Reply::hang()], 2, "unavailable", outage),
    ]
}

#[tokio::test(start_paused = true)]
async fn each_answer_of_apple_has_its_consequence() {
    for case in cases(World::new().now) {
        let mut world = World::new();
        let (key, _) = world.attest(Environment::Production).await;
        let before = world.stored(&key).await;
        world.wait(DAY).await;
        for reply in case.replies {
            world.apple.script(reply);
        }
        let began = tokio::time::Instant::now();
        world.refresher.tick(world.now).await;
        let name = case.name;
        assert!(began.elapsed() <= Duration::from_secs(5), "{name}: the deadline");
        assert_eq!((world.events(), world.calls()), (vec![case.event.to_owned()], case.calls), "{name}");

        let after = world.stored(&key).await;
        let wait = after.next_attempt.map(|next| next.duration_since(world.now).unwrap());
        match (wait, case.next) {
            (None, None) => {}
            (Some(wait), Some((low, high))) => assert!((low..=high).contains(&wait), "{name}: {wait:?}"),
            other => panic!("{name}: {other:?}"),
        }
        let is_newer = case.event.contains("->");
        assert_eq!(after.receipt != before.receipt, is_newer, "{name}");
        assert_eq!(after.risk_metric, is_newer.then_some(3), "{name}");
        assert_eq!(world.refresher.risk_metric(&key).await.unwrap(), after.risk_metric, "{name}");
        if is_newer {
            assert_eq!(after.not_before, Some(world.now + DAY), "{name}");
            assert_eq!(after.expiry, world.now + 90 * DAY, "{name}");
            assert_eq!(after.fetched_at, world.now, "{name}");
        } else {
            assert_eq!(after.fetched_at, before.fetched_at, "{name}");
        }

        // Nothing is asked before its time.
        world.refresher.tick(world.now).await;
        assert_eq!(world.calls(), case.calls, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_receipt_is_refreshed_through_a_whole_life() {
    let mut world = World::new();
    let (key, _) = world.attest(Environment::Development).await;
    world.refresher.tick(world.now - Duration::from_secs(1)).await;
    assert_eq!(world.calls(), 0, "not before its time");

    world.wait(DAY).await;
    world.refresher.tick(world.now).await;
    assert_eq!((world.events(), world.calls()), (vec!["None -> 3".to_owned()], 1));
    assert_eq!(world.apple.calls_in(Environment::Development), 1);

    // The key was not seen since.
    world.wait(85 * DAY).await;
    world.refresher.tick(world.now).await;
    assert_eq!(world.calls(), 1);
    world.store.touch(&key, world.now).await.unwrap();
    world.apple.exchange_receipts(&CA, 12);
    world.refresher.tick(world.now).await;
    assert_eq!((world.events(), world.calls()), (vec!["Some(3) -> 12".to_owned()], 2));

    // The metric stays while there is no newer one, and an expired receipt is shown to nobody.
    let stored = world.stored(&key).await;
    world.now = stored.expiry;
    world.store.touch(&key, world.now).await.unwrap();
    world.refresher.tick(world.now).await;
    assert_eq!((world.events(), world.calls()), (vec!["expired".to_owned()], 2));
    assert_eq!(world.refresher.risk_metric(&key).await.unwrap(), Some(12));
    assert_eq!(world.stored(&key).await.next_attempt, None);
    world.refresher.tick(world.now + 2 * DAY).await;
    assert_eq!(world.store.get(&key).await.unwrap(), None, "forgotten");
    assert_eq!(world.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_of_another_app_or_environment_is_none() {
    let mut world = World::new();
    let (key, device) = world.attest(Environment::Production).await;
    let mut stored = world.stored(&key).await;
    stored.app_id = "TEAM123456.com.example.another".parse::<AppId>().unwrap();
    world.store.put(&key, stored.clone()).await.unwrap();
    world.wait(DAY).await;
    world.refresher.tick(world.now).await;
    assert_eq!((world.events(), world.calls()), (vec!["unverified".to_owned()], 1));

    stored.environment = Environment::Development;
    world.store.put(&key, stored.clone()).await.unwrap();
    world.refresher.tick(world.now).await;
    assert_eq!((world.events(), world.calls()), (vec!["rejected".to_owned()], 2));

    // The same key of another tenant is another key.
    let other = ReceiptKey { tenant: None, key_id: device.key_id().parse().unwrap() };
    assert_eq!(world.refresher.risk_metric(&other).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn an_outage_backs_off_and_touches_no_check_of_a_device_token() {
    let mut world = World::new();
    let mut keys = Vec::new();
    for _ in 0..40 {
        keys.push(world.attest(Environment::Production).await.0);
    }
    world.wait(DAY).await;
    let throttled = Reply::status(429).header("retry-after", "300").for_endpoint(Endpoint::AttestationData);
    world.apple.always(throttled);
    let mut waits = Vec::new();
    for _ in 0..5 {
        waits.push(world.refresher.tick(world.now).await);
    }
    // The first look makes 8 calls at most; no call is made in the time that Apple has named.
    let calls = world.calls();
    assert!((1..=8).contains(&calls), "{calls}");
    assert_eq!(world.events(), vec!["throttled"; 12], "after the first look, one key each time");
    assert_eq!(waits[0], 5 * MINUTE);
    assert_eq!(waits[4], 16 * MINUTE);

    let environment = Environment::Production;
    assert_eq!(world.client.availability(environment), Availability::Available);
    let token: DeviceToken = world.apple.genuine_token(environment).parse().unwrap();
    assert_eq!(world.client.validate(&token, environment).await.unwrap(), Verdict::Genuine);

    // Apple is back: within some hours, all have their metric, and the look after a full one follows at once.
    world.apple.clear();
    world.apple.reset_counts();
    world.wait(6 * HOUR).await;
    for number in 1..=5 {
        let wait = world.refresher.tick(world.now).await;
        assert_eq!(wait, Duration::ZERO, "{number}");
    }
    assert_eq!(world.refresher.tick(world.now).await, MINUTE);
    assert_eq!((world.events(), world.calls()), (vec!["None -> 3".to_owned(); 40], 40));
    assert_eq!(world.stored(&keys[0]).await.failures, 0);
}

#[tokio::test(start_paused = true)]
async fn the_back_off_of_a_key_doubles() {
    let mut world = World::new();
    let (key, _) = world.attest(Environment::Production).await;
    world.apple.always(Reply::status(500));
    world.wait(DAY).await;
    for doublings in [0, 1, 2, 3, 4, 4] {
        world.refresher.tick(world.now).await;
        let wait = world.stored(&key).await.next_attempt.unwrap().duration_since(world.now).unwrap();
        let back_off = HOUR * (1 << doublings);
        assert!((back_off..=2 * back_off).contains(&wait), "{doublings}: {wait:?}");
        world.wait(wait).await;
    }
    assert_eq!((world.events(), world.calls()), (vec!["unavailable".to_owned(); 6], 6));
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_and_two_processes_share_the_work() {
    let mut world = World::new();
    let (key, _) = world.attest(Environment::Production).await;
    world.wait(DAY).await;
    // A process ends in the middle of a call.
    world.apple.script(Reply::hang());
    let tick = world.refresher.tick(world.now);
    assert!(tokio::time::timeout(Duration::from_secs(1), tick).await.is_err());
    assert_eq!((world.events(), world.calls()), (Vec::new(), 1));

    let again = refresher(&world.client, &world.store, &world.events);
    again.tick(world.now).await;
    assert_eq!(world.calls(), 1, "the key is still that of the other process");
    world.wait(10 * MINUTE).await;
    join(again.tick(world.now), world.refresher.tick(world.now)).await;
    assert_eq!((world.events(), world.calls()), (vec!["None -> 3".to_owned()], 2));
    assert_eq!(world.stored(&key).await.risk_metric, Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_running_refresher_looks_each_minute() {
    let mut world = World::new();
    let running = world.refresher.clone();
    let task = tokio::spawn(async move { running.run().await });
    let (key, _) = world.attest(Environment::Production).await;
    tokio::time::sleep(MINUTE).await;
    world.now += DAY;
    set_wall_clock(world.now);
    assert_eq!(world.refresher.risk_metric(&key).await.unwrap(), None);
    tokio::time::sleep(2 * MINUTE).await;
    assert_eq!(world.refresher.risk_metric(&key).await.unwrap(), Some(3));
    assert_eq!(world.calls(), 1);
    task.abort();
}
