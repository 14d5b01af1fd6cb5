//! The spans of a request: the caller's trace, the check, and the requests to Apple.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{Request, StatusCode},
};
use futures_util::{FutureExt, future::join_all};
use opentelemetry::{
    Value,
    trace::{SpanKind, Status, TraceId},
};
use tower::{ServiceExt, service_fn};
use tower_devicecheck::testing::Reply;

use super::{
    AppleClient, Collector, Environment, FakeApple, Registry, Router, SpanData, SubscriberExt, app, client,
    traces,
};

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

type Spans = Arc<Mutex<Vec<SpanData>>>;

/// Collects the spans of this thread.
fn collect() -> (Spans, tracing::subscriber::DefaultGuard) {
    let spans = Spans::default();
    let kept = Arc::clone(&spans);
    let collector = Collector(Box::new(move |span| kept.lock().unwrap().push(span.clone())));
    (spans, tracing::subscriber::set_default(Registry::default().with(traces(collector))))
}

fn take(spans: &Spans, name: &str) -> Vec<SpanData> {
    spans.lock().unwrap().extract_if(.., |span| span.name == name).collect()
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name)?;
    Some(match &found.value {
        Value::String(text) => text.as_str().to_owned(),
        value => value.to_string(),
    })
}

async fn get(app: &Router, token: &str) -> StatusCode {
    let request = Request::get("/").header("x-apple-device-token", token).header("traceparent", CALLER);
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
}

#[tokio::test]
async fn a_check_is_a_child_of_the_callers_trace_and_the_parent_of_its_requests_to_apple() {
    let (spans, _guard) = collect();
    let server = FakeApple::new().serve().await.unwrap();
    let (apple, app) = (server.apple(), app(client(&server).unwrap()));
    let token = apple.genuine_token(Environment::Production);
    apple.script(Reply::status(503));
    assert_eq!(get(&app, &token).await, StatusCode::OK);
    assert_eq!(apple.calls(), 2, "the first one failed");

    let [request] = &take(&spans, "request")[..] else { panic!("one request") };
    let [check] = &take(&spans, "devicecheck")[..] else { panic!("one check") };
    let [first, second] = &take(&spans, "POST")[..] else { panic!("two requests to Apple") };
    assert_eq!(request.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert_eq!(check.parent_span_id, request.span_context.span_id());
    for span in [request, check, first, second] {
        let trace = TraceId::from_hex("4bf92f3577b34da6a3ce929d0e0e4736").unwrap();
        assert_eq!(span.span_context.trace_id(), trace);
    }
    for (name, value) in
        [("outcome", "verified"), ("environment", "production"), ("evidence", "apple"), ("enforced", "true")]
    {
        assert_eq!(attribute(check, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(attribute(check, "digest").unwrap().len(), 64);
    assert_eq!(check.status, Status::Unset);

    let url = server.url(Environment::Production);
    let port = url.rsplit_once(':').unwrap().1.trim_end_matches('/');
    for span in [first, second] {
        assert_eq!(span.parent_span_id, check.span_context.span_id());
        assert_eq!(span.span_kind, SpanKind::Client);
        for (name, value) in [
            ("http.request.method", "POST"),
            ("server.address", "127.0.0.1"),
            ("server.port", port),
            ("url.template", "/v1/validate_device_token"),
        ] {
            assert_eq!(attribute(span, name).as_deref(), Some(value), "{name}");
        }
    }
    let told = |span| {
        ["http.response.status_code", "http.request.resend_count", "error.type"]
            .map(|name| attribute(span, name).unwrap_or_default())
    };
    assert_eq!(told(first), ["503", "", "503"]);
    assert_eq!(told(second), ["200", "1", ""]);
    assert!(matches!(first.status, Status::Error { .. }));
    assert_eq!(second.status, Status::Unset);
}

#[tokio::test]
async fn a_remembered_verdict_makes_no_span_and_a_crowd_makes_one_request_to_apple() {
    let (spans, _guard) = collect();
    let server = FakeApple::new().serve().await.unwrap();
    let (apple, app) = (server.apple(), app(client(&server).unwrap()));
    let token = apple.genuine_token(Environment::Production);
    let statuses = join_all((0..5).map(|_| get(&app, &token))).await;
    assert_eq!(statuses, [StatusCode::OK; 5]);
    assert_eq!((take(&spans, "devicecheck").len(), take(&spans, "POST").len()), (5, 1));
    assert_eq!(get(&app, &token).await, StatusCode::OK);
    assert_eq!((take(&spans, "devicecheck").len(), take(&spans, "POST").len()), (0, 0));
    assert_eq!(apple.calls(), 1);
}

#[tokio::test]
async fn spans_hold_no_secret_and_apple_learns_nothing_of_the_trace() {
    let (spans, _guard) = collect();
    let apple = FakeApple::new();
    let names = Arc::new(Mutex::new(BTreeSet::new()));
    let (heard, transport) = (Arc::clone(&names), apple.transport());
    let transport = service_fn(move |request: Request<Bytes>| {
        heard.lock().unwrap().extend(request.headers().keys().map(|name| name.as_str().to_owned()));
        transport.clone().oneshot(request)
    });
    let app = app(AppleClient::builder(apple.credentials()).transport(transport).build().unwrap());
    let (genuine, forged) = (apple.genuine_token(Environment::Production), apple.forged_token());
    for token in [&genuine, &forged] {
        get(&app, token).await;
    }
    let printed = format!("{:?}", spans.lock().unwrap());
    assert!(printed.contains("refused_token"));
    let key = apple.private_key().to_pem();
    let key = key.lines().nth(1).unwrap();
    // The provider token is a JWT.
    for secret in [&genuine, &forged, key, apple.team_id(), apple.key_id(), "eyJ"] {
        assert!(!printed.contains(secret));
    }
    assert_eq!(*names.lock().unwrap(), ["authorization", "content-type"].map(str::to_owned).into());
    assert_eq!(apple.calls(), 2);
}

#[tokio::test]
async fn an_outage_is_an_error_in_the_trace() {
    let (spans, _guard) = collect();
    let server = FakeApple::new().serve().await.unwrap();
    let (apple, app) = (server.apple(), app(client(&server).unwrap()));
    apple.always(Reply::reset());
    assert_eq!(
        get(&app, &apple.genuine_token(Environment::Production)).await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let [check] = &take(&spans, "devicecheck")[..] else { panic!("one check") };
    assert_eq!(attribute(check, "outcome").as_deref(), Some("unavailable"));
    assert!(attribute(check, "error").unwrap().contains("the transport failed"));
    assert!(matches!(check.status, Status::Error { .. }));
    let requests = take(&spans, "POST");
    assert_eq!(requests.len(), apple.calls());
    for request in &requests {
        assert_eq!(attribute(request, "error.type").as_deref(), Some("transport"));
        assert!(matches!(request.status, Status::Error { .. }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_stays_in_the_trace_of_its_first_request_and_every_span_ends_with_it() {
    for is_joined in [true, false] {
        let (spans, _guard) = collect();
        let apple = FakeApple::new();
        let slow = || Reply::status(503).delay(Duration::from_millis(100));
        apple.script(slow());
        apple.always(Reply::normal().delay(Duration::from_millis(100)));
        let client = AppleClient::builder(apple.credentials()).transport(apple.transport()).build().unwrap();
        let app = app(client);
        let token = apple.genuine_token(Environment::Production);
        let mut first = Box::pin(get(&app, &token));
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = is_joined.then(|| Box::pin(get(&app, &token)));
        if let Some(second) = &mut second {
            assert!(second.as_mut().now_or_never().is_none());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(first);
        match second {
            Some(second) => assert_eq!(second.await, StatusCode::OK),
            None => tokio::time::sleep(Duration::from_secs(1)).await,
        }
        // Without anybody who waits, no retry is worth its while.
        let asked = if is_joined { 2 } else { 1 };
        assert_eq!(apple.calls(), asked);

        let checks = take(&spans, "devicecheck");
        let left: Vec<_> = checks.iter().filter(|check| attribute(check, "outcome").is_none()).collect();
        let [left] = left[..] else { panic!("one check has no outcome") };
        let requests = take(&spans, "POST");
        assert_eq!((checks.len(), requests.len(), take(&spans, "request").len()), (asked, asked, asked));
        for request in &requests {
            assert_eq!(request.parent_span_id, left.span_context.span_id());
        }
    }
}
