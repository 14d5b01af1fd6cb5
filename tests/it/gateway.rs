//! The example `ai_gateway`, between a client and a provider that are both this test.

#[path = "../../examples/ai_gateway/gateway.rs"]
#[allow(dead_code, reason = "the tests need not all of the example")]
pub(crate) mod ai_gateway;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use ai_gateway::{
    Limits, Settings, app,
    body::Upload,
    target::{Provider, Providers},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{Method, StatusCode, request},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, channel::mpsc, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower_devicecheck::{
    DebugTokens,
    split_key::{Limits as KeyLimits, MemorySplitKeyStore, Split, Splitter},
    testing::Reply,
};

use crate::support::Apple;

const KEY: &str = "sk-proj-9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6gH7iJ8kL9";
const TEST_KEY: &str = "a-key-for-the-simulator";
const ADMIN: &str = "the-admin-token";

/// Serves on the loopback interface until the test ends.
async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, app).into_future());
    url
}

/// A provider that keeps the heads of the requests that it sees, and answers as the test says.
async fn provider<F, R>(answer: F) -> (String, Arc<Mutex<Vec<request::Parts>>>)
where
    F: Fn(Request) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response> + Send,
{
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let handler = move |request: Request| {
        let (head, body) = request.into_parts();
        note.lock().unwrap().push(head.clone());
        answer(Request::from_parts(head, body))
    };
    (serve(Router::new().fallback(handler)).await, seen)
}

struct Gateway {
    url: String,
    apple: Apple,
    split: Split,
    client: reqwest::Client,
}

impl Gateway {
    async fn new(provider: &str, limits: Limits) -> Self {
        Self::with(provider, limits, KeyLimits::none()).await
    }

    async fn with(provider: &str, limits: Limits, key_limits: KeyLimits) -> Self {
        let (apple, keys) = (Apple::new(), MemorySplitKeyStore::new());
        let split = Splitter::new().issue(&keys, "app", "openai", KEY, key_limits).await.unwrap();
        let base = |path| format!("{provider}{path}");
        let settings = Settings {
            providers: Providers::new([
                Provider::openai(Some(&base("/base/v1"))).unwrap(),
                Provider::anthropic(Some(&base("/base/v1"))).unwrap(),
                Provider::google(Some(&base("/base/v1beta"))).unwrap(),
            ]),
            limits,
            admin_token: Some(ADMIN.to_owned()),
            debug_tokens: DebugTokens::new().add("simulator", TEST_KEY).unwrap(),
        };
        let url = serve(app(apple.layer(), keys, settings).unwrap()).await;
        Self { url, apple, split, client: reqwest::Client::new() }
    }

    fn part(&self) -> &str {
        self.split.client_part().expose()
    }

    /// With the credentials of a new device.
    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        let token = self.apple.genuine();
        let request = self.client.post(format!("{}{path}", self.url));
        request.header("authorization", format!("Bearer {}.{token}", self.part()))
    }
}

const CHAT: &str = "/v1/openai/app/chat/completions";

async fn ok(_: Request) -> Response {
    StatusCode::OK.into_response()
}

async fn code(response: reqwest::Response) -> String {
    let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default();
    problem["code"].as_str().unwrap_or("no problem").to_owned()
}

type Piece = Result<Frame<Bytes>, Infallible>;

/// A body that the test sends piece by piece.
fn piecemeal() -> (mpsc::UnboundedSender<Piece>, StreamBody<mpsc::UnboundedReceiver<Piece>>) {
    let (sender, receiver) = mpsc::unbounded();
    (sender, StreamBody::new(receiver))
}

fn piece(text: &'static str) -> Piece {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let (events, body) = piecemeal();
    let body = Arc::new(Mutex::new(Some(body)));
    let (url, _) = provider(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        async { ([("content-type", "text/event-stream")], Body::new(body)).into_response() }
    })
    .await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let mut response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        // The next one is sent when this one was seen.
        events.unbounded_send(piece(event)).unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), event);
    }
    drop(events);
    assert_eq!(response.chunk().await.unwrap(), None);
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn request_bodies_are_not_held_back() {
    let (pieces, mut seen) = mpsc::unbounded();
    let (url, _) = provider(move |request| {
        let pieces = pieces.clone();
        async move {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                pieces.unbounded_send(frame.unwrap().into_data().unwrap()).unwrap();
            }
            StatusCode::OK.into_response()
        }
    })
    .await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let (upload, body) = piecemeal();
    let response = tokio::spawn(gateway.post(CHAT).body(reqwest::Body::wrap(body)).send());
    for text in ["one", "two", "three"] {
        upload.unbounded_send(piece(text)).unwrap();
        assert_eq!(seen.next().await.unwrap(), text);
    }
    drop(upload);
    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn what_crosses_the_gateway() {
    let (url, seen) = provider(async |_| {
        let headers = [
            ("connection", "x-of-the-connection, close"),
            ("x-of-the-connection", "1"),
            ("keep-alive", "timeout=5"),
            ("set-cookie", "session=secret"),
            ("x-api-key", "secret"),
            ("authorization", "secret"),
            ("alt-svc", "h3=\":443\""),
            ("strict-transport-security", "max-age=1"),
            ("x-request-id", "req_1"),
            ("retry-after", "7"),
            ("content-type", "application/json"),
        ];
        (StatusCode::TOO_MANY_REQUESTS, headers, r#"{"error":"slow down"}"#).into_response()
    })
    .await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let response = gateway
        .post("/v1/openai/app/chat/completions?after=a%2Fb&limit=2&empty=")
        .header("connection", "x-hop, Keep-Alive")
        .header("x-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("te", "trailers")
        .header("upgrade", "websocket")
        .header("proxy-authorization", "Basic secret")
        .header("proxy-connection", "close")
        .header("cookie", "secret=1")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-forwarded-port", "443")
        .header("cf-connecting-ip", "192.0.2.1")
        .header("true-client-ip", "192.0.2.1")
        .header("x-client-ip", "192.0.2.1")
        .header("x-proxed-test-key", "not-the-test-key-at-all")
        .header("x-apple-device-development", "true")
        .header("openai-beta", "assistants=v2")
        .header("content-type", "application/json")
        .header("accept-encoding", "br")
        .body("{}")
        .send()
        .await
        .unwrap();
    // The provider's error, as it is.
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let mut names: Vec<_> = response.headers().keys().map(|name| name.as_str().to_owned()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "content-type", "date", "retry-after", "x-request-id"]);
    assert_eq!(response.text().await.unwrap(), r#"{"error":"slow down"}"#);

    let head = seen.lock().unwrap().remove(0);
    assert_eq!(head.uri.to_string(), "/base/v1/chat/completions?after=a%2Fb&limit=2&empty=");
    let mut names: Vec<_> = head.headers.keys().map(axum::http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "accept",
            "accept-encoding",
            "authorization",
            "content-length",
            "content-type",
            "host",
            "openai-beta"
        ]
    );
    assert_eq!(head.headers["authorization"], format!("Bearer {KEY}"));
    assert_eq!(head.headers["host"], url.trim_start_matches("http://"));
    assert_eq!(head.headers["content-length"], "2");
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn credentials_come_in_every_shape_that_clients_have() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let (part, token) = (gateway.part(), gateway.apple.genuine());
    let both = format!("{part}.{token}");
    let bearer = format!("Bearer {both}");
    let simulator = format!("Bearer {part}.{TEST_KEY}");
    let project = ("x-project-id", "app");
    type Row<'a> = (&'a str, &'a str, Vec<(&'static str, &'a str)>, u16);
    let cases: Vec<Row<'_>> = vec![
        ("bearer", CHAT, vec![("authorization", &bearer)], 200),
        ("Anthropic's header", CHAT, vec![("x-api-key", &both)], 200),
        ("Google's header", CHAT, vec![("x-goog-api-key", &both)], 200),
        ("two headers", CHAT, vec![("x-ai-key", part), ("x-device-token", &token)], 200),
        ("Bearer and a header", CHAT, vec![("x-api-key", part), ("x-device-token", &token)], 200),
        ("the project twice", CHAT, vec![("authorization", &bearer), project], 200),
        ("the project in a header", "/v1/openai/models", vec![("authorization", &bearer), project], 200),
        ("test key after the part", CHAT, vec![("authorization", &simulator)], 200),
        ("test key in a header", CHAT, vec![("x-ai-key", part), ("x-proxed-test-key", TEST_KEY)], 200),
        ("another project", "/v1/openai/other/models", vec![("authorization", &bearer)], 401),
        ("nothing", CHAT, vec![], 401),
        ("no device", CHAT, vec![("x-ai-key", part)], 401),
        ("no part", CHAT, vec![("x-device-token", &token)], 401),
        ("a whole key", CHAT, vec![("x-ai-key", KEY), ("x-device-token", &token)], 401),
        ("of another provider", "/v1/anthropic/app/v1/messages", vec![("x-api-key", &both)], 403),
    ];
    for (name, path, headers, status) in cases {
        let before = seen.lock().unwrap().len();
        let mut request = gateway.client.post(format!("{}{path}", gateway.url));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        assert_eq!(request.send().await.unwrap().status(), status, "{name}");
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len() - before, usize::from(status == 200), "{name}");
        if status == 200 {
            let headers = &seen.last().unwrap().headers;
            assert_eq!(headers["authorization"], format!("Bearer {KEY}"), "{name}");
            let others = ["x-api-key", "x-goog-api-key", "x-ai-key", "x-device-token", "x-project-id"];
            assert!(others.iter().all(|name| !headers.contains_key(*name)), "{name}");
        }
    }
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn what_cannot_be_forwarded_reaches_neither_apple_nor_the_provider() {
    let (url, seen) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits { body: 10, ..Limits::default() }).await;
    // The client's URL parser would tidy such paths up, so the request is written by hand.
    let request = async |path: &str, length: usize| {
        let bearer = format!("Bearer {}.{}", gateway.part(), gateway.apple.genuine());
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {bearer}\r\n\
             content-length: {length}\r\n\r\n"
        );
        let mut stream = TcpStream::connect(gateway.url.trim_start_matches("http://")).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split_whitespace().nth(1).unwrap().to_owned()
    };
    for (path, length, status) in [
        ("/v1/openai/app/../../secrets", 0, "400"),
        ("/v1/openai/app//evil.example/", 0, "400"),
        ("/v1/openai/app/%2e%2e/secrets", 0, "400"),
        ("/v1/mistral/app/chat", 0, "404"),
        ("/v2/openai/app/chat", 0, "404"),
        (CHAT, 11, "413"),
    ] {
        assert_eq!(request(path, length).await, status, "{path}");
    }
    assert_eq!(gateway.apple.calls(), 0);

    // With a genuine device, those that would come back with the key in it, or lead to a tunnel.
    let gateway = Gateway::new(&url, Limits::default()).await;
    for method in [Method::TRACE, Method::OPTIONS, Method::from_bytes(b"DEBUG").unwrap()] {
        let request = gateway.client.request(method.clone(), format!("{}{CHAT}", gateway.url));
        let bearer = format!("Bearer {}.{}", gateway.part(), gateway.apple.genuine());
        let response = request.header("authorization", bearer).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn bodies_have_a_limit_also_without_a_length() {
    let (url, _) = provider(async |request: Request| {
        match request.into_body().collect().await {
            Ok(body) => body.to_bytes().into_response(),
            // The gateway hung up.
            Err(_) => StatusCode::IM_A_TEAPOT.into_response(),
        }
    })
    .await;
    let gateway = Gateway::new(&url, Limits { body: 10, ..Limits::default() }).await;
    let chunked = |text: &'static str| reqwest::Body::wrap(StreamBody::new(stream::iter([piece(text)])));
    for (name, body, expected) in [
        ("as much as allowed", "0123456789".into(), 200),
        ("one more", "0123456789x".into(), 413),
        ("in chunks", chunked("0123456789"), 200),
        ("in chunks, one more", chunked("0123456789x"), 413),
    ] {
        let response = gateway.post(CHAT).body(body).send().await.unwrap();
        assert_eq!(response.status(), expected, "{name}");
        let text = response.text().await.unwrap();
        assert!(
            if expected == 200 { text == "0123456789" } else { text.contains("body_too_large") },
            "{name}"
        );
    }
    // The one whose length is said to be too much does not get that far.
    assert_eq!(gateway.apple.calls(), 3);
}

#[tokio::test]
async fn silence_ends() {
    let short = Duration::from_millis(50);
    let (url, _) = provider(async |_| std::future::pending().await).await;
    let gateway = Gateway::new(&url, Limits { head: short, ..Limits::default() }).await;
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(code(response).await, "provider_timeout");

    // The provider begins, and then says nothing more.
    let (events, body) = piecemeal();
    let body = Arc::new(Mutex::new(Some(body)));
    let (url, _) = provider(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        async { Body::new(body).into_response() }
    })
    .await;
    events.unbounded_send(piece("data: 1\n\n")).unwrap();
    let short = Duration::from_secs(1);
    let gateway = Gateway::new(&url, Limits { idle: short, ..Limits::default() }).await;
    let mut response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "data: 1\n\n");
    assert!(response.chunk().await.is_err(), "a stream that was cut must not look complete");

    // The client does.
    let (url, _) = provider(async |request: Request| {
        let _ = request.into_body().collect().await;
        StatusCode::OK.into_response()
    })
    .await;
    let gateway = Gateway::new(&url, Limits { idle: short, ..Limits::default() }).await;
    let (upload, body) = piecemeal();
    upload.unbounded_send(piece("{")).unwrap();
    let response = gateway.post(CHAT).body(reqwest::Body::wrap(body)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(code(response).await, "request_timeout");
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_for_silence_and_not_for_the_whole() {
    let pieces = |pause: u64| {
        let pieces = stream::iter(0..20).then(move |_| async move {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            Ok::<_, Infallible>(Bytes::from_static(b"x"))
        });
        Upload::new(Body::from_stream(pieces), 1_000, Duration::from_secs(10)).collect()
    };
    assert_eq!(pieces(9).await.unwrap().to_bytes().len(), 20);
    assert!(pieces(11).await.is_err());
}

#[tokio::test]
async fn faults_have_their_own_answers() {
    let (url, seen) = provider(ok).await;
    let only_models = KeyLimits::none().with_paths(["/v1/openai/models"]);
    let gateway = Gateway::with(&url, Limits::default(), only_models).await;
    // The path without the project and the version is what the limits are about.
    for path in ["/v1/openai/app/models", "/v1/openai/app/v1/models"] {
        assert_eq!(gateway.post(path).send().await.unwrap().status(), StatusCode::OK, "{path}");
    }
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(code(response).await, "limit_not_met");
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert_eq!(gateway.apple.calls(), 3);

    // An outage of Apple's.
    gateway.apple.fake.always(Reply::status(500));
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(gateway.apple.calls(), 4);

    // An answer that nobody asked for: the client would take the connection to be another protocol's.
    let (url, _) = provider(async |_| StatusCode::SWITCHING_PROTOCOLS.into_response()).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);

    // Nobody there: a port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = Gateway::new(&format!("http://{free}"), Limits::default()).await;
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(code(response).await, "provider_unreachable");
    assert_eq!(gateway.apple.calls(), 1);
}

/// The provider stands for a proxy as well: whatever reaches it there was sent in the clear to somebody else.
#[tokio::test]
async fn what_goes_to_loopback_does_not_go_through_a_proxy() {
    if std::env::var_os("TOWER_DEVICECHECK_BEHIND_PROXY").is_none() {
        let (proxy, seen) = provider(ok).await;
        // The environment is read once per process, so this runs in one of its own.
        let output = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "gateway::what_goes_to_loopback_does_not_go_through_a_proxy", "--nocapture"])
            .env("TOWER_DEVICECHECK_BEHIND_PROXY", "1")
            .env("HTTP_PROXY", &proxy)
            .env("http_proxy", &proxy)
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .output()
            .await
            .unwrap();
        assert!(seen.lock().unwrap().is_empty(), "the API key went to the proxy, in the clear");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let (url, seen) = provider(ok).await;
    let mut gateway = Gateway::new(&url, Limits::default()).await;
    gateway.client = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(gateway.post(CHAT).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn redirects_are_the_clients_to_follow() {
    let (elsewhere, seen) = provider(ok).await;
    let location = format!("{elsewhere}/stolen");
    let (url, _) = provider(move |_| {
        let location = location.clone();
        async { (StatusCode::TEMPORARY_REDIRECT, [("location", location)]).into_response() }
    })
    .await;
    let mut gateway = Gateway::new(&url, Limits::default()).await;
    gateway.client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    assert_eq!(gateway.post(CHAT).send().await.unwrap().status(), StatusCode::TEMPORARY_REDIRECT);
    assert!(seen.lock().unwrap().is_empty(), "the key went elsewhere");
    assert_eq!(gateway.apple.calls(), 1);
}

#[tokio::test]
async fn usage_is_for_the_admin() {
    let (url, _) = provider(ok).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    gateway.post(CHAT).send().await.unwrap();
    let usage = async |authorization: &str| {
        let request = gateway.client.get(format!("{}/usage", gateway.url));
        request.header("authorization", authorization).send().await.unwrap()
    };
    for wrong in ["", "Bearer ", "Bearer the-admin-toke", "Bearer the-admin-token2", "the-admin-token"] {
        assert_eq!(usage(wrong).await.status(), StatusCode::UNAUTHORIZED, "{wrong:?}");
    }
    let text = usage(&format!("Bearer {ADMIN}")).await.text().await.unwrap();
    let log: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(log["entries"][0]["project"], "app");
    assert_eq!(log["entries"][0]["opened"], 1);
    let health = gateway.client.get(format!("{}/health", gateway.url)).send().await.unwrap();
    assert_eq!(health.text().await.unwrap(), "ok");
    assert_eq!(gateway.apple.calls(), 1);
}
