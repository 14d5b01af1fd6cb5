//! The endpoints: challenges, and attestations.

use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use tower_devicecheck::app_attest::{AttestPolicy, Category, ClientData, KeyCounter, KeyRevocation};
use tower_devicecheck::testing::app_attest::Fault;

use super::*;

async fn ask(endpoint: &AttestEndpoint, request: Request<Full<Bytes>>) -> Response<Bytes> {
    whole(endpoint.clone().oneshot(request).await.unwrap()).await.unwrap()
}

fn submission(key_id: &str, challenge: &str, attestation: &[u8]) -> Value {
    json!({"key_id": key_id, "challenge": challenge, "attestation": STANDARD.encode(attestation)})
}

fn submit(body: &Value) -> Request<Full<Bytes>> {
    Request::post("/attest").body(Full::from(body.to_string())).unwrap()
}

/// The request by which a device attests its key, by the default rule.
pub(crate) fn attest(device: &VirtualDevice, challenge: &str) -> Request<Full<Bytes>> {
    let attestation = device.attest(&Sha256::digest(challenge), SystemTime::now());
    submit(&submission(&device.key_id(), challenge, &attestation))
}

/// The status, or the code of the rejection.
async fn outcome(endpoint: &AttestEndpoint, request: Request<Full<Bytes>>) -> String {
    let response = ask(endpoint, request).await;
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    match response.extensions().get::<Rejection>() {
        Some(rejection) => {
            assert_eq!(response.status(), rejection.status());
            rejection.code().to_owned()
        }
        None => response.status().as_str().to_owned(),
    }
}

impl World {
    fn for_attestation(&self) -> String {
        self.challenges.issue("", ChallengePurpose::Attestation).unwrap()
    }
}

#[tokio::test]
async fn a_device_attests_its_key_and_then_signs_requests() {
    let world = World::new();
    let challenges = ChallengeEndpoint::new(world.challenges.clone(), ChallengePurpose::Attestation);
    let mut issued = Vec::new();
    for method in [Method::POST, Method::GET] {
        let request = Request::builder().method(method).uri("/challenge").body(()).unwrap();
        let response = whole(challenges.clone().oneshot(request).await.unwrap()).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[CACHE_CONTROL]),
            (200, &"no-store".parse().unwrap())
        );
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let answer: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(answer["expires_in"], 300);
        issued.push(answer["challenge"].as_str().unwrap().to_owned());
    }
    assert_ne!(issued[0], issued[1]);
    let challenge = &*issued[0];

    let device = world.device().with_bundle_version(Some("1314"));
    let endpoint = world.endpoint().with_account(|head| {
        head.headers.get("x-account").map(|account| account.to_str().unwrap().to_owned())
    });
    let mut request = attest(&device, challenge);
    request.headers_mut().insert("x-account", "ann".parse().unwrap());
    let response = ask(&endpoint, request.clone()).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()[CACHE_CONTROL]),
        (201, &"no-store".parse().unwrap())
    );
    assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    let answer: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(answer, json!({"key_id": device.key_id()}));
    let key = world.store.key(&device).await;
    assert_eq!((key.app_id, key.environment), (app_id(), Environment::Production));
    assert_eq!((key.counter.highest, key.account.as_deref()), (0, Some("ann")));
    assert_eq!((key.category, key.bundle_version.unwrap().as_str()), (Some(Category::AppStore), "1314"));
    assert_eq!((key.platform.as_deref(), key.system_version.as_deref()), (Some("iphoneos"), Some("27.0.1")));

    let server = world.by_time();
    assert_eq!(server.code(post_now(&device)).await, "ok");
    // The same attestation again, and a fresh one of the same key.
    assert_eq!(outcome(&endpoint, request).await, "reused_token");
    let mut request = attest(&device, &world.for_attestation());
    assert_eq!(outcome(&endpoint, request.clone()).await, "refused_token", "no account");
    request = attest(&device, &world.for_attestation());
    request.headers_mut().insert("x-account", "bob".parse().unwrap());
    assert_eq!(outcome(&endpoint, request).await, "refused_token", "another account");
    let mut request = attest(&device, &world.for_attestation());
    request.headers_mut().insert("x-account", "ann".parse().unwrap());
    assert_eq!(outcome(&endpoint, request).await, "200");
    assert_eq!(world.store.key(&device).await.counter.highest, 1, "the counter stays");
    let key = world.store.key(&device).await;
    world.store.revoke("", &key.key_id, "stolen", SystemTime::now()).await.unwrap();
    let mut request = attest(&device, &world.for_attestation());
    request.headers_mut().insert("x-account", "ann".parse().unwrap());
    assert_eq!(outcome(&endpoint, request).await, "denied");
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn challenges_of_another_kind_are_refused() {
    let world = World::new();
    let endpoint = world.endpoint();
    let for_assertion = world.challenges.issue("", ChallengePurpose::Assertion).unwrap();
    let of_tenant = world.challenges.issue("shop", ChallengePurpose::Attestation).unwrap();
    for challenge in ["", "A", &*for_assertion, &of_tenant] {
        assert_eq!(
            outcome(&endpoint, attest(&world.device(), challenge)).await,
            "refused_token",
            "{challenge}"
        );
    }
    let of_shop = endpoint.clone().with_tenant("shop".parse().unwrap());
    assert_eq!(outcome(&of_shop, attest(&world.device(), &of_tenant)).await, "201");
    assert_eq!(world.store.kept.list()[0].tenant, "shop");
    let challenges = ChallengeEndpoint::new(world.challenges.clone(), ChallengePurpose::Attestation)
        .with_tenant("bank".parse().unwrap());
    let response = challenges.oneshot(Request::get("/").body(()).unwrap()).await.unwrap();
    let answer: Value = serde_json::from_slice(whole(response).await.unwrap().body()).unwrap();
    let of_bank = answer["challenge"].as_str().unwrap();
    assert_eq!(outcome(&of_shop, attest(&world.device(), of_bank)).await, "refused_token");
    assert_eq!((world.store.kept.len(), world.apple.calls()), (1, 0));
}

#[tokio::test]
async fn attestations_that_are_not_right_store_no_key() {
    let world = World::new();
    let endpoint = world.endpoint();
    let challenge = || world.for_attestation();
    let denying = |policy| world.endpoint().with_policy(policy);
    let app_store = || denying(AttestPolicy::new().with_categories([Category::AppStore]));
    let of_development = world.ca.device(APP_ID, Shape::Ios27, Environment::Development);
    let other_app = world.ca.device("A1B2C3D4E5.com.example.other", Shape::Ios27, Environment::Production);
    let other_ca = FakeAttestCa::new().device(APP_ID, Shape::Ios27, Environment::Production);
    let rows = [
        ("another root", &endpoint, other_ca, "refused_token"),
        ("another app", &endpoint, other_app, "refused_token"),
        ("development", &endpoint, of_development, "refused_token"),
        ("another nonce", &endpoint, world.device().with_fault(Fault::Nonce), "refused_token"),
        ("a byte more", &endpoint, world.device().with_fault(Fault::TrailingByte), "malformed_token"),
        (
            "a receipt of another app",
            &endpoint,
            world.device().with_fault(Fault::ReceiptAppId),
            "refused_token",
        ),
        ("TestFlight", &app_store(), world.device().with_category(2), "denied"),
        (
            "a denied account",
            &denying(AttestPolicy::new().denying_accounts(|_| true)).with_account(|_| Some("bob".to_owned())),
            world.device(),
            "denied",
        ),
    ];
    for (name, endpoint, device, code) in rows {
        assert_eq!(outcome(endpoint, attest(&device, &challenge())).await, code, "{name}");
    }
    let hours = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
    let aged = |at, challenge: String| {
        let device = world.device().with_receipts(None);
        let attestation = device.attest(&Sha256::digest(&challenge), at);
        submit(&submission(&device.key_id(), &challenge, &attestation))
    };
    assert_eq!(outcome(&endpoint, aged(hours(2), challenge())).await, "refused_token", "over an hour old");
    assert_eq!(world.store.kept.len(), 0);
    let patient = world.endpoint().with_max_age(None);
    assert_eq!(outcome(&patient, aged(hours(2), challenge())).await, "201");
    let both = world.endpoint().with_environments([Environment::Production, Environment::Development]);
    let device = world.ca.device(APP_ID, Shape::Ios27, Environment::Development);
    assert_eq!(outcome(&both, attest(&device, &challenge())).await, "201");
    assert_eq!(outcome(&app_store(), attest(&world.device(), &challenge())).await, "201");
    let by_bytes = world.endpoint().with_client_data(ClientData::challenge_bytes());
    assert_eq!(outcome(&by_bytes, attest(&world.device(), &challenge())).await, "refused_token");
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn bodies_of_the_wrong_form() {
    let world = World::new();
    let endpoint = world.endpoint();
    let whole = submission(&world.device().key_id(), &world.for_attestation(), b"CBOR");
    let changed = |name: &str, value: Value| {
        let mut body = whole.clone();
        body[name] = value;
        body.to_string()
    };
    let mut without = whole.clone();
    without.as_object_mut().unwrap().remove("challenge");
    let rows = [
        ("nothing", String::new(), "malformed_token"),
        ("no JSON", "{".to_owned(), "malformed_token"),
        ("an array", "[]".to_owned(), "malformed_token"),
        ("a number", changed("challenge", json!(1)), "malformed_token"),
        ("no challenge", without.to_string(), "malformed_token"),
        ("an odd key id", changed("key_id", json!("AAAA")), "malformed_token"),
        ("no base64", changed("attestation", json!("{}")), "malformed_token"),
        ("no CBOR", whole.to_string(), "malformed_token"),
        ("too long", changed("more", json!("x".repeat(32 * 1024))), "too_large"),
    ];
    for (name, body, code) in rows {
        let request = Request::post("/attest").body(Full::from(body)).unwrap();
        assert_eq!(outcome(&endpoint, request).await, code, "{name}");
    }
    for method in [Method::GET, Method::PUT, Method::HEAD] {
        let request = Request::builder().method(method).body(Full::default()).unwrap();
        let response = ask(&endpoint, request).await;
        assert_eq!((response.status().as_u16(), &response.headers()[ALLOW]), (405, &"POST".parse().unwrap()));
    }
    let challenges = ChallengeEndpoint::new(world.challenges.clone(), ChallengePurpose::Attestation);
    let response = challenges.oneshot(Request::put("/").body(()).unwrap()).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()[ALLOW]),
        (405, &"GET, POST".parse().unwrap())
    );
    assert_eq!((world.store.kept.len(), world.apple.calls()), (0, 0));
}

#[tokio::test]
async fn a_store_that_is_down_gives_the_challenge_back() {
    let world = World::new();
    let endpoint = world.endpoint();
    let request = attest(&world.device(), &world.for_attestation());
    world.store.fail(true);
    let response = ask(&endpoint, request.clone()).await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert!(!std::str::from_utf8(response.body()).unwrap().contains("disk"), "nothing of the cause");
    world.store.fail(false);
    assert_eq!(outcome(&endpoint, request.clone()).await, "201");
    assert_eq!(outcome(&endpoint, request).await, "reused_token");
    assert_eq!((world.store.kept.len(), world.apple.calls()), (1, 0));
}

#[tokio::test]
async fn of_many_copies_of_an_attestation_one_is_accepted() {
    let world = World::new();
    let endpoint = world.endpoint();
    let request = attest(&world.device(), &world.for_attestation());
    let copies = (0..20).map(|_| outcome(&endpoint, request.clone()));
    let outcomes = futures::future::join_all(copies).await;
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "201").count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "reused_token").count(), 19);
    assert_eq!((world.store.kept.len(), world.apple.calls()), (1, 0));
}

#[tokio::test]
async fn the_operator_learns_the_step_and_the_client_does_not() {
    let world = World::new();
    let log = crate::support::Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let device = world.device().with_fault(Fault::Nonce);
    let response = ask(&world.endpoint(), attest(&device, &world.for_attestation())).await;
    let text = log.take();
    assert!(text.contains("attestation rejected") && text.contains("nonce"), "{text}");
    let answer = std::str::from_utf8(response.body()).unwrap();
    assert!(!answer.contains("nonce"), "{answer}");
    assert_eq!(world.apple.calls(), 0);
}

/// A device attests its key under the account `ann`, and signs a request; then the key is revoked. Returns the record
/// that this makes, which is made here from what is public.
async fn attested_used_and_revoked<S: AttestKeyStore>(store: S) -> (Arc<S>, AttestedKey) {
    let (world, store) = (World::new(), Arc::new(store));
    let device = world.device().with_bundle_version(Some("1314"));
    let endpoint = AttestEndpoint::new(Arc::clone(&store), [app_id()], world.challenges.clone())
        .with_anchors(world.anchors())
        .with_account(|_| Some("ann".to_owned()));
    assert_eq!(outcome(&endpoint, attest(&device, &world.for_attestation())).await, "201");
    let server = world.server(AppAttestProof::new(Arc::clone(&store), [app_id()], Freshness::time()));
    assert_eq!(server.code(post_now(&device)).await, "ok");
    let key_id = device.key_id().parse().unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    assert!(store.revoke("", &key_id, "stolen", now).await.unwrap());

    let found = store.find("", &key_id).await.unwrap().unwrap();
    let public_key = PublicKey::from_bytes(&device.public_key()).unwrap();
    let mut public = AttestedKey::new("", public_key, app_id(), Environment::Production, found.attested_at);
    public.counter = KeyCounter::new(1, 0b11);
    public.account = Some("ann".to_owned());
    public.last_seen_at = found.last_seen_at;
    public.category = Some(Category::AppStore);
    public.bundle_version = Some("1314".parse().unwrap());
    public.platform = Some("iphoneos".to_owned());
    public.system_version = Some("27.0.1".to_owned());
    public.revocation = Some(KeyRevocation::new(now, "stolen"));
    assert_eq!(found, public);
    assert_eq!(world.apple.calls(), 0);
    (store, public)
}

#[tokio::test]
async fn a_stolen_store_holds_public_keys_and_nothing_to_sign_with() {
    let (store, key) = attested_used_and_revoked(MemoryAttestKeyStore::new()).await;
    assert_eq!(store.list(), std::slice::from_ref(&key));
    // A member that is added to the record belongs into this list, and into the docs.
    let text = format!("{key:#?}");
    let members: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| !name.starts_with([' ', '}', ')']))
        .collect();
    let expected = [
        "tenant",
        "key_id",
        "public_key",
        "app_id",
        "environment",
        "counter",
        "account",
        "attested_at",
        "last_seen_at",
        "category",
        "bundle_version",
        "platform",
        "system_version",
        "revocation",
    ];
    assert_eq!(members, expected, "{text}");
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_stolen_redis_holds_public_keys_and_nothing_to_sign_with() {
    use std::collections::{BTreeMap, BTreeSet};

    use tower_devicecheck::app_attest::RedisAttestKeyStore;

    let server = crate::redis_server::RedisServer::start();
    let store = RedisAttestKeyStore::new(crate::redis_server::handle(&server).await);
    let (_, key) = attested_used_and_revoked(store).await;
    let mut thief = crate::redis_server::client(&server).await;
    let names: BTreeSet<String> = redis::cmd("KEYS").arg("*").query_async(&mut thief).await.unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let record = format!("tower-devicecheck:attest1::{{{}}}", hex(key.key_id.as_bytes()));
    let account = format!("tower-devicecheck:attest1::account:{}", hex(&Sha256::digest("ann")));
    assert_eq!(names, BTreeSet::from([record.clone(), account.clone()]));
    let ids: Vec<Vec<u8>> = redis::cmd("SMEMBERS").arg(account).query_async(&mut thief).await.unwrap();
    assert_eq!(ids, [key.key_id.as_bytes()]);

    let fields: BTreeMap<String, Vec<u8>> =
        redis::cmd("HGETALL").arg(record).query_async(&mut thief).await.unwrap();
    let millis = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis().to_string().into_bytes()
    };
    let mut seen = b"11".to_vec();
    seen.resize(64, b'0');
    let expected = [
        ("public_key", key.public_key.as_bytes().to_vec()),
        ("app_id", APP_ID.into()),
        ("on_mac", "0".into()),
        ("environment", "production".into()),
        ("highest", "1".into()),
        ("seen", seen),
        ("account", "=ann".into()),
        ("attested_at", millis(key.attested_at)),
        ("last_seen_at", millis(key.last_seen_at)),
        ("category", "4".into()),
        ("bundle_version", "1314".into()),
        ("platform", "iphoneos".into()),
        ("system_version", "27.0.1".into()),
        ("revoked_at", millis(key.revocation.as_ref().unwrap().at)),
        ("revoked_reason", "stolen".into()),
    ];
    assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value)).into());
}
