//! The examples, each driven by its `app()`, in the process and over a socket.

use std::{future::pending, net::SocketAddr};

use axum::{
    body::{Body, HttpBody},
    routing::Router,
};
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::{Service, ServiceExt};
use tower_devicecheck::{
    BoxError, Credentials, DeviceCheckLayer, DeviceToken, Environment, Verdict,
    testing::{Endpoint, FakeApple, Reply},
};

use self::{axum_example::Settings, shared::serve::Limits};
use crate::support::{Apple, TOKEN_HEADER};

// Each example is a program with its own `mod shared`.
#[path = "../../examples/axum.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "a program")]
mod axum_example;
#[path = "../../examples/fake_apple.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "a program")]
mod fake_apple_example;
#[path = "../../examples/hyper.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "a program")]
mod hyper_example;
#[path = "../../examples/shared/mod.rs"]
#[allow(clippy::duplicate_mod, reason = "a part of every example")]
pub(crate) mod shared;
#[path = "../../examples/tonic.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "a program")]
pub(crate) mod tonic_example;

const DEVELOPMENT_HEADER: &str = "x-apple-device-development";

pub(crate) async fn socket() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Serves as the examples do, until the test ends.
pub(crate) fn serve<S, B>(listener: TcpListener, app: S)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: HttpBody<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    tokio::spawn(shared::serve::serve(listener, app, Limits::default(), pending()));
}

fn settings(routing: &str, enforcement: &str) -> Settings {
    Settings::parse(Some(routing), Some(enforcement)).unwrap()
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.to_owned().into()).unwrap()
}

/// The status, and the body, as JSON where it is.
async fn send(app: &Router, request: Request<Body>) -> (StatusCode, Value) {
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let text = || String::from_utf8_lossy(&body).into_owned().into();
    (head.status, serde_json::from_slice(&body).unwrap_or_else(|_| text()))
}

/// The line as a shell sends it: `$(curl -s URL)` is the answer of that URL.
async fn as_pasted(client: &reqwest::Client, line: &str) -> String {
    let (before, rest) = line.split_once("$(curl -s ").unwrap();
    let (url, after) = rest.split_once(')').unwrap();
    let answer = client.get(url).send().await.unwrap().error_for_status().unwrap().text().await.unwrap();
    format!("{before}{answer}{after}")
}

/// The duties of every server with clients that speak plain HTTP. The fake Apple is a server too.
async fn check_over_a_socket(name: &str, apple: &shared::Apple, address: SocketAddr) {
    let fake = apple.as_fake().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{address}");
    let genuine = fake.genuine_token(Environment::Production);
    let forged = fake.forged_token();
    let development = fake.genuine_token(Environment::Development);
    let cases: &[(&str, &str, Option<&str>, u16, usize)] = &[
        ("a genuine token", "/", Some(&genuine), 200, 1),
        ("the same again", "/", Some(&genuine), 200, 1),
        ("a forged one", "/", Some(&forged), 401, 2),
        ("one of the other environment", "/", Some(&development), 401, 3),
        ("garbage", "/", Some("%"), 401, 3),
        ("none", "/", None, 401, 3),
        ("health", "/health", None, 200, 3),
        ("nowhere", "/nowhere", None, if name == "axum" { 404 } else { 401 }, 3),
        ("nowhere, admitted", "/nowhere", Some(&genuine), 404, 3),
    ];
    for (case, path, token, status, calls) in cases {
        let mut request = client.get(format!("{url}{path}"));
        if let Some(token) = token {
            request = request.header(TOKEN_HEADER, *token);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), *status, "{name}: {case}");
        assert_eq!(fake.calls(), *calls, "{name}: {case}");
        match (*status, *path) {
            (200, "/") => {
                let device: Value = response.json().await.unwrap();
                let evidence = if *case == "a genuine token" { "apple" } else { "cache" };
                let digest = genuine.parse::<DeviceToken>().unwrap().digest().to_string();
                let expected = json!({ "environment": "production", "evidence": evidence, "digest": digest });
                assert_eq!(device, expected, "{name}: {case}");
            }
            (200, _) => assert_eq!(response.text().await.unwrap(), "ok", "{name}: {case}"),
            (401, _) => {
                assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json", "{name}: {case}");
            }
            _ => {}
        }
    }

    // The curl lines that it prints: the first is admitted, the second is not.
    let hints = apple.curl_hints(address, Environment::Production);
    let lines: Vec<_> = hints.lines().filter(|line| line.starts_with("curl -i -H")).collect();
    assert_eq!(lines.len(), 2, "{name}");
    for (line, status) in lines.iter().zip([200, 401]) {
        let line = as_pasted(&client, line).await;
        let (header, url) = line.strip_prefix("curl -i -H \"").unwrap().split_once("\" ").unwrap();
        let (header, value) = header.split_once(": ").unwrap();
        let response = client.get(url).header(header, value).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{name}: {line}");
    }
    assert_eq!(fake.calls(), 5, "{name}");
}

#[tokio::test]
async fn axum_over_a_socket() {
    let apple = shared::Apple::fake().await.unwrap();
    let (listener, address) = socket().await;
    let app = axum_example::app(
        DeviceCheckLayer::new(apple.client.clone()),
        apple.client.clone(),
        Settings::default(),
    );
    serve(listener, app);
    check_over_a_socket("axum", &apple, address).await;
}

#[tokio::test]
async fn hyper_over_a_socket() {
    let apple = shared::Apple::fake().await.unwrap();
    let (listener, address) = socket().await;
    serve(listener, hyper_example::app(apple.client.clone()));
    check_over_a_socket("hyper", &apple, address).await;
}

#[tokio::test]
async fn hyper_stops_when_it_is_told_to() {
    let apple = Apple::new();
    let (listener, address) = socket().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let app = hyper_example::app(apple.client.clone());
    let server = tokio::spawn(shared::serve::serve(listener, app, Limits::default(), async {
        let _ = stopped.await;
    }));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.get(format!("http://{address}/health")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    drop(stop);
    server.await.unwrap();
    assert!(client.get(format!("http://{address}/health")).send().await.is_err());
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn axum_routing() {
    // With the client's header or not; the status of a token of production and of one of development.
    let cases: &[(&str, bool, u16, u16, usize)] = &[
        ("production", false, 200, 401, 2),
        ("production", true, 200, 401, 2),
        ("development", false, 401, 200, 2),
        ("development", true, 401, 200, 2),
        ("fallback", false, 200, 200, 3),
        ("header", false, 200, 401, 2),
        ("header", true, 401, 200, 2),
    ];
    for (routing, with_header, production, development, calls) in cases {
        let headers: &[_] = if *with_header { &[(DEVELOPMENT_HEADER, "true")] } else { &[] };
        let apple = Apple::new();
        let app = axum_example::app(apple.layer(), apple.client.clone(), settings(routing, "enforce"));
        for (environment, status) in
            [(Environment::Production, production), (Environment::Development, development)]
        {
            let token = apple.fake.genuine_token(environment);
            let mut headers = headers.to_vec();
            headers.push((TOKEN_HEADER, &token));
            let (answer, device) = send(&app, request("GET", "/", &headers, "")).await;
            assert_eq!(answer.as_u16(), *status, "{routing} {environment}");
            if *status == 200 {
                assert_eq!(device["environment"], environment.as_str(), "{routing}");
            }
        }
        let (health, _) = send(&app, request("GET", "/health", headers, "")).await;
        assert_eq!((health.as_u16(), apple.calls()), (200, *calls), "{routing}");
    }
}

#[tokio::test]
async fn g02_wrong_credentials_stop_an_example_and_an_outage_does_not() {
    let apple = shared::Apple::fake().await.unwrap();
    for (reply, starts) in [
        (Reply::normal(), true),
        (Reply::status(500), true),
        (Reply::reset(), true),
        (Reply::status(401), false),
        (Reply::status(200), false),
    ] {
        apple.as_fake().unwrap().always(reply);
        assert_eq!(apple.check(Environment::Production).await.is_ok(), starts);
    }
}

#[tokio::test]
async fn axum_monitoring() {
    let apple = Apple::new();
    let app = axum_example::app(apple.layer(), apple.client.clone(), settings("production", "monitor"));
    let (genuine, forged) = (apple.genuine(), apple.fake.forged_token());
    let cases: &[(&str, Option<&str>, &str, u16, usize)] = &[
        ("genuine", Some(&genuine), "verified", 200, 1),
        ("forged", Some(&forged), "refused_token", 401, 2),
        ("none", None, "missing_token", 401, 2),
    ];
    for (name, token, outcome, bits, calls) in cases {
        let headers: Vec<_> = token.iter().map(|token| (TOKEN_HEADER, *token)).collect();
        let (status, answer) = send(&app, request("GET", "/", &headers, "")).await;
        assert_eq!((status.as_u16(), answer["outcome"].as_str()), (200, Some(*outcome)), "{name}");
        let fields = ["environment", "evidence", "digest"];
        assert!(fields.iter().all(|field| answer[field].is_string() == (*outcome == "verified")), "{name}");
        assert_eq!(apple.fake.calls_to(Endpoint::Validate), *calls, "{name}");
        let (status, _) = send(&app, request("GET", "/bits", &headers, "")).await;
        assert_eq!(status.as_u16(), *bits, "{name}: there are no bits without a device");
    }
    assert_eq!(apple.fake.calls_to(Endpoint::QueryBits), 1);
}

#[test]
fn axum_settings() {
    let good: &[(Option<&str>, Option<&str>)] = &[
        (None, None),
        (Some("production"), Some("enforce")),
        (Some("development"), Some("monitor")),
        (Some("fallback"), None),
        (Some("header"), None),
    ];
    for (routing, enforcement) in good {
        assert!(Settings::parse(*routing, *enforcement).is_ok(), "{routing:?} {enforcement:?}");
    }
    assert_eq!(settings("production", "enforce"), Settings::default());
    for name in ["", "Production", "prod", "sandbox", "fallback ", "exempt", "enforce"] {
        let error = Settings::parse(Some(name), None).unwrap_err().to_string();
        assert!(error.contains("ROUTING") && error.contains("fallback"), "{error}");
    }
    // A value that belongs elsewhere may be a secret.
    for error in [Settings::parse(Some("s3cret"), None), Settings::parse(None, Some("s3cret"))] {
        assert!(!error.unwrap_err().to_string().contains("s3cret"));
    }
    for name in ["", "Monitor", "off", "false"] {
        let error = Settings::parse(None, Some(name)).unwrap_err().to_string();
        assert!(error.contains("ENFORCEMENT") && error.contains("monitor"), "{error}");
    }
}

#[tokio::test]
async fn axum_bits() {
    let apple = Apple::new();
    let app = axum_example::app(apple.layer(), apple.client.clone(), Settings::default());
    let token = apple.genuine();
    let headers = [(TOKEN_HEADER, &*token), ("content-type", "application/json")];
    let query = || request("GET", "/bits", &headers, "");
    let update = |body| request("PUT", "/bits", &headers, body);

    let never_set = json!({ "bit0": false, "bit1": false, "last_update": null });
    assert_eq!(send(&app, query()).await, (StatusCode::OK, never_set));
    let (status, answer) = send(&app, update(r#"{"bit0": true, "bit1": false}"#)).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({ "bit0": true, "bit1": false })));
    let (status, bits) = send(&app, query()).await;
    assert_eq!((status, &bits["bit0"], &bits["bit1"]), (StatusCode::OK, &json!(true), &json!(false)));
    assert!(bits["last_update"].is_string());
    for body in ["", "{}", r#"{"bit0": true}"#, r#"{"bit0": 1, "bit1": 0}"#] {
        assert!(send(&app, update(body)).await.0.is_client_error(), "{body}");
    }
    assert_eq!(apple.fake.bits(&token), Some((true, false)));
    let anonymous = request("PUT", "/bits", &[headers[1]], r#"{"bit0": false, "bit1": false}"#);
    assert_eq!(send(&app, anonymous).await.0, StatusCode::UNAUTHORIZED);
    // One of them to verify the token.
    assert_eq!(apple.calls(), 4);

    for (name, reply, status, code) in [
        ("an outage", Reply::status(500), 503, "unavailable"),
        ("too often", Reply::status(429), 503, "throttled"),
        ("an expired token", Reply::status(400).body("Bad Device Token"), 401, "refused_token"),
        // Last, for the client leaves Apple alone for a while after it.
        ("our credentials", Reply::status(403), 500, "misconfigured"),
    ] {
        apple.fake.always(reply);
        for request in [query(), update(r#"{"bit0": true, "bit1": true}"#)] {
            let (answer, problem) = send(&app, request).await;
            assert_eq!((answer.as_u16(), problem["code"].as_str()), (status, Some(code)), "{name}");
        }
    }
    assert_eq!(apple.calls(), 13);
}

#[tokio::test]
async fn tonic_over_a_socket() {
    let apple = shared::Apple::fake().await.unwrap();
    let fake = apple.as_fake().unwrap();
    let (listener, address) = socket().await;
    serve(listener, tonic_example::app(apple.client.clone()));

    let token = fake.genuine_token(Environment::Production);
    let reply = tonic_example::greet(format!("http://{address}"), Some(&token)).await.unwrap().unwrap();
    let digest = token.parse::<DeviceToken>().unwrap().digest().to_string();
    assert_eq!((&*reply.message, reply.digest), ("Hello, stranger!", digest));
    assert_eq!((&*reply.environment, &*reply.evidence), ("production", "apple"));

    // The lines that it prints for curl: the first is admitted, the second is not.
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let hints = tonic_example::hints(apple.orders().unwrap(), address);
    let lines: Vec<_> = hints.lines().filter(|line| line.contains("| curl")).collect();
    assert_eq!(lines.len(), 2);
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    for (line, status) in lines.iter().zip([None, Some("16")]) {
        let line = as_pasted(&plain, line).await.replace('"', "'");
        let mut request = client.post(line.rsplit(' ').next().unwrap()).body(vec![0; 5]);
        for header in line.split("-H '").skip(1) {
            let (name, value) = header.split_once('\'').unwrap().0.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let response = request.send().await.unwrap();
        let sent = response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
        assert_eq!(sent.as_deref(), status);
        // With a reply, the status comes after it.
        assert_eq!(response.bytes().await.unwrap().is_empty(), status.is_some());
    }
    assert_eq!(fake.calls(), 3);
}

/// An answer of the fake's interface for orders.
async fn order(app: &Router, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
    send(app, request(method, path, &[], body)).await
}

async fn new_token(app: &Router, path: &str) -> String {
    let (status, token) = order(app, "GET", path, "").await;
    assert_eq!(status, StatusCode::OK, "{path}");
    token.as_str().unwrap().to_owned()
}

/// The verdict of the fake Apple; `None` if it gives none.
async fn verdict(apple: &Apple, token: &str, environment: Environment) -> Option<Verdict> {
    apple.client.validate(&token.parse().unwrap(), environment).await.ok()
}

#[tokio::test]
async fn fake_apple_takes_orders() {
    let apple = Apple::new();
    let app = shared::orders::app(apple.fake.clone());
    for (path, environment) in [
        ("/fake/token", Environment::Production),
        ("/fake/token?environment=production", Environment::Production),
        ("/fake/token?environment=development&device=one", Environment::Development),
    ] {
        let token = new_token(&app, path).await;
        assert_eq!(verdict(&apple, &token, environment).await, Some(Verdict::Genuine), "{path}");
    }
    for (path, calls) in [
        ("/fake/outage?status=500", 1),
        ("/fake/outage?fault=reset", 1),
        ("/fake/outage?status=503&delay_ms=1", 2),
        ("/fake/outage?status=500&share=1", 1),
    ] {
        assert_eq!(order(&app, "POST", path, "").await.0, StatusCode::NO_CONTENT, "{path}");
        let token = new_token(&app, "/fake/token").await;
        let before = apple.calls();
        assert_eq!(verdict(&apple, &token, Environment::Production).await, None, "{path}");
        assert_eq!(apple.calls(), before + calls, "{path}");
        assert_eq!(order(&app, "DELETE", "/fake/outage", "").await.0, StatusCode::NO_CONTENT);
        let well = verdict(&apple, &token, Environment::Production).await;
        assert_eq!(well, Some(Verdict::Genuine), "{path}");
    }
    for path in [
        "/fake/expire",
        "/fake/token?environment=prod",
        "/fake/token?env=production",
        "/fake/outage",
        "/fake/outage?status=99",
        "/fake/outage?fault=fire",
        "/fake/outage?fault=hang&status=503",
        "/fake/outage?status=503&share=2",
        "/fake/outage?status=503&share=NaN",
        "/fake/clock",
    ] {
        assert_eq!(order(&app, "POST", path, "").await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(order(&app, "GET", "/fake/calls", "").await, (StatusCode::OK, json!(apple.calls())));
}

#[tokio::test]
async fn p06_fake_apple_expires_revokes_forges_shares_and_counts() {
    let apple = Apple::new();
    let app = shared::orders::app(apple.fake.clone());
    let production = Environment::Production;

    let forged = new_token(&app, "/fake/forged").await;
    assert_eq!(verdict(&apple, &forged, production).await, Some(Verdict::Refused));

    // A token expires by its text, or with all others of its device.
    let tokens = [new_token(&app, "/fake/token").await, new_token(&app, "/fake/token?device=one").await];
    for (token, path, body) in
        [(&tokens[0], "/fake/expire", &*tokens[0]), (&tokens[1], "/fake/expire?device=one", "")]
    {
        assert_eq!(verdict(&apple, token, production).await, Some(Verdict::Genuine), "{path}");
        assert_eq!(order(&app, "POST", path, body).await.0, StatusCode::NO_CONTENT, "{path}");
        assert_eq!(verdict(&apple, token, production).await, Some(Verdict::Refused), "{path}");
    }

    let token = new_token(&app, "/fake/token").await;
    for (harm, cure) in [
        (("POST", "/fake/revoke"), ("DELETE", "/fake/revoke")),
        (("POST", "/fake/clock?ahead_s=7200"), ("POST", "/fake/clock?ahead_s=0")),
    ] {
        assert_eq!(order(&app, harm.0, harm.1, "").await.0, StatusCode::NO_CONTENT, "{harm:?}");
        assert_eq!(verdict(&apple, &token, production).await, None, "{harm:?}");
        assert_eq!(order(&app, cure.0, cure.1, "").await.0, StatusCode::NO_CONTENT, "{cure:?}");
        assert_eq!(verdict(&apple, &token, production).await, Some(Verdict::Genuine), "{cure:?}");
    }

    // Every second call.
    order(&app, "POST", "/fake/outage?status=500&share=0.5", "").await;
    let mut failures = 0;
    for _ in 0..4 {
        failures += usize::from(verdict(&apple, &token, production).await.is_none());
    }
    assert_eq!(failures, 2);

    let (_, counts) = order(&app, "GET", "/fake/counts", "").await;
    assert_eq!((&counts["calls"], &counts["production"]), (&json!(apple.calls()), &json!(apple.calls())));
    assert_eq!((&counts["development"], &counts["query_bits"]), (&json!(0), &json!(0)));
    assert!(counts["provider_tokens"].as_u64() >= Some(1));
    assert_eq!(order(&app, "DELETE", "/fake/counts", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn p06_the_help_names_every_order() {
    let app = shared::orders::app(FakeApple::new());
    let (status, help) = order(&app, "GET", "/fake", "").await;
    assert_eq!(status, StatusCode::OK);
    let help = help.as_str().unwrap();
    for path in ["token", "forged", "expire", "revoke", "outage", "clock", "calls", "counts"] {
        assert!(help.contains(&format!("/fake/{path}")), "{path}");
        assert_ne!(order(&app, "PATCH", &format!("/fake/{path}"), "").await.0, StatusCode::NOT_FOUND);
    }
    for word in ["environment=", "device=", "status=", "fault=", "delay_ms=", "share=", "key_id=", "ahead_s="]
    {
        assert!(help.contains(word), "{word}");
    }
}

#[tokio::test]
async fn p06_no_printed_line_scrolls_away() {
    let apple = shared::Apple::fake().await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 3000));
    let urls = urls();
    let hints = [
        apple.curl_hints(address, Environment::Production),
        tonic_example::hints(apple.orders().unwrap(), address),
        fake_apple_example::hints(apple.as_fake().unwrap(), &urls, true),
    ];
    for line in hints.iter().flat_map(|hints| hints.lines()) {
        assert!(line.len() < 250, "{} characters: {line}", line.len());
    }
}

fn urls() -> fake_apple_example::Urls {
    fake_apple_example::Urls {
        production: "http://127.0.0.1:1".to_owned(),
        development: "http://127.0.0.1:2".to_owned(),
        orders: "http://127.0.0.1:3".to_owned(),
    }
}

#[test]
fn fake_apple_prints_credentials_that_work() {
    let fake = FakeApple::new();
    let urls = urls();
    let hints = fake_apple_example::hints(&fake, &urls, false);
    let variable = |name: &str| {
        let line = hints.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
        line.expect(name).to_owned()
    };
    let credentials = Credentials::from_pem(
        &variable("APPLE_JWT_ISS"),
        &variable("APPLE_JWT_KID"),
        &variable("APPLE_JWT_PRIVATE_KEY"),
    )
    .unwrap();
    assert_eq!((credentials.team_id(), credentials.key_id()), (fake.team_id(), fake.key_id()));
    assert_eq!(variable("DEVICECHECK_PRODUCTION_URL"), urls.production);
    assert_eq!(variable("DEVICECHECK_DEVELOPMENT_URL"), urls.development);
    assert_eq!(variable("FAKE_APPLE"), urls.orders);

    // A key that the operator brought stays with the operator.
    let hints = fake_apple_example::hints(&fake, &urls, true);
    assert!(!hints.contains("PRIVATE KEY--") && hints.contains("DEVICECHECK_PRODUCTION_URL"));
}
