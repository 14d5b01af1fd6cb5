//! Attacks on tenants: layers made from one another, hosts over real connections, and handles of the wrong layer.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::future::poll_immediate;
use http::{Request, Response, StatusCode, Version, header::HOST};
use http_body_util::{Empty, Full};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{
    AppleClient, Bits, BitsErrorKind, DeviceOutcome, Enforcement, Event, MarkDecision, Observer, Outage,
    TracingObserver, VerifiedDevice,
    cache::MemoryCache,
    tenant::{HostTenants, PathTenants, TenantChoice, TenantName, TenantResolver, Tenants},
    testing::{FakeApple, PrivateKey, Reply},
};

use crate::support::{App, Apple, Inner, Log, TOKEN_HEADER};

const NAMES: [&str; 2] = ["shop", "club"];

fn hosts() -> HostTenants {
    let hosts = HostTenants::new();
    for name in NAMES {
        hosts.insert(&format!("{name}.example"), name).unwrap();
    }
    hosts
}

fn to(tenant: &str, token: &str) -> Request<Full<Bytes>> {
    let host = format!("{tenant}.example");
    Request::get("/").header(HOST, host).header(TOKEN_HEADER, token).body(Full::default()).unwrap()
}

/// The tenants whose outages begin, and the outcomes with their tenants.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn push(&self, what: &str, tenant: Option<&TenantName>) {
        let tenant = tenant.map_or("nobody", TenantName::as_str);
        self.0.lock().unwrap().push(format!("{what} {tenant}"));
    }
}

impl Observer for Told {
    fn decision(&self, event: &Event<'_>) {
        self.push(event.outcome().as_str(), event.tenant());
    }

    fn outage(&self, outage: &Outage<'_>) {
        if let Outage::Begins(event) = outage {
            self.push("begins", event.tenant());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn layers_of_tenants_made_from_one_layer_have_outages_of_their_own() {
    let (apple, told) = (Apple::new(), Told::default());
    let base = apple.layer().with_observer(told.clone());
    let mut tenants = Tenants::new(hosts());
    for name in NAMES {
        tenants = tenants.with(name, base.clone()).unwrap();
    }
    let app = App::new(&tenants);
    apple.fake.always(Reply::status(401));
    for name in NAMES {
        app.send(to(name, &apple.genuine())).await;
    }
    let begun: Vec<_> = told.take().into_iter().filter(|told| told.starts_with("begins")).collect();
    assert_eq!(begun, ["begins shop", "begins club"]);
    assert!(apple.calls() > 0);
}

#[tokio::test(start_paused = true)]
async fn layers_of_tenants_made_from_one_layer_have_shadow_checks_of_their_own() {
    let (apple, told) = (Apple::new(), Told::default());
    let base = apple.layer().with_enforcement(Enforcement::Shadow).with_shadow_checks(1);
    let base = base.with_observer(told.clone());
    let mut tenants = Tenants::new(hosts());
    for name in NAMES {
        tenants = tenants.with(name, base.clone()).unwrap();
    }
    let app = App::new(&tenants);
    apple.fake.always(Reply::hang());
    for name in ["shop", "shop", "club", "club"] {
        assert_eq!(app.send(to(name, &apple.genuine())).await.status(), StatusCode::OK);
        let outcome = app.inner.last().extensions.get::<DeviceOutcome>().map(DeviceOutcome::as_str);
        assert_eq!(outcome, Some("unknown"));
    }
    assert_eq!(told.take(), ["left_out shop", "left_out club"]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let told = told.take();
    for end in ["unavailable shop", "unavailable club"] {
        assert_eq!(told.iter().filter(|told| *told == end).count(), 1, "{told:?}");
    }
    assert!(apple.calls() >= 2);
}

/// The log names the tenant of each line about a request, and of the end of an outage.
#[tokio::test(start_paused = true)]
async fn the_log_names_the_tenant() {
    let (apple, log) = (Apple::new(), Log::default());
    let _listening = log.listen(tracing::Level::TRACE);
    let layer = apple.layer().with_observer(TracingObserver);
    let shadow = layer.clone().with_enforcement(Enforcement::Shadow).with_shadow_checks(0);
    let exempt = layer.clone().with_routing(tower_devicecheck::Route::Exempt);
    for (layer, reply, line) in [
        (exempt, None, "request is exempt"),
        (shadow, None, "request left out of shadow mode"),
        (layer.clone(), Some(Reply::status(401)), "Apple does not accept our credentials"),
    ] {
        let app = App::new(&Tenants::new(hosts()).with("shop", layer).unwrap());
        if let Some(reply) = reply {
            apple.fake.always(reply);
        }
        app.send(to("shop", &apple.genuine())).await;
        let logged = log.take();
        let line = logged.lines().find(|logged| logged.contains(line)).expect(&logged);
        assert!(line.contains(r#"tenant="shop""#), "{line}");
    }
    let app = App::new(&Tenants::new(hosts()).with("shop", layer).unwrap());
    apple.fake.always(Reply::status(500));
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    app.send(to("shop", &apple.genuine())).await;
    apple.fake.clear();
    log.take();
    tokio::time::sleep(Duration::from_secs(60)).await;
    app.send(to("shop", &apple.genuine())).await;
    let logged = log.take();
    let line = logged.lines().find(|logged| logged.contains("there are verdicts again")).expect(&logged);
    assert!(line.contains(r#"tenant="shop""#), "{line}");
    assert!(apple.calls() >= 3, "for the outages and the end of one");
}

/// A handle that was made before the layer got its tenant, or its second team, cannot make the right cache forget. It
/// says so, and the bits are set.
#[tokio::test(start_paused = true)]
async fn a_handle_of_another_layer_says_that_the_old_bits_are_remembered() {
    let apple = Apple::new();
    let deny = |bits: Bits, _| if bits.bit1() { MarkDecision::Deny } else { MarkDecision::Admit };
    let layer = apple.layer().with_cache(MemoryCache::new()).with_marks(deny);
    let early = layer.mark_writer(apple.client.clone());
    let app = App::new(&Tenants::new(hosts()).with("shop", layer).unwrap());
    let token = apple.genuine();
    assert_eq!(app.send(to("shop", &token)).await.status(), StatusCode::OK);
    let error = early.update(&app.device(), None, true).await.unwrap_err();
    assert_eq!(error.kind(), BitsErrorKind::StillRemembered);
    assert_eq!(apple.fake.bits(&token), Some((false, true)));
    assert_eq!(app.send(to("shop", &token)).await.status(), StatusCode::OK, "the old mark");
    assert_eq!(apple.calls(), 2);

    // Made before the layer got its second team, to whose devices it belongs.
    let fake = FakeApple::with_key(&PrivateKey::generate(), "TEAM654321", "KEY7654321");
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
    let (first, second) = (Apple::new(), Apple { fake, client });
    let layer = first.layer().with_marks(deny);
    let early = [&first, &second].map(|apple| layer.mark_writer(apple.client.clone()));
    let app = App::new(&layer.add_verifier(second.client.clone()));
    for (apple, writer, remembered) in [(&first, &early[0], false), (&second, &early[1], true)] {
        let token = apple.genuine();
        assert_eq!(app.status(&token).await, StatusCode::OK);
        let updated = writer.update(&app.device(), None, true).await.map_err(|error| error.kind());
        let expected = if remembered { Err(BitsErrorKind::StillRemembered) } else { Ok(()) };
        assert_eq!(updated, expected);
        assert_eq!(apple.fake.bits(&token), Some((false, true)));
        let status = if remembered { StatusCode::OK } else { StatusCode::FORBIDDEN };
        assert_eq!(app.status(&token).await, status);
    }
    assert_eq!((first.calls(), second.calls()), (4, 2));
}

/// A layer with one team and without a tenant, such as one for appeals, does not say which team or tenant a device
/// is of. The client of the handle does.
#[tokio::test(start_paused = true)]
async fn a_handle_makes_its_own_team_forget_a_device_of_a_layer_for_appeals() {
    let deny = |bits: Bits, _| if bits.bit1() { MarkDecision::Deny } else { MarkDecision::Admit };
    let fake = FakeApple::with_key(&PrivateKey::generate(), "TEAM654321", "KEY7654321");
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap();
    let (first, second) = (Apple::new(), Apple { fake, client });
    let layer =
        first.layer().add_verifier(second.client.clone()).with_marks(deny).with_tenant("shop").unwrap();
    let app = App::new(&layer);
    for apple in [&first, &second] {
        let writer = layer.mark_writer(apple.client.clone());
        apple.set("phone", false, true).await;
        let token = apple.token_of("phone");
        assert_eq!(app.status(&token).await, StatusCode::FORBIDDEN);
        let appeal = App::new(&apple.layer());
        assert_eq!(appeal.status(&token).await, StatusCode::OK);
        writer.update(&appeal.device(), None, false).await.unwrap();
        assert_eq!(app.status(&token).await, StatusCode::OK, "the block is lifted at once");
    }
    assert_eq!((first.calls(), second.calls()), (4 + 1, 4));
}

#[tokio::test]
async fn a_host_over_a_real_connection_is_read_in_one_way_only() {
    let apple = Apple::new();
    let tenants = Tenants::new(hosts());
    let tenants = tenants.with("shop", apple.layer()).unwrap().with("club", apple.layer()).unwrap();
    let inner = service_fn(async |request: Request<hyper::body::Incoming>| {
        let device = request.extensions().get::<VerifiedDevice>();
        let tenant = device.and_then(VerifiedDevice::tenant).map(ToString::to_string);
        let mut response = Response::new(Empty::<Bytes>::new());
        response.headers_mut().insert("x-tenant", tenant.unwrap_or_default().parse().unwrap());
        Ok::<_, Infallible>(response)
    });
    let service = tenants.layer(inner);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });

    let token = apple.genuine();
    // The request line, the lines of its hosts, and the tenant. `None`: nobody's, or not even a request.
    let rows: &[(&str, &str, Option<&str>)] = &[
        ("GET / HTTP/1.1", "Host: shop.example", Some("shop")),
        ("GET / HTTP/1.1", "hOsT:\tSHOP.example:8080 ", Some("shop")),
        ("GET / HTTP/1.0", "Host: shop.example", Some("shop")),
        ("GET / HTTP/1.0", "X: y", None),
        ("GET http://shop.example/ HTTP/1.1", "Host: shop.example:80", Some("shop")),
        ("GET http://shop.example/ HTTP/1.1", "Host: club.example", None),
        ("GET http://club.example/ HTTP/1.1", "Host: shop.example", None),
        ("GET http://shop.example/ HTTP/1.1", "X: y", Some("shop")),
        ("GET http://shop.example@club.example/ HTTP/1.1", "Host: club.example", None),
        ("GET //club.example/ HTTP/1.1", "Host: shop.example", Some("shop")),
        ("OPTIONS * HTTP/1.1", "Host: shop.example", Some("shop")),
        ("GET / HTTP/1.1", "Host: shop.example\r\nHost: club.example", None),
        ("GET / HTTP/1.1", "Host: shop.example\r\nHost: shop.example", None),
        ("GET / HTTP/1.1", "Host: shop.example, club.example", None),
        ("GET / HTTP/1.1", "Host: shop.example\r\nX-Forwarded-Host: club.example", Some("shop")),
        ("GET / HTTP/1.1", "Host: shop.example.", None),
        ("GET / HTTP/1.1", "Host: shop.example/", None),
        ("GET / HTTP/1.1", "Host: shop.example#club.example", None),
        ("GET / HTTP/1.1", "Host: shop%2eexample", None),
        ("GET / HTTP/1.1", "Host: shöp.example", None),
        ("GET / HTTP/1.1", "Host : shop.example", None),
        ("GET / HTTP/1.1", "Host: club.example\r\n shop.example", None),
        ("GET / HTTP/1.1", "Host:", None),
    ];
    for (line, host, expected) in rows {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{line}\r\n{host}\r\nConnection: close\r\n{TOKEN_HEADER}: {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let tenant = answer.lines().find_map(|line| line.strip_prefix("x-tenant: "));
        assert_eq!(tenant, *expected, "{line} {host}: {answer}");
    }

    let stream = TcpStream::connect(address).await.unwrap();
    let executor = TokioExecutor::new();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let rows: &[(&str, &[&str], Option<&str>)] = &[
        ("http://shop.example/", &[], Some("shop")),
        ("http://shop.example/", &["shop.example"], Some("shop")),
        ("http://shop.example/", &["club.example"], None),
        ("http://shop.example/", &["shop.example", "shop.example"], None),
        ("http://shop.example/", &[""], None),
        ("http://SHOP.example:9/", &[], Some("shop")),
    ];
    for (uri, hosts, expected) in rows {
        let mut request = Request::get(*uri).version(Version::HTTP_2).header(TOKEN_HEADER, &token);
        for host in *hosts {
            request = request.header(HOST, *host);
        }
        let response = client.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        let tenant = response.headers().get("x-tenant").map(|tenant| tenant.to_str().unwrap());
        assert_eq!(tenant, *expected, "{uri} {hosts:?}");
    }
    server.abort();
    assert_eq!(apple.calls(), 1, "only `shop` asked, once");
}

#[tokio::test]
async fn a_layer_outside_or_inside_of_tenants_vouches_for_nobody() {
    let apple = Apple::new();
    let token = apple.genuine();
    let tenants = |enforcement| {
        Tenants::new(|head: &http::request::Parts| match head.uri.path() {
            "/exempt" => TenantChoice::Exempt,
            "/shop" => TenantChoice::Tenant("shop".parse().unwrap()),
            _ => TenantChoice::Unknown,
        })
        .with("shop", apple.layer().with_enforcement(enforcement))
        .unwrap()
    };
    let request = |path: &str| Request::get(path).header(TOKEN_HEADER, &token).body(Full::default()).unwrap();
    for enforcement in [Enforcement::Enforce, Enforcement::Monitor, Enforcement::Shadow] {
        let inner = Inner::default();
        // The outer layer takes the token, so the inner gate has none.
        let service = apple.layer().layer(tenants(enforcement).layer(inner.clone()));
        for path in ["/exempt", "/unknown", "/shop"] {
            let response = service.clone().oneshot(request(path)).await.unwrap();
            let is_admitted = path == "/exempt" || path == "/shop" && enforcement != Enforcement::Enforce;
            assert_eq!(response.status().is_success(), is_admitted, "{path} {enforcement:?}");
            if is_admitted {
                let head = inner.last();
                assert!(head.extensions.get::<VerifiedDevice>().is_none(), "{path} {enforcement:?}");
                let outcome = head.extensions.get::<DeviceOutcome>().map(DeviceOutcome::as_str);
                assert_eq!(outcome, (path == "/shop").then_some("missing_token"), "{path} {enforcement:?}");
            }
        }
    }
    assert_eq!(apple.calls(), 3, "the outer layers");
}

#[tokio::test]
async fn a_parameter_of_a_path_segment_belongs_to_nobody() {
    let paths = PathTenants::new().with("/", "rest").unwrap().with("/shop/admin", "shop").unwrap();
    let choice = |path: &str| match paths.resolve(&Request::get(path).body(()).unwrap().into_parts().0) {
        TenantChoice::Tenant(name) => Some(name.to_string()),
        _ => None,
    };
    // Servers that know parameters (RFC 3986, section 3.3) read the path of `shop`.
    for path in ["/shop;x/admin", "/shop/admin;x", "/;x/shop/admin", "/shop/admin;x=/y"] {
        assert_eq!(choice(path), None, "{path}");
    }
    for (path, expected) in [("/shop/admin/x;y", "shop"), ("/a/b/c;d", "rest"), ("/shop/admin", "shop")] {
        assert_eq!(choice(path).as_deref(), Some(expected), "{path}");
    }
    assert!(paths.insert("/a;b", "rest").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The resolvers do not panic, and find a tenant only if its own host or path is in the request.
    #[test]
    fn resolvers_take_any_input(
        host in proptest::option::of(r"(\[?(shop|club|::1|[a-z]{0,3})\.?(example)?\]?[:.@/ %]?[0-9a-z]{0,6}|\PC{0,12})"),
        uri in r"((http://)?(shop|club)\.example(:[0-9]{0,6})?)?/?[/a-z%;.0-9\\]{0,16}",
    ) {
        let Ok(uri) = uri.parse::<http::Uri>() else { return Ok(()) };
        let mut head = Request::get(uri).body(()).unwrap().into_parts().0;
        if let Some(host) = host.as_ref().and_then(|host| http::HeaderValue::from_bytes(host.as_bytes()).ok()) {
            head.headers.insert(HOST, host);
        }
        if let TenantChoice::Tenant(name) = hosts().resolve(&head) {
            let authority = head.uri.host().map(str::to_ascii_lowercase);
            let host = head.headers.get(HOST).map(|host| host.to_str().unwrap().to_ascii_lowercase());
            let expected = format!("{name}.example");
            prop_assert!(authority.is_some() || host.is_some());
            prop_assert!(authority.is_none_or(|authority| authority == expected));
            prop_assert!(host.is_none_or(|host| host.split(':').next() == Some(&expected)));
        }
        let paths = PathTenants::new().with("/a", "shop").unwrap().with("/a/b", "club").unwrap();
        if let TenantChoice::Tenant(name) = paths.resolve(&head) {
            let path = head.uri.path();
            let is_club = path == "/a/b" || path.starts_with("/a/b/");
            prop_assert_eq!(name.as_str(), if is_club { "club" } else { "shop" });
            prop_assert!(is_club || path == "/a" || path.starts_with("/a/"));
        }
    }
}

/// A request whose tenant goes, comes back and has another policy ends by the one that it began with.
#[tokio::test(start_paused = true)]
async fn a_replaced_gate_shares_no_call_with_its_successor() {
    let apple = Apple::new();
    let tenants = Tenants::new(hosts()).with("shop", apple.layer()).unwrap();
    let app = App::new(&tenants);
    apple.fake.always(Reply::normal().delay(Duration::from_secs(1)));
    let token = apple.genuine();
    let mut first = Box::pin(app.send(to("shop", &token)));
    assert!(poll_immediate(&mut first).await.is_none());
    tenants.remove("shop");
    let strict = apple.layer().with_marks(|_, _| MarkDecision::Deny);
    tenants.insert("shop", strict).unwrap();
    assert_eq!(app.send(to("shop", &token)).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(first.await.status(), StatusCode::OK);
    assert_eq!(apple.calls(), 2);
}

/// A layer that is replaced or removed is dropped outside of the lock, so that its plug-ins may do anything then.
#[tokio::test]
async fn a_plug_in_may_look_at_the_tenants_when_its_layer_is_dropped() {
    struct Looks(Tenants, Arc<Mutex<Vec<usize>>>);

    impl Observer for Looks {
        fn decision(&self, _: &Event<'_>) {}
    }

    impl Drop for Looks {
        fn drop(&mut self) {
            self.1.lock().unwrap().push(self.0.names().len());
        }
    }

    let (apple, seen) = (Apple::new(), Arc::default());
    let tenants: Tenants = Tenants::new(hosts());
    let layer = || apple.layer().with_observer(Looks(tenants.clone(), Arc::clone(&seen)));
    let done = std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            tenants.insert("shop", layer()).unwrap();
            tenants.insert("shop", layer()).unwrap();
            tenants.remove("shop");
        });
        changes.join()
    });
    assert!(done.is_ok());
    assert_eq!(*seen.lock().unwrap(), [1, 0]);
    assert_eq!(apple.calls(), 0);
}
