//! Many apps behind one layer: the choice of a tenant, and what each tenant has for itself.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{join, join_all, poll_immediate};
use http::{Request, StatusCode, Version, header::HOST, request};
use http_body_util::{Empty, Full};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_devicecheck::{
    AppleClient, Bits, DebugTokens, DeviceCheckLayer, DeviceOutcome, Enforcement, Environment, MarkDecision,
    Rejection, Route, VerifiedDevice,
    cache::MemoryCache,
    replay::MemoryReplayGuard,
    session::{Exchange, KeyRing, SessionProof, Sessions},
    split_key::{Limits, MemorySplitKeyStore, SplitKeyLayer, SplitKeyRejection, Splitter},
    tenant::{
        ClientChosenTenant, HostTenants, PathTenants, TenantChoice, TenantExtension, TenantName,
        TenantResolver, Tenants,
    },
    testing::{FakeApple, PrivateKey, Reply},
};

use crate::{
    captured,
    support::{App, Apple, Log, TOKEN_HEADER, rejection},
};

/// Three tenants. `shop` and `club` are of one team.
const NAMES: [&str; 3] = ["shop", "club", "bank"];
const RING: &str = "0a0b0c0d:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

struct World {
    /// The Apple of `shop` and `club`, and that of `bank`.
    apples: [Apple; 2],
}

impl World {
    fn new() -> Self {
        let fake = FakeApple::with_key(&PrivateKey::generate(), "TEAM654321", "KEY7654321");
        let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
        Self { apples: [Apple::new(), Apple { fake, client }] }
    }

    fn apple(&self, tenant: &str) -> &Apple {
        &self.apples[usize::from(tenant == "bank")]
    }

    fn calls(&self) -> usize {
        self.apples.iter().map(Apple::calls).sum()
    }

    /// Tenants by host, whose layers `change` has changed.
    fn tenants(&self, change: impl Fn(&str, DeviceCheckLayer) -> DeviceCheckLayer) -> Tenants {
        let hosts = HostTenants::new();
        let tenants = Tenants::new(hosts.clone());
        for name in NAMES {
            hosts.insert(&host(name), name).unwrap();
            tenants.insert(name, change(name, self.apple(name).layer())).unwrap();
        }
        captured::shown(&tenants);
        tenants
    }
}

fn host(tenant: &str) -> String {
    format!("{tenant}.example")
}

fn to(tenant: &str, header: &str, value: &str) -> Request<Full<Bytes>> {
    Request::get("/").header(HOST, host(tenant)).header(header, value).body(Full::default()).unwrap()
}

fn with_token(tenant: &str, token: &str) -> Request<Full<Bytes>> {
    to(tenant, TOKEN_HEADER, token)
}

/// Every pair of the tenant of a credential and the tenant of a request.
fn pairs() -> impl Iterator<Item = (&'static str, &'static str)> {
    NAMES.into_iter().flat_map(|credential| NAMES.into_iter().map(move |request| (credential, request)))
}

fn sessions(tenant: &str) -> Sessions {
    let ring: KeyRing = RING.parse().unwrap();
    Sessions::new(tenant, "TEAM123456.com.example.app", &ring).unwrap()
}

#[tokio::test]
async fn only_a_token_of_the_tenants_team_is_admitted() {
    for (credential, request) in pairs() {
        let world = World::new();
        let app = App::new(&world.tenants(|_, layer| layer));
        let token = world.apple(credential).genuine();
        let status = app.send(with_token(request, &token)).await.status();
        // A device token names its team, but not its app: only Apple's team can be told apart.
        let same_team = (credential == "bank") == (request == "bank");
        let expected = if same_team { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        assert_eq!(status, expected, "{credential} {request}");
        assert_eq!(world.apple(request).calls(), 1, "{credential} {request}");
        assert_eq!(world.calls(), 1, "{credential} {request}");
        if same_team {
            assert_eq!(app.device().tenant().map(TenantName::as_str), Some(request));
        }
    }
}

/// A verdict in a cache answers for the tenant that asked, and for no other: another one asks Apple itself, once its
/// own Apple is gone it gets no answer.
async fn a_cached_verdict_is_the_tenants_own(share: impl Fn(DeviceCheckLayer) -> DeviceCheckLayer) {
    for (credential, request) in pairs() {
        let world = World::new();
        let app = App::new(&world.tenants(|_, layer| share(layer)));
        let token = world.apple(credential).genuine();
        assert_eq!(app.send(with_token(credential, &token)).await.status(), StatusCode::OK);
        assert_eq!(world.calls(), 1);
        for apple in &world.apples {
            apple.fake.always(Reply::status(500));
        }
        let status = app.send(with_token(request, &token)).await.status();
        if credential == request {
            assert_eq!((status, world.calls()), (StatusCode::OK, 1), "{credential} {request}");
        } else {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{credential} {request}");
            assert!(world.calls() > 1, "{credential} {request}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_verdict_in_one_shared_memory_is_the_tenants_own() {
    let cache = Arc::new(MemoryCache::new());
    a_cached_verdict_is_the_tenants_own(|layer| layer.with_cache(Arc::clone(&cache))).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_verdict_in_one_redis_is_the_tenants_own() {
    let server = crate::redis_server::RedisServer::start();
    let cache = Arc::new(crate::redis_server::cache(&server).await);
    a_cached_verdict_is_the_tenants_own(|layer| layer.with_cache(Arc::clone(&cache))).await;
}

#[tokio::test(start_paused = true)]
async fn concurrent_requests_share_a_call_within_a_tenant_only() {
    for (first, second) in pairs() {
        let world = World::new();
        let cache = Arc::new(MemoryCache::new());
        let app = App::new(&world.tenants(|_, layer| layer.with_cache(Arc::clone(&cache))));
        let token = world.apple(first).genuine();
        for apple in &world.apples {
            apple.fake.always(Reply::normal().delay(Duration::from_millis(100)));
        }
        let requests = join(app.send(with_token(first, &token)), app.send(with_token(second, &token))).await;
        assert_eq!(requests.0.status(), StatusCode::OK);
        assert_eq!(world.calls(), if first == second { 1 } else { 2 }, "{first} {second}");
    }
}

#[tokio::test]
async fn a_debug_token_admits_to_its_tenant_only() {
    let secret = |tenant: &str| format!("{tenant}-0f7a1c52-98a3-4a8e-8a0b-3f1d6c6c7b1e");
    for (credential, request) in pairs() {
        let world = World::new();
        let app = App::new(&world.tenants(|name, layer| {
            layer.with_debug_tokens(DebugTokens::new().add("ci", &secret(name)).unwrap())
        }));
        let status = app.send(to(request, "x-debug-token", &secret(credential))).await.status();
        assert_eq!(status.is_success(), credential == request, "{credential} {request}");
        assert_eq!(world.calls(), 0);
    }
}

#[tokio::test]
async fn a_token_is_spent_for_its_tenant_only() {
    for (credential, request) in pairs() {
        let world = World::new();
        let guard = Arc::new(MemoryReplayGuard::new());
        let app = App::new(&world.tenants(|_, layer| layer.with_single_use(Arc::clone(&guard))));
        let token = world.apple(credential).genuine();
        assert_eq!(app.send(with_token(credential, &token)).await.status(), StatusCode::OK);
        let again = app.send(with_token(request, &token)).await;
        let (is_reused, calls) = match again.status() {
            StatusCode::OK => (false, 2),
            _ => match rejection(&again) {
                Rejection::ReusedToken => (true, 1),
                other => {
                    assert_eq!(other, Rejection::RefusedToken);
                    (false, 2)
                }
            },
        };
        assert_eq!(is_reused, credential == request, "{credential} {request}");
        assert_eq!(world.calls(), calls, "{credential} {request}");
    }
}

#[tokio::test]
async fn a_session_counts_for_its_tenant_only() {
    for (credential, request) in pairs() {
        let world = World::new();
        let tenants = world.tenants(|_, layer| layer);
        let exchange = tenants.layer(Exchange::new(sessions(credential)));
        let token = world.apple(credential).genuine();
        let mut purchase = with_token(credential, &token);
        *purchase.method_mut() = http::Method::POST;
        let bought = exchange.oneshot(purchase).await.unwrap();
        assert_eq!(bought.status(), StatusCode::OK);
        let bought = http_body_util::BodyExt::collect(bought.into_body()).await.unwrap().to_bytes();
        let bought: serde_json::Value = serde_json::from_slice(&bought).unwrap();
        let session = bought["session"].as_str().unwrap();

        let app =
            App::new(&world.tenants(|name, layer| layer.with_sessions(SessionProof::new(sessions(name)))));
        let response = app.send(to(request, "x-device-session", session)).await;
        if credential == request {
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(app.device().tenant().map(TenantName::as_str), Some(request));
        } else {
            assert_eq!(rejection(&response), Rejection::RefusedToken, "{credential} {request}");
        }
        assert_eq!(world.calls(), 1);
    }
}

/// An operator who gives one tenant's sessions to all of them gets errors, and no session.
#[tokio::test]
async fn sessions_of_another_tenant_are_misconfigured() {
    let world = World::new();
    let shared = sessions("shop");
    let token = world.apple("bank").genuine();
    let tenants =
        world.tenants(|_, layer| layer.with_sessions(SessionProof::new(shared.clone()).with_hand_out(true)));
    let app = App::new(&tenants);
    let response = app.send(with_token("bank", &token)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("x-device-session"));
    let response = app.send(to("bank", "x-device-session", "AQ")).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);

    let exchange = world.tenants(|_, layer| layer).layer(Exchange::new(shared));
    let mut purchase = with_token("bank", &world.apple("bank").genuine());
    *purchase.method_mut() = http::Method::POST;
    let response = exchange.oneshot(purchase).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(world.calls(), 2);
}

#[tokio::test]
async fn a_split_key_opens_for_devices_of_its_tenant_only() {
    for (credential, request) in pairs() {
        let world = World::new();
        let store = Arc::new(MemorySplitKeyStore::new());
        let key = "sk-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6";
        let split = Splitter::new().issue(&store, credential, "openai", key, Limits::none()).await.unwrap();
        let part = split.client_part().expose();
        captured::secret(part);
        let service = ServiceBuilder::new()
            .layer(world.tenants(|_, layer| layer))
            .layer(SplitKeyLayer::new(Arc::clone(&store)))
            .service(service_fn(async |_: Request<Full<Bytes>>| {
                Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
            }));
        let mut question = with_token(request, &world.apple(request).genuine());
        question.headers_mut().insert("x-ai-key", part.parse().unwrap());
        question.headers_mut().insert("x-project-id", credential.parse().unwrap());
        let response = service.oneshot(question).await.unwrap();
        if credential == request {
            assert_eq!(response.status(), StatusCode::OK);
        } else {
            let rejection = response.extensions().get::<SplitKeyRejection>();
            assert_eq!(rejection.map(SplitKeyRejection::code), Some("invalid_key"), "{credential} {request}");
        }
        assert_eq!(world.calls(), 1);
    }
}

/// A stranger's wrong guesses must not block the key of another tenant.
#[tokio::test]
async fn guesses_from_another_tenant_block_no_key() {
    use tower_devicecheck::split_key::Suspicion;
    let world = World::new();
    let store = Arc::new(MemorySplitKeyStore::new());
    let key = "sk-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6";
    let split = Splitter::new().issue(&store, "shop", "openai", key, Limits::none()).await.unwrap();
    let part = split.client_part().expose();
    let block = Suspicion::new().with_blocking(Duration::from_secs(60));
    let service = ServiceBuilder::new()
        .layer(world.tenants(|_, layer| layer))
        .layer(SplitKeyLayer::new(Arc::clone(&store)).with_suspicion(block))
        .service(service_fn(async |_: Request<Full<Bytes>>| {
            Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
        }));
    let ask = |tenant: &str, token: String| {
        let mut question = with_token(tenant, &token);
        question.headers_mut().insert("x-ai-key", part.parse().unwrap());
        question.headers_mut().insert("x-project-id", "shop".parse().unwrap());
        service.clone().oneshot(question)
    };
    let token = world.apple("bank").genuine();
    for _ in 0..1_000 {
        assert_eq!(ask("bank", token.clone()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(ask("shop", world.apple("shop").genuine()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(world.calls(), 2);
}

#[tokio::test]
async fn a_stranger_gets_the_answer_to_a_refused_token_and_leaves_nothing_behind() {
    let world = World::new();
    let log = Log::default();
    let app = App::new(&world.tenants(|_, layer| layer));
    let refused = app.send(with_token("shop", &world.apples[0].fake.forged_token())).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(world.calls(), 1);
    let genuine = world.apples[0].genuine();
    let _listening = log.listen(tracing::Level::DEBUG);
    let unknown = app.send(with_token("unknown", &genuine)).await;
    let logged = log.take();
    assert!(logged.contains("no tenant") && !logged.contains("unknown.example"), "{logged}");
    assert_eq!((unknown.status(), unknown.headers()), (refused.status(), refused.headers()));
    assert_eq!((unknown.body(), rejection(&unknown)), (refused.body(), Rejection::RefusedToken));
    for request in [Request::get("/"), Request::get("/").header(TOKEN_HEADER, "AAAA")] {
        let unknown = app.send(request.body(Full::default()).unwrap()).await;
        assert_eq!((unknown.headers(), unknown.body()), (refused.headers(), refused.body()));
    }
    assert_eq!((world.calls(), app.inner.calls()), (1, 0));
}

#[tokio::test]
async fn requests_of_ten_thousand_strangers_ask_nobody_and_take_no_memory() {
    let world = World::new();
    let app = App::new(&world.tenants(|_, layer| layer));
    let token = world.apples[0].genuine();
    // A first one, for what is allocated once.
    app.send(with_token("stranger", &token)).await;
    let mut left = 0;
    for stranger in 0..10_000 {
        let request = with_token(&format!("stranger-{stranger}"), &token);
        let before = app.clone();
        let info = allocation_counter::measure(|| {
            let response = futures::executor::block_on(before.send(request));
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        });
        left += info.bytes_current;
    }
    // The request itself was made outside of the measurement, so what is freed there counts below zero.
    assert!(left <= 0, "{left} bytes are left");
    assert_eq!((world.calls(), app.inner.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_tenants_trouble_is_nobody_elses() {
    let world = World::new();
    let app = App::new(&world.tenants(|_, layer| layer));
    // The key of `shop`'s team is revoked: Apple does not accept it.
    world.apples[0].fake.always(Reply::status(401));
    for _ in 0..50 {
        let response = app.send(with_token("shop", &world.apples[0].genuine())).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let response = app.send(with_token("bank", &world.apples[1].genuine())).await;
        assert_eq!(response.status(), StatusCode::OK);
    }
    assert_eq!(world.apples[1].calls(), 50);

    // Its Apple hangs, with more requests waiting than there are slots.
    let world = World::new();
    let app = App::new(&world.tenants(|_, layer| layer));
    world.apples[0].fake.always(Reply::hang());
    let waiting: Vec<_> = (0..600)
        .map(|_| {
            let (app, token) = (app.clone(), world.apples[0].genuine());
            tokio::spawn(async move { app.send(with_token("shop", &token)).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let begun = tokio::time::Instant::now();
    for _ in 0..50 {
        let response = app.send(with_token("bank", &world.apples[1].genuine())).await;
        assert_eq!(response.status(), StatusCode::OK);
    }
    assert_eq!((begun.elapsed(), world.apples[1].calls()), (Duration::ZERO, 50));
    for response in join_all(waiting).await {
        assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test(start_paused = true)]
async fn tenants_change_while_requests_are_under_way() {
    let world = World::new();
    let hosts = HostTenants::new();
    let tenants = Tenants::new(hosts.clone());
    let app = App::new(&tenants);
    let token = world.apples[0].genuine();
    let status = async |token: &str| app.send(with_token("shop", token)).await.status();
    assert_eq!(status(&token).await, StatusCode::UNAUTHORIZED);
    hosts.insert("shop.example", "shop").unwrap();
    assert_eq!(status(&token).await, StatusCode::UNAUTHORIZED);
    tenants.insert("shop", world.apples[0].layer()).unwrap();
    assert_eq!(status(&token).await, StatusCode::OK);

    // A request that waits for Apple, whose tenant moves to another team, and then goes.
    world.apples[0].fake.always(Reply::normal().delay(Duration::from_secs(1)));
    let second = world.apples[0].genuine();
    let mut waiting = Box::pin(status(&second));
    assert!(poll_immediate(&mut waiting).await.is_none());
    tenants.insert("shop", world.apples[1].layer()).unwrap();
    assert_eq!(tenants.names().len(), 1);
    assert_eq!(status(&token).await, StatusCode::UNAUTHORIZED, "a verdict of the old gate");
    assert_eq!(status(&world.apples[1].genuine()).await, StatusCode::OK);
    tenants.remove("shop");
    assert!(tenants.names().is_empty());
    assert_eq!(waiting.await, StatusCode::OK, "it ends as it began");
    assert_eq!(status(&world.apples[1].genuine()).await, StatusCode::UNAUTHORIZED);
    assert_eq!((world.apples[0].calls(), world.apples[1].calls()), (2, 2));
}

#[tokio::test]
async fn each_tenant_enforces_and_routes_for_itself() {
    let world = World::new();
    let app = App::new(&world.tenants(|name, layer| match name {
        "shop" => layer.with_enforcement(Enforcement::Monitor),
        "club" => layer.with_routing(Route::Exempt),
        _ => layer.with_routing(Route::Development),
    }));
    let forged = world.apples[0].fake.forged_token();
    assert_eq!(app.send(with_token("shop", &forged)).await.status(), StatusCode::OK);
    let outcome = app.inner.last().extensions.get::<DeviceOutcome>().map(DeviceOutcome::as_str);
    assert_eq!(outcome, Some("refused_token"));
    assert_eq!(app.send(with_token("club", &forged)).await.status(), StatusCode::OK);
    assert!(app.inner.last().extensions.get::<VerifiedDevice>().is_none());
    let development = world.apples[1].fake.genuine_token(Environment::Development);
    assert_eq!(app.send(with_token("bank", &development)).await.status(), StatusCode::OK);
    let production = world.apples[1].genuine();
    assert_eq!(app.send(with_token("bank", &production)).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!((world.apples[0].calls(), world.apples[1].calls()), (1, 2));
}

#[tokio::test]
async fn resolvers() {
    let world = World::new();
    let token = world.apples[0].genuine();
    let tenants = |resolver: Box<dyn Fn(&request::Parts) -> TenantChoice + Send + Sync>| {
        App::new(&Tenants::new(resolver).with("shop", world.apples[0].layer()).unwrap())
    };
    let of = |resolver: Arc<dyn TenantResolver>| tenants(Box::new(move |head| resolver.resolve(head)));
    let get = |uri: &str| Request::get(uri).header(TOKEN_HEADER, &token);
    let paths =
        PathTenants::new().with("/shop", "shop").and_then(|paths| paths.with("/gone", "gone")).unwrap();
    let by_path = of(Arc::new(paths));
    let by_header = of(Arc::new(ClientChosenTenant::new("x-tenant".parse().unwrap())));
    let by_extension = of(Arc::new(TenantExtension));
    let by_closure = tenants(Box::new(|head| match head.uri.path() {
        "/health" => TenantChoice::Exempt,
        _ => TenantChoice::Unknown,
    }));
    let shop: TenantName = "shop".parse().unwrap();
    let rows = [
        ("a path", &by_path, get("/shop/cart"), Some(true)),
        ("a path of nobody", &by_path, get("/shopping"), None),
        ("a path of a tenant that is not there", &by_path, get("/gone"), None),
        ("a header", &by_header, get("/").header("x-tenant", "shop"), Some(true)),
        ("no header", &by_header, get("/"), None),
        ("two headers", &by_header, get("/").header("x-tenant", "shop").header("x-tenant", "shop"), None),
        ("a header of nobody", &by_header, get("/").header("x-tenant", "club"), None),
        ("an odd header", &by_header, get("/").header("x-tenant", "../shop"), None),
        ("an extension", &by_extension, get("/").extension(shop.clone()), Some(true)),
        ("no extension", &by_extension, get("/").header("x-tenant", "shop"), None),
        ("exempt", &by_closure, get("/health"), Some(false)),
        ("not exempt", &by_closure, get("/"), None),
        ("over HTTP/2", &by_path, get("https://shop.example/shop/").version(Version::HTTP_2), Some(true)),
    ];
    for (name, app, request, verified) in rows {
        let response = app.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status().is_success(), verified.is_some(), "{name}");
        if let Some(verified) = verified {
            let device = app.inner.last().extensions.get::<VerifiedDevice>().cloned();
            assert_eq!(
                device.and_then(|device| device.tenant().cloned()),
                verified.then(|| shop.clone()),
                "{name}"
            );
        }
    }
    // Each of three layers remembers its verdict.
    assert_eq!(world.calls(), 3);
}

#[tokio::test]
async fn a_handler_marks_a_device_of_its_tenant() {
    let world = World::new();
    let deny = |bits: Bits, _| if bits.bit1() { MarkDecision::Deny } else { MarkDecision::Admit };
    let cache = Arc::new(MemoryCache::new());
    let layer = |tenant: &str| {
        let layer = world.apples[0].layer().with_cache(Arc::clone(&cache)).with_marks(deny);
        layer.with_tenant(tenant).unwrap()
    };
    let (shop, club) = (layer("shop"), layer("club"));
    let writer = shop.mark_writer(world.apples[0].client.clone());
    let hosts =
        HostTenants::new().with("shop.example", "shop").and_then(|hosts| hosts.with("club.example", "club"));
    let tenants =
        Tenants::new(hosts.unwrap()).with("shop", shop.clone()).unwrap().with("club", club).unwrap();
    assert!(tenants.insert("club", shop).is_err(), "its keys have the name of `shop`");
    let app = App::new(&tenants);
    let token = world.apples[0].genuine();
    for tenant in ["shop", "club", "shop", "club"] {
        assert_eq!(app.send(with_token(tenant, &token)).await.status(), StatusCode::OK);
    }
    assert_eq!(world.calls(), 2, "each tenant asks for itself");
    app.send(with_token("shop", &token)).await;
    writer.update(&app.device(), None, true).await.unwrap();
    assert_eq!(world.calls(), 3);
    let denied = app.send(with_token("shop", &token)).await;
    assert_eq!((denied.status(), rejection(&denied)), (StatusCode::FORBIDDEN, Rejection::Denied));
    // The bits are those of the team, so the other tenant learns of them once it asks again.
    assert_eq!(app.send(with_token("club", &token)).await.status(), StatusCode::OK);
    assert_eq!(world.calls(), 4);
}
