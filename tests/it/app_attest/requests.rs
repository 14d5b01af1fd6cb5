//! Requests with assertions: each check admits what is right, and refuses what is not.

use futures::future::join_all;
use tower_devicecheck::{
    DeviceOutcome, Enforcement, Evidence, Route, VerifiedDevice,
    app_attest::{AttestPolicy, AttestedDevice, Category, ClientData},
    tenant::{HostTenants, TenantName, Tenants},
    testing::app_attest::Fault,
};

use super::*;

#[tokio::test]
async fn a_signed_request_is_admitted_with_its_device_and_body() {
    let world = World::new();
    let device = world.device().with_bundle_version(Some("1314"));
    world.store(&device, |key| key.account = Some("ann".to_owned())).await;
    let server = world.by_time();
    assert_eq!(server.code(post_now(&device)).await, "ok");
    let (head, body) = server.last();
    assert_eq!(body.unwrap(), "amount=1");
    for name in [KEY_ID, ASSERTION, TIME] {
        assert!(!head.headers.contains_key(name), "{name}");
    }
    let verified = head.extensions.get::<VerifiedDevice>().unwrap();
    assert_eq!(*verified.evidence(), Evidence::fresh("AppAttest", "app-attest"));
    assert_eq!(verified.environment(), Environment::Production);
    let key = world.store.key(&device).await;
    assert_eq!(verified.subject(), Some(&*key.subject()));
    assert!(key.subject().len() == 32 && key.subject().bytes().all(|digit| digit.is_ascii_hexdigit()));
    assert_eq!(verified.digest().as_bytes()[..], Sha256::digest(key.key_id.as_bytes())[..]);
    let facts = AttestedDevice::of(verified).unwrap();
    assert_eq!(*facts.key_id(), key.key_id);
    assert_eq!((facts.app_id(), facts.category()), (&app_id(), Some(Category::AppStore)));
    assert_eq!(facts.bundle_version().unwrap().as_str(), "1314");
    assert_eq!((facts.counter(), facts.account()), (1, Some("ann")));
    assert_eq!((key.counter.highest, world.apple.calls()), (1, 0));
    // A body may be empty, and the path may have no query.
    for method in [Method::GET, Method::DELETE] {
        let request = signed(&device, method, "/", (TIME, &time(0)), "");
        assert_eq!(server.code(request).await, "ok");
    }
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn a_change_to_the_request_is_refused_and_costs_no_counter() {
    let world = World::new();
    let device = world.known_device().await;
    let server = world.by_time();
    let now = time(0);
    type Change = fn(&mut Request<Full<Bytes>>);
    let changes: [(&str, Change); 7] = [
        ("a byte of the body", |request| *request.body_mut() = Full::from("amount=2")),
        ("a byte more", |request| *request.body_mut() = Full::from("amount=1 ")),
        ("no body", |request| *request.body_mut() = Full::default()),
        ("a character of the path", |request| *request.uri_mut() = "/v1/paz?x=1".parse().unwrap()),
        ("a character of the query", |request| *request.uri_mut() = "/v1/pay?x=2".parse().unwrap()),
        ("the method", |request| *request.method_mut() = Method::PUT),
        ("the time", |request| *request.headers_mut().get_mut(TIME).unwrap() = time(-1).parse().unwrap()),
    ];
    for (name, change) in changes {
        let mut request = post_at(&device, &now);
        change(&mut request);
        assert_eq!(server.code(request).await, "refused_token", "{name}");
        assert_eq!(world.reasons.last(), Some("signature"), "{name}");
    }
    let rows = [
        (Fault::Signature, "refused_token", "signature"),
        (Fault::RpIdHash, "refused_token", "rp_id"),
        (Fault::TrailingByte, "malformed_token", "cbor"),
        (Fault::TrailingAuthData, "malformed_token", "extensions"),
        (Fault::SecondCategory, "refused_token", "extensions"),
    ];
    for (fault, code, step) in rows {
        assert_eq!(server.code(post_now(&device.clone().with_fault(fault))).await, code, "{fault:?}");
        assert_eq!(world.reasons.last(), Some(step), "{fault:?}");
    }
    assert_eq!(world.store.advances.get(), 0, "the counter is the last check");
    assert_eq!(server.code(post_now(&device)).await, "ok");
    assert_eq!((server.calls(), world.apple.calls()), (1, 0));
}

#[tokio::test]
async fn a_malformed_credential_is_refused_before_the_store_is_asked() {
    let world = World::new();
    let device = world.known_device().await;
    let server = world.by_time();
    let whole = || post_now(&device).into_parts().0.headers;
    let without = |name: &str| {
        let mut headers = whole();
        headers.remove(name);
        headers
    };
    let with = |name: &'static str, value: &str| {
        let mut headers = whole();
        headers.insert(name, value.parse().unwrap());
        headers
    };
    let twice = |name: &'static str| {
        let mut headers = whole();
        let value = headers[name].clone();
        headers.append(name, value);
        headers
    };
    let long = "A".repeat(5_468);
    let rows: [(&str, HeaderMap, &str); 16] = [
        ("no key id", without(KEY_ID), "a part of the credential is missing"),
        ("no assertion", without(ASSERTION), "a part of the credential is missing"),
        ("no time", without(TIME), "a part of the credential is missing"),
        ("two key ids", twice(KEY_ID), "the header of the device token came more than once"),
        ("two assertions", twice(ASSERTION), "the header of the device token came more than once"),
        ("two times", twice(TIME), "the header of the device token came more than once"),
        ("an odd key id", with(KEY_ID, "AAAA"), "key_id"),
        ("an empty assertion", with(ASSERTION, ""), "the device token is empty"),
        ("a long assertion", with(ASSERTION, &long), "the device token is too long"),
        ("no base64", with(ASSERTION, "{}"), "the device token is not canonical base64"),
        ("base64 without padding", with(ASSERTION, "AA"), "the device token is not canonical base64"),
        ("a time in words", with(TIME, "now"), "the device token is not canonical base64"),
        ("a time with a fraction", with(TIME, "1790000000.5"), "the device token is not canonical base64"),
        ("a late time", with(TIME, &time(-130)), "the time is too far from the server's clock"),
        ("an early time", with(TIME, &time(130)), "the time is too far from the server's clock"),
        ("an assertion of another kind", with(ASSERTION, "AAAA"), "cbor"),
    ];
    for (name, headers, reason) in rows {
        let finds = world.store.finds.get();
        let mut request = post_now(&device);
        *request.headers_mut() = headers;
        let code = if reason.contains("clock") { "refused_token" } else { "malformed_token" };
        assert_eq!(server.code(request).await, code, "{name}");
        assert_eq!(world.reasons.last(), Some(reason), "{name}");
        assert_eq!(world.store.finds.get() - finds, usize::from(reason == "cbor"), "{name}");
    }
    // Any one of the headers is half a credential, and a challenge is none where the time is asked for.
    for name in [KEY_ID, ASSERTION, CHALLENGE, TIME] {
        let request = Request::get("/").header(name, "x").body(Full::default()).unwrap();
        assert_eq!(server.code(request).await, "malformed_token", "{name}");
    }
    assert_eq!(server.code(Request::new(Full::default())).await, "missing_token");
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn each_freshness_admits_once() {
    let world = World::new();
    let device = world.known_device().await;

    // By time, within two minutes.
    let server = world.by_time();
    for (offset, code) in
        [(0, "ok"), (-115, "ok"), (115, "ok"), (-130, "refused_token"), (130, "refused_token")]
    {
        assert_eq!(server.code(post_at(&device, &time(offset))).await, code, "{offset}");
    }
    let captured = post_now(&device);
    assert_eq!(server.code(captured.clone()).await, "ok");
    assert_eq!(server.code(captured).await, "reused_token");
    assert_eq!(world.reasons.last(), Some("the counter was used before"));

    // By challenge.
    let server = world.server(world.proof(Freshness::challenge(world.challenges.clone())));
    let by = |challenge: &str| post(&device, (CHALLENGE, challenge));
    let challenge = world.challenge();
    let captured = by(&challenge);
    assert_eq!(server.code(captured.clone()).await, "ok");
    assert_eq!(server.code(captured).await, "reused_token", "sent again");
    assert_eq!(server.code(by(&challenge)).await, "reused_token", "with another counter");
    let finds = world.store.finds.get();
    let for_attestation = world.challenges.issue("", ChallengePurpose::Attestation).unwrap();
    let of_tenant = world.challenges.issue("shop", ChallengePurpose::Assertion).unwrap();
    for challenge in [&*for_attestation, &of_tenant, "", "A", &"A".repeat(55)] {
        assert_eq!(server.code(by(challenge)).await, "refused_token", "{challenge}");
    }
    assert_eq!(world.store.finds.get(), finds, "the store is not asked");
    // A refused assertion leaves its challenge reserved; a fault of the server gives it back.
    let challenge = world.challenge();
    let mut changed = by(&challenge);
    *changed.body_mut() = Full::from("amount=2");
    assert_eq!(server.code(changed).await, "refused_token");
    assert_eq!(server.code(by(&challenge)).await, "reused_token");
    let challenge = world.challenge();
    let request = by(&challenge);
    world.store.fail(true);
    assert_eq!(server.code(request.clone()).await, "unavailable");
    world.store.fail(false);
    assert_eq!(server.code(request).await, "ok");
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_hundred_copies_of_a_request_one_is_admitted() {
    let world = World::new();
    let device = world.known_device().await;
    for rule in [CounterRule::Strict, CounterRule::Window] {
        let server = world.server(world.proof(Freshness::time()).with_counter_rule(rule));
        let captured = post_now(&device);
        let copies = (0..100).map(|_| {
            let (server, request) = (server.clone(), captured.clone());
            tokio::spawn(async move { server.send(request).await.status() })
        });
        let statuses: Vec<_> = join_all(copies).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{rule:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 99, "{rule:?}");
        assert_eq!(server.calls(), 1, "{rule:?}");
    }
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn the_window_admits_requests_that_overtake_each_other() {
    let world = World::new();
    for (rule, late) in [(CounterRule::Strict, "reused_token"), (CounterRule::Window, "ok")] {
        let device = world.known_device().await;
        let server = world.server(world.proof(Freshness::time()).with_counter_rule(rule));
        let (first, second) = (post_now(&device), post_now(&device));
        assert_eq!(server.code(second.clone()).await, "ok");
        assert_eq!(server.code(first.clone()).await, late, "{rule:?}");
        for request in [first, second] {
            assert_eq!(server.code(request).await, "reused_token", "{rule:?}");
        }
    }
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn keys_are_unknown_revoked_or_out_of_place() {
    let world = World::new();
    let server = world.by_time();
    let stranger = world.device();
    let mut request = post_now(&stranger);
    *request.body_mut() = Full::from("x".repeat(2 << 20));
    assert_eq!(server.code(request).await, "unknown_key", "and no body is read");
    assert_eq!(server.code(post_now(&world.known_device().await.reinstalled())).await, "unknown_key");

    let revoked = world.known_device().await;
    assert_eq!(server.code(post_now(&revoked)).await, "ok");
    let key = world.store.key(&revoked).await;
    assert!(world.store.revoke("", &key.key_id, "stolen", SystemTime::now()).await.unwrap());
    assert_eq!(server.code(post_now(&revoked)).await, "denied");
    assert_eq!(world.reasons.last(), Some("the key is revoked"));

    let of_development = world.device();
    world.store(&of_development, |key| key.environment = Environment::Development).await;
    assert_eq!(server.code(post_now(&of_development)).await, "refused_token");
    let reason = "the key was attested for development, which the route does not admit";
    assert_eq!(world.reasons.last(), Some(reason));
    let layer = world.layer(world.proof(Freshness::time())).with_routing(Route::Development);
    let in_development = Server::new(&layer);
    assert_eq!(in_development.code(post_now(&of_development)).await, "ok");
    assert_eq!(in_development.code(post_now(&world.known_device().await)).await, "refused_token");

    let other_app = world.ca.device("A1B2C3D4E5.com.example.other", Shape::Ios27, Environment::Production);
    world.store(&other_app, |_| ()).await;
    assert_eq!(server.code(post_now(&other_app)).await, "refused_token");
    assert_eq!(world.reasons.last(), Some("the key is that of another app"));
    let both = AppAttestProof::new(
        world.store.clone(),
        [app_id(), other_app.app_id().parse().unwrap()],
        Freshness::time(),
    );
    assert_eq!(world.server(both).code(post_now(&other_app)).await, "ok");
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn policies_admit_and_deny() {
    let world = World::new();
    let build = |text: &str| text.parse().unwrap();
    let policy = AttestPolicy::new()
        .with_categories([Category::AppStore])
        .with_minimum_build(build("100"))
        .with_revoked_builds([build("107")])
        .denying_accounts(|account| account == "bob");
    let strict = policy.clone().requiring_category(true);
    let device = || world.device().with_bundle_version(Some("100"));
    let old = world.ca.device(APP_ID, Shape::Ios26, Environment::Production);
    let rows = [
        ("as it should be", device(), None, &policy, "ok"),
        ("TestFlight", device().with_category(2), None, &policy, "denied"),
        ("development", device().with_category(3), None, &policy, "denied"),
        ("no valid category", device().with_category(0), None, &policy, "denied"),
        ("an old build", device().with_bundle_version(Some("99")), None, &policy, "denied"),
        ("a revoked build", device().with_bundle_version(Some("107")), None, &policy, "denied"),
        ("a later build", device().with_bundle_version(Some("108")), None, &policy, "ok"),
        ("another account", device(), Some("ann"), &policy, "ok"),
        ("a denied account", device(), Some("bob"), &policy, "denied"),
        ("iOS 26", old.clone(), None, &policy, "ok"),
        ("iOS 26 where 27 is required", old.reinstalled(), None, &strict, "denied"),
        ("iOS 27 where it is required", device(), None, &strict, "ok"),
    ];
    for (name, device, account, policy, code) in rows {
        world.store(&device, |key| key.account = account.map(str::to_owned)).await;
        let server = world.server(world.proof(Freshness::time()).with_policy(policy.clone()));
        assert_eq!(server.code(post_now(&device)).await, code, "{name}");
        assert_eq!(world.store.key(&device).await.counter.highest, u32::from(code == "ok"), "{name}");
    }
    assert_eq!(world.apple.calls(), 0);
}

#[tokio::test]
async fn rules_for_client_data() {
    let world = World::new();
    let device = world.known_device().await;
    let custom = |facts: &ClientFacts<'_>| format!("{}|{}", facts.method, facts.freshness).into_bytes();
    for (name, rule, of) in [
        ("text", ClientData::challenge_text(), text_hash as fn(&str) -> Vec<u8>),
        ("bytes", ClientData::challenge_bytes(), bytes_hash),
        ("custom", ClientData::custom(custom), custom_bytes),
    ] {
        let proof = world.proof(Freshness::challenge(world.challenges.clone())).with_client_data(rule);
        let app = crate::support::App::new(&world.apple.layer().add_proof_before(proof).unwrap());
        for (cut, status) in [(1, 401), (0, 200)] {
            let challenge = world.challenge();
            let request = Request::get("/").header(KEY_ID, device.key_id()).header(CHALLENGE, &challenge);
            let hash = of(&challenge);
            let request = request.header(ASSERTION, STANDARD.encode(device.assert(&hash[cut..])));
            let response = app.send(request.body(Full::default()).unwrap()).await;
            assert_eq!(response.status(), status, "{name}");
        }
    }
    // A rule with the body is no proof for a layer that reads none.
    assert!(world.apple.layer().add_proof_before(world.proof(Freshness::time())).is_err());
    assert_eq!(world.apple.calls(), 0);
}

fn text_hash(challenge: &str) -> Vec<u8> {
    Sha256::digest(challenge).to_vec()
}

fn bytes_hash(challenge: &str) -> Vec<u8> {
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(challenge).unwrap();
    Sha256::digest(bytes).to_vec()
}

fn custom_bytes(challenge: &str) -> Vec<u8> {
    format!("GET|{challenge}").into_bytes()
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let world = World::new();
    let device = world.known_device().await;
    let server = world.server(world.proof(Freshness::time()).with_body_limit(8));
    assert_eq!(server.code(post_now(&device)).await, "ok", "8 bytes");
    let request = signed(&device, Method::POST, "/", (TIME, &time(0)), "amount=10");
    assert_eq!(server.code(request).await, "too_large");
    assert_eq!((world.store.advances.get(), world.apple.calls()), (1, 0));
}

#[tokio::test]
async fn a_store_that_is_down_is_never_an_unknown_key() {
    let world = World::new();
    let device = world.known_device().await;
    let server = world.by_time();
    world.store.fail(true);
    for request in [post_now(&device), post_now(&world.device())] {
        let response = server.send(request).await;
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
        assert!(!std::str::from_utf8(response.body()).unwrap().contains("disk"), "nothing of the cause");
    }
    world.store.fail(false);
    assert_eq!(server.code(post_now(&device)).await, "ok");
    assert_eq!((server.calls(), world.apple.calls()), (1, 0));
}

#[tokio::test]
async fn monitor_mode_lets_everything_through_and_says_so() {
    let world = World::new();
    let device = world.known_device().await;
    let layer = world.layer(world.proof(Freshness::time())).with_enforcement(Enforcement::Monitor);
    let server = Server::new(&layer);
    let mut changed = post_now(&device);
    *changed.body_mut() = Full::from("amount=2");
    let captured = post_now(&device);
    let rows = [
        ("right", captured.clone(), "verified"),
        ("sent again", captured, "reused_token"),
        ("changed", changed, "refused_token"),
        ("unknown", post_now(&world.device()), "unknown_key"),
    ];
    for (name, request, outcome) in rows {
        assert_eq!(server.send(request).await.status(), 200, "{name}");
        let (head, body) = server.last();
        assert_eq!(head.extensions.get::<DeviceOutcome>().unwrap().as_str(), outcome, "{name}");
        assert_eq!(body.unwrap().len(), 8, "{name}");
        assert!(!head.headers.contains_key(ASSERTION), "{name}");
    }
    assert_eq!((server.calls(), world.apple.calls()), (4, 0));
}

#[tokio::test]
async fn a_key_of_one_tenant_is_unknown_to_the_other() {
    let world = World::new();
    let device = world.device();
    world.store(&device, |key| key.tenant = "shop".to_owned()).await;
    let tenants = || {
        let layer = || world.layer(world.proof(Freshness::challenge(world.challenges.clone())));
        let hosts = HostTenants::new().with("shop.example", "shop").unwrap();
        let hosts = hosts.with("bank.example", "bank").unwrap();
        Tenants::new(hosts).with("shop", layer()).unwrap().with("bank", layer()).unwrap()
    };
    let server = Server::new(&tenants());
    let request = |host: &'static str, tenant: &str| {
        let challenge = world.challenges.issue(tenant, ChallengePurpose::Assertion).unwrap();
        let mut request = post(&device, (CHALLENGE, &challenge));
        request.headers_mut().insert("host", host.parse().unwrap());
        request
    };
    assert_eq!(server.code(request("shop.example", "shop")).await, "ok");
    let verified = server.last().0.extensions.get::<VerifiedDevice>().unwrap().clone();
    assert_eq!(verified.tenant().map(TenantName::as_str), Some("shop"));
    assert_eq!(server.code(request("bank.example", "bank")).await, "unknown_key");
    assert_eq!(server.code(request("shop.example", "bank")).await, "refused_token", "another's challenge");
    assert_eq!(server.code(request("shop.example", "")).await, "refused_token", "nobody's challenge");
    // The same key, known to both: two keys, two counters, two subjects.
    world.store(&device, |key| key.tenant = "bank".to_owned()).await;
    assert_eq!(server.code(request("bank.example", "bank")).await, "ok");
    let other = server.last().0.extensions.get::<VerifiedDevice>().unwrap().clone();
    assert_ne!(verified.subject(), other.subject());
    assert_eq!(world.apple.calls(), 0);
}
