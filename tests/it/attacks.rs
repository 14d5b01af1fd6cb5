//! Odd requests and settings: what an attacker tries first, and what an operator does by accident.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, response::IntoResponse, routing::any};
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower_devicecheck::{
    AppleClient, BearerToken, DebugTokens, DeviceCheckLayer, Enforcement, Environment, Evidence, HeaderToken,
    Verdict, VerifiedDevice,
    cache::MemoryCache,
    testing::{FakeApple, Reply},
};

use crate::support::{App, Apple, Counter, Stub, TOKEN_HEADER, get};

/// An axum server behind `layer`; every path and method is answered with what the handler got.
async fn serve(layer: DeviceCheckLayer) -> SocketAddr {
    let show = |request: axum::extract::Request| async move {
        let device = request.extensions().get::<VerifiedDevice>().is_some();
        let headers = request.headers().keys().map(HeaderName::as_str).collect::<Vec<_>>().join(",");
        format!("reached device={device} headers={headers}").into_response()
    };
    let app = Router::new().route("/{*path}", any(show)).layer(layer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// Sends bytes as they are, and returns the answer as text.
async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn http(method: &str, headers: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = format!("{method} /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n").into_bytes();
    for (name, value) in headers {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text
}

#[tokio::test]
async fn odd_requests_over_a_socket() {
    let apple = Apple::new();
    let layer = apple.layer().with_token_source(HeaderToken::default()).add_token_source(BearerToken::new());
    let address = serve(layer).await;
    let token = apple.genuine();
    let token = token.as_bytes();
    let bearer = |left: &[u8]| [b"Bearer ", left, b".", token].concat();
    let long = vec![b'A'; 64 * 1024];
    let obs = [token, b"\xff\x80"].concat();
    type Row<'a> = (&'a str, Vec<u8>, &'a str, Option<&'a str>);
    let rows: Vec<Row<'_>> = vec![
        ("obs-text", http("GET", &[(TOKEN_HEADER, &obs)]), "401", Some("not canonical")),
        ("64 KB token", http("GET", &[(TOKEN_HEADER, &long)]), "401", Some("too long")),
        ("64 KB of another header", http("GET", &[("x-other", &long)]), "401", Some("missing_token")),
        ("64 KB bearer", http("GET", &[("authorization", &bearer(&long))]), "200", None),
        (
            "authorization twice",
            http("GET", &[("authorization", &bearer(b"a")), ("authorization", &bearer(b"a"))]),
            "401",
            Some("more than once"),
        ),
        (
            "authorization twice, one is Basic",
            http("GET", &[("authorization", b"Basic eDp5"), ("authorization", &bearer(b"a"))]),
            "401",
            Some("more than once"),
        ),
        ("many dots", http("GET", &[("authorization", &bearer(&[b'.'; 1000]))]), "200", None),
        ("dots alone", http("GET", &[("authorization", b"Bearer ......")]), "401", Some("is empty")),
        ("bearer and nothing", http("GET", &[("authorization", b"Bearer ")]), "401", Some("missing_token")),
        (
            "client part is not ASCII",
            http("GET", &[("authorization", &bearer(b"\xff\xfe"))]),
            "200",
            Some("reached device=true headers=host,connection,authorization"),
        ),
        (
            "hop by hop",
            http("GET", &[("connection", TOKEN_HEADER.as_bytes()), (TOKEN_HEADER, token)]),
            "200",
            Some("device=true"),
        ),
        ("folded in two", http("GET", &[(TOKEN_HEADER, &[b"AgAA, ", token].concat())]), "401", None),
        ("header in capitals", http("GET", &[("X-APPLE-DEVICE-TOKEN", token)]), "200", None),
        ("plain OPTIONS", http("OPTIONS", &[("origin", b"https://x")]), "401", None),
        (
            "lower-case options",
            http("options", &[("origin", b"https://x"), ("access-control-request-method", b"GET")]),
            "401",
            None,
        ),
        (
            "gRPC in capitals",
            http("POST", &[("content-type", b"APPLICATION/GRPC+PROTO"), ("content-length", b"0")]),
            "200",
            Some("grpc-status: 16"),
        ),
        (
            "gRPC with obs-text",
            http("POST", &[("content-type", b"application/grpc\xff"), ("content-length", b"0")]),
            "401",
            None,
        ),
        (
            "content type not gRPC",
            http("POST", &[("content-type", b"application/json, application/grpc")]),
            "401",
            None,
        ),
    ];
    for (name, request, status, part) in rows {
        let answer = raw(address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
        assert!(part.is_none_or(|part| answer.contains(part)), "{name}: {answer}");
        assert!(!answer.contains(std::str::from_utf8(&token[..40]).unwrap()), "{name}: token in answer");
        assert!(!answer.contains(TOKEN_HEADER), "{name}: {answer}");
    }
    assert_eq!(apple.calls(), 1);
}

#[tokio::test]
async fn a_preflight_with_a_body_is_none() {
    let apple = Apple::new();
    let address = serve(apple.layer()).await;
    let forged: &[(&str, &[u8])] = &[
        ("origin", b"https://x"),
        ("access-control-request-method", b"POST"),
        ("content-type", b"application/json"),
        ("content-length", b"2"),
    ];
    let mut request = http("OPTIONS", forged);
    request.extend_from_slice(b"{}");
    let answer = raw(address, &request).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn monitoring_with_forwarded_credentials() {
    let apple = Apple::new();
    let layer = apple
        .layer()
        .with_enforcement(Enforcement::Monitor)
        .with_forwarded_credentials(true)
        .with_debug_tokens(DebugTokens::new().add("ci", "debug-secret-7d9f1c6e").unwrap());
    let app = App::new(&layer);
    let mut request = get(&apple.fake.forged_token());
    for value in ["a", "b"] {
        request.headers_mut().append("accept", HeaderValue::from_static(value));
    }
    assert_eq!(app.send(request).await.status(), StatusCode::OK);
    let headers = app.inner.last().headers;
    assert!(headers[TOKEN_HEADER].is_sensitive());
    assert!(headers.get_all("accept").iter().all(|value| !value.is_sensitive()), "{headers:?}");
    assert_eq!(headers.get_all("accept").iter().count(), 2);
    assert_eq!(apple.calls(), 1);
}

#[tokio::test]
async fn odd_sizes_and_times_to_live() {
    for (genuine, refused) in [(0, 0), (1, 1), (3, 0)] {
        let asked = Counter::default();
        let cache = Arc::new(MemoryCache::with_capacity(genuine, refused));
        let layer = DeviceCheckLayer::new(Stub::genuine(&asked))
            .with_cache(Arc::clone(&cache))
            .with_time_to_live(Verdict::Genuine, Duration::MAX);
        let app = App::new(&layer);
        for _ in 0..2 {
            assert_eq!(app.status("AgAA").await, StatusCode::OK);
        }
        for number in 0..100 {
            assert_eq!(app.status(&format!("{number:04}")).await, StatusCode::OK);
        }
        assert!(cache.genuine_len() <= genuine, "{} of {genuine}", cache.genuine_len());
        assert_eq!(asked.get(), if genuine == 0 { 102 } else { 101 }, "{genuine}");
    }
}

/// The fake stands for a proxy: whatever reaches it was sent in the clear to somebody else.
#[tokio::test]
async fn what_goes_to_loopback_does_not_go_through_a_proxy() {
    let fake = FakeApple::new();
    let proxy = fake.serve().await.unwrap();
    if std::env::var_os("TOWER_DEVICECHECK_BEHIND_PROXY").is_none() {
        // The environment is read once per process, so this runs in one of its own.
        let output = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "attacks::what_goes_to_loopback_does_not_go_through_a_proxy", "--nocapture"])
            .env("TOWER_DEVICECHECK_BEHIND_PROXY", "1")
            .env("HTTP_PROXY", proxy.url(Environment::Production))
            .env("http_proxy", proxy.url(Environment::Production))
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(proxy.connections(), 0, "the provider token went to the proxy, in the clear");
        return;
    }
    let client = AppleClient::builder(fake.credentials())
        .base_url(Environment::Production, "http://127.0.0.1:1")
        .build()
        .unwrap();
    let token = fake.genuine_token(Environment::Production).parse().unwrap();
    let answer = client.validate(&token, Environment::Production).await;
    assert!(answer.is_err(), "nobody listens there");
}

#[tokio::test]
async fn a_head_of_all_sorts_over_http2() {
    let apple = Apple::new();
    let address = serve(apple.layer()).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let url = format!("http://{address}/a?{TOKEN_HEADER}=AgAA");
    let send = |headers: Vec<(&'static str, String)>| {
        let mut request = client.get(&url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.send()
    };
    let token = apple.genuine();
    assert_eq!(send(vec![]).await.unwrap().status(), 401);
    assert_eq!(send(vec![(TOKEN_HEADER, token.clone())]).await.unwrap().status(), 200);
    assert_eq!(send(vec![(TOKEN_HEADER, token.clone()), (TOKEN_HEADER, token)]).await.unwrap().status(), 401);
    assert_eq!(apple.calls(), 1);
}

#[tokio::test]
async fn a_stricter_clone_of_a_layer_does_not_live_off_the_verdicts_of_the_other() {
    let apple = Apple::new();
    let layer = apple.layer();
    let strict = App::new(&layer.clone().with_time_to_live(Verdict::Genuine, Duration::ZERO));
    let app = App::new(&layer);
    let token = apple.genuine();
    assert_eq!((app.status(&token).await, apple.calls()), (StatusCode::OK, 1));
    assert_eq!((app.status(&token).await, apple.calls()), (StatusCode::OK, 1));
    for calls in 2..=3 {
        assert_eq!(strict.status(&token).await, StatusCode::OK);
        assert_eq!((strict.evidence(), apple.calls()), (Evidence::APPLE, calls));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_dropped_leave_no_slot_taken() {
    let fake = FakeApple::new();
    let client = AppleClient::builder(fake.credentials())
        .transport(fake.transport())
        .in_flight_limit(2)
        .waiting_limit(8)
        // A call that was sent keeps its slot until then.
        .attempt_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    let token = || fake.genuine_token(Environment::Production);
    for round in 0..50 {
        fake.always(if round % 2 == 0 { Reply::hang() } else { Reply::normal() });
        let tokens = [token(), token(), token(), token()];
        let tasks: Vec<_> = (0..12)
            .map(|number| {
                let (app, token) = (app.clone(), tokens[number % 4].clone());
                tokio::spawn(async move { app.status(&token).await })
            })
            .collect();
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
    }
    fake.clear();
    // Ten at a time, which two slots serve at once, as soon as the calls that were sent have ended.
    let all_are_served = async {
        loop {
            let answers = futures::future::join_all((0..10).map(|_| {
                let (app, token) = (app.clone(), token());
                async move { app.status(&token).await }
            }));
            if answers.await.iter().all(|status| *status == StatusCode::OK) {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_are_served).await.expect("slots are free");
}
