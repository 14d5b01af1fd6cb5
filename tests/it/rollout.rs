//! The roll-out report behind a layer, and the head that observers see.

use std::sync::{Arc, Mutex};

use http::{Request, StatusCode, request};
use http_body_util::Full;
use serde_json::{Value, json};
use tower_devicecheck::{
    DebugTokens, DeviceCheckLayer, Enforcement, Event, Observer, Outage, RolloutReport, Route, testing::Reply,
};

use crate::support::{App, Apple, TOKEN_HEADER};

fn report() -> Arc<RolloutReport> {
    Arc::new(RolloutReport::by(|head| head.headers.get("x-app-version")?.to_str().ok()))
}

fn parsed(report: &RolloutReport) -> Value {
    serde_json::from_str(&report.to_json()).unwrap()
}

fn from_app(version: &str, token: Option<&str>) -> Request<Full<bytes::Bytes>> {
    let request = Request::get("/").header("x-app-version", version);
    let request = match token {
        Some(token) => request.header(TOKEN_HEADER, token),
        None => request,
    };
    request.body(Full::default()).unwrap()
}

/// The old version sends no token; the new one does, and once a forged one. Then Apple is down.
async fn a_day(apple: &Apple, layer: &DeviceCheckLayer) -> App {
    let app = App::new(layer);
    let token = apple.genuine();
    for _ in 0..3 {
        app.send(from_app("1.4.2", Some(&token))).await;
    }
    app.send(from_app("1.4.2", Some(&apple.fake.forged_token()))).await;
    for _ in 0..2 {
        app.send(from_app("1.3.0", None)).await;
    }
    apple.fake.always(Reply::status(500));
    app.send(from_app("1.4.2", Some(&apple.genuine()))).await;
    app
}

#[tokio::test]
async fn the_report_tells_in_monitor_mode_what_enforce_mode_then_refuses() {
    let mut told = Vec::new();
    for (enforcement, name, reached) in
        [(Enforcement::Monitor, "monitor", 7), (Enforcement::Enforce, "enforce", 3)]
    {
        let (apple, report) = (Apple::new(), report());
        let layer = apple.layer().with_enforcement(enforcement).with_observer(Arc::clone(&report));
        let app = a_day(&apple, &layer).await;
        assert_eq!((apple.calls(), app.inner.calls()), (3, reached), "{name}");
        let all = parsed(&report);
        told.push((all[name].clone(), all["labels"].clone()));
        let other = if name == "monitor" { "enforce" } else { "monitor" };
        assert_eq!(all[other]["checked"], 0, "{name}");
        assert_eq!(all["evidence"], json!({"fresh": 1, "remembered": 2, "stand_in": 0}), "{name}");
    }
    assert_eq!(told[0], told[1]);
    let (counts, labels) = &told[0];
    let codes = json!({"missing_token": 2, "refused_token": 1, "unavailable": 1});
    assert_eq!(*counts, json!({"checked": 7, "rejected": 4, "rejected_share": 0.5714, "codes": codes}));
    assert_eq!(labels["1.3.0"]["codes"], json!({"missing_token": 2}));
    assert_eq!(labels["1.4.2"]["codes"], json!({"refused_token": 1, "unavailable": 1}));
}

#[tokio::test]
async fn exempt_requests_have_one_count_and_no_label() {
    let (apple, report) = (Apple::new(), report());
    let layer = apple.layer().with_routing(|_: &request::Parts| Route::Exempt);
    let app = App::new(&layer.with_observer(Arc::clone(&report)));
    assert_eq!(app.send(from_app("1.3.0", None)).await.status(), StatusCode::OK);
    let all = parsed(&report);
    assert_eq!((&all["exempt"], &all["labels"], apple.calls()), (&json!(1), &json!({}), 0));
}

/// Keeps the heads of all events.
#[derive(Clone, Default)]
struct Heads(Arc<Mutex<Vec<request::Parts>>>);

impl Observer for Heads {
    fn decision(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(event.head().clone());
    }

    fn outage(&self, outage: &Outage<'_>) {
        if let Outage::Begins(event) = outage {
            self.decision(event);
        }
    }
}

#[tokio::test]
async fn observers_see_the_head_without_the_credentials() {
    for enforcement in [Enforcement::Monitor, Enforcement::Enforce] {
        let (apple, heads) = (Apple::new(), Heads::default());
        let from_query = |head: &mut request::Parts| {
            let query = head.uri.query()?.strip_prefix("token=")?.to_owned();
            head.uri = "/".parse().ok()?;
            query.parse().ok()
        };
        let layer = apple
            .layer()
            .add_token_source(from_query)
            .with_debug_tokens(DebugTokens::new().add("ci", "b5d0a2a1-6c1e-4f0f-9f68-5f3f9f8f2f0a").unwrap());
        let app = App::new(&layer.with_enforcement(enforcement).with_observer(heads.clone()));
        let remembered = apple.genuine();
        let send = async |token: &str| app.send(from_app("1.4.2", Some(token))).await;
        send(&remembered).await;
        send(&remembered).await;
        send(&apple.fake.forged_token()).await;
        send("malformed").await;
        send("b5d0a2a1-6c1e-4f0f-9f68-5f3f9f8f2f0a").await;
        let mut in_query = from_app("1.4.2", None);
        *in_query.uri_mut() = format!("/?token={}", apple.genuine()).parse().unwrap();
        app.send(in_query).await;
        apple.fake.always(Reply::status(500));
        send(&apple.genuine()).await;

        let heads = heads.0.lock().unwrap();
        // The last one comes twice, because it also begins an outage.
        assert_eq!((heads.len(), apple.calls()), (8, 4), "{enforcement:?}");
        for head in heads.iter() {
            assert_eq!(head.headers.keys().collect::<Vec<_>>(), ["x-app-version"], "{enforcement:?}");
            assert_eq!(head.uri, "/", "{enforcement:?}");
        }
    }
}

#[tokio::test]
async fn observers_see_credentials_that_are_forwarded_or_that_nobody_looked_for() {
    let (apple, heads) = (Apple::new(), Heads::default());
    let layer = apple.layer().with_observer(heads.clone());
    let token = apple.genuine();
    for (name, layer, sensitive, calls) in [
        ("forwarded", layer.clone().with_forwarded_credentials(true), true, 1),
        ("exempt", layer.with_routing(|_: &request::Parts| Route::Exempt), false, 1),
    ] {
        assert_eq!(App::new(&layer).status(&token).await, StatusCode::OK, "{name}");
        let head = heads.0.lock().unwrap().pop().unwrap();
        let value = &head.headers[TOKEN_HEADER];
        assert_eq!((value.to_str().unwrap(), value.is_sensitive()), (&*token, sensitive), "{name}");
        assert_eq!(apple.calls(), calls, "{name}");
    }
}
