use std::{convert::Infallible, sync::atomic::Ordering, time::Duration};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::apple::token::Verdict;
use crate::device_check::token_source::{BearerToken, HeaderToken};
use crate::device_check::verifier::{DeviceVerifier, TokenQuestion};
use crate::gate::error::VerifyError;
use crate::layer::DeviceCheckLayer;
use crate::runtime::SystemTime;
use crate::split_key::fixtures::{Fixture, KEYS, NoBody, request, with};
use crate::split_key::provider::{Provider, Providers};
use crate::split_key::splitter::{Split, Splitter, revoke};
use crate::split_key::{audit::event::SuspicionKind, limits::Limit, rejection::SplitKeyRejection};

fn bearer(client_part: &str) -> String {
    format!("Bearer {client_part}")
}

#[tokio::test]
async fn where_credentials_are_found() {
    let fixture = Fixture::new();
    let split = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let part = split.client_part().expose();
    let other = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let other = other.client_part().expose();
    let project = ("x-project-id", "project");
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, SplitKeyOutcome);
    let (key, authorization) = (("x-ai-key", part), &*bearer(part));
    let other_bearer = &*bearer(other);
    let cases: Vec<Case<'_>> = vec![
        ("header", vec![key, project], SplitKeyOutcome::Opened),
        ("bearer", vec![("authorization", authorization), project], SplitKeyOutcome::Opened),
        ("both, the same", vec![key, ("authorization", authorization), project], SplitKeyOutcome::Opened),
        ("both, different", vec![key, ("authorization", other_bearer), project], SplitKeyOutcome::Malformed),
        ("repeated", vec![key, key, project], SplitKeyOutcome::Malformed),
        (
            "repeated bearer",
            vec![("authorization", authorization), ("authorization", authorization), project],
            SplitKeyOutcome::Malformed,
        ),
        ("two projects", vec![key, project, project], SplitKeyOutcome::Malformed),
        ("no project", vec![key], SplitKeyOutcome::Missing),
        ("an empty project", vec![key, ("x-project-id", "")], SplitKeyOutcome::Malformed),
        ("no client part", vec![project], SplitKeyOutcome::Missing),
        ("another scheme", vec![("authorization", "Basic x"), project], SplitKeyOutcome::Missing),
        ("nothing in it", vec![("x-ai-key", ""), project], SplitKeyOutcome::Malformed),
        ("no metadata", vec![("x-ai-key", "sk-whole-key"), project], SplitKeyOutcome::Malformed),
    ];
    for (name, headers, outcome) in cases {
        let calls = fixture.inner.calls.load(Ordering::Relaxed);
        let response = fixture.send(request(&headers)).await;
        assert_eq!(fixture.outcome(), Some(outcome), "{name}");
        let opened = outcome == SplitKeyOutcome::Opened;
        assert_eq!(response.status() == StatusCode::OK, opened, "{name}");
        let called = fixture.inner.calls.load(Ordering::Relaxed) - calls;
        assert_eq!(called, usize::from(opened), "{name}");
        if opened {
            assert_eq!(*response.body(), KEYS[0].1, "{name}");
            assert!(fixture.inner.headers.lock().unwrap().is_empty(), "{name}");
        }
    }

    // A bearer token beside the header is the user's own.
    let jwt = "Bearer eyJhbGciOiJub25lIn0.e30.c2ln";
    fixture.send(request(&[key, ("authorization", jwt), project])).await;
    assert_eq!(fixture.outcome(), Some(SplitKeyOutcome::Opened));
    assert_eq!(fixture.inner.headers.lock().unwrap()["authorization"], jwt);
}

#[tokio::test]
async fn one_uniform_401() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let active = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let other = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let retiring = fixture.key(SplitKeyState::Retiring { until: now + hour }, Limits::none()).await;
    let retired = fixture.key(SplitKeyState::Retiring { until: now - hour }, Limits::none()).await;
    let revoked = fixture.key(SplitKeyState::Revoked, Limits::none()).await;
    let (provider, key) = KEYS[0];
    let unknown = Splitter::new().split("project", provider, key).unwrap();
    let mixed = format!(
        "{}.{}",
        other.client_part().expose().split_once('.').unwrap().0,
        active.client_part().metadata()
    );
    let text = |split: &Split| split.client_part().expose().to_owned();
    let cases = [
        ("active", text(&active), SplitKeyOutcome::Opened),
        ("retiring", text(&retiring), SplitKeyOutcome::OpenedRetiring),
        ("retired", text(&retired), SplitKeyOutcome::Retired),
        ("revoked", text(&revoked), SplitKeyOutcome::Revoked),
        ("unknown", text(&unknown), SplitKeyOutcome::Unknown),
        ("mixed", mixed, SplitKeyOutcome::Mismatch),
        ("malformed", "sk.x".to_owned(), SplitKeyOutcome::Malformed),
    ];
    let mut bodies = Vec::new();
    for (name, part, outcome) in cases {
        let response = fixture.send(with(&part)).await;
        assert_eq!(fixture.outcome(), Some(outcome), "{name}");
        if response.status() == StatusCode::OK {
            continue;
        }
        assert_eq!(response.status(), 401, "{name}");
        assert_eq!(response.headers()["www-authenticate"], "SplitKey", "{name}");
        assert_eq!(response.extensions().get(), Some(&SplitKeyRejection::InvalidKey), "{name}");
        let (head, body) = response.into_parts();
        bodies.push((head.headers, body));
    }
    assert_eq!(bodies.len(), 5);
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    let kinds = [SuspicionKind::RetiredPart, SuspicionKind::RevokedPart].map(|kind| (kind, None));
    assert_eq!(fixture.suspicions(), kinds);
}

#[tokio::test]
async fn other_rejections() {
    let fixture = Fixture::new();
    let limits = Limits::none().with_methods([Method::GET]);
    let limited = fixture.key(SplitKeyState::Active, limits).await;
    let part = limited.client_part().expose();
    let down = request(&[("x-ai-key", part), ("x-project-id", "down")]);
    let mut unverified = with(part);
    unverified.extensions_mut().remove::<VerifiedDevice>();
    let cases = [
        ("limit", with(part), 403, "limit_not_met", SplitKeyOutcome::LimitNotMet(Limit::Method)),
        ("store down", down, 503, "keys_unavailable", SplitKeyOutcome::StoreFailed),
        ("no device", unverified, 500, "device_unverified", SplitKeyOutcome::Unverified),
    ];
    for (name, mut request, status, code, outcome) in cases {
        // A key that is already in the request is not passed on.
        request.extensions_mut().insert(opened(&limited));
        let response = fixture.send(request).await;
        assert_eq!(response.status(), status, "{name}");
        let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(problem["code"], code, "{name}");
        assert_eq!(fixture.outcome(), Some(outcome), "{name}");
        assert!(!String::from_utf8_lossy(response.body()).contains("plug"), "{name}");
    }
    assert_eq!(fixture.inner.calls.load(Ordering::Relaxed), 0);
}

fn opened(split: &Split) -> ApiKey {
    Splitter::new().open(split.record(), split.client_part()).unwrap()
}

#[tokio::test]
async fn switches() {
    let mut fixture = Fixture::new();
    let split = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let part = split.client_part().expose();
    fixture.layer = fixture
        .layer
        .clone()
        .with_dangerous_unverified_devices(true)
        .with_forwarded_credentials(true)
        .add_key_header(HeaderName::from_static("x-api-key"))
        .with_project(|head| head.uri.path().split('/').nth(3).map(ToOwned::to_owned));
    let send = async |path: &str, headers: &[(&str, &str)]| {
        let mut request = request(headers);
        request.extensions_mut().remove::<VerifiedDevice>();
        *request.uri_mut() = path.parse().unwrap();
        fixture.send(request).await;
        fixture.outcome()
    };
    let key = ("x-api-key", part);
    assert_eq!(send("/v1/openai/project/chat", &[key]).await, Some(SplitKeyOutcome::Opened));
    assert!(fixture.inner.headers.lock().unwrap()["x-api-key"].is_sensitive());
    let project = ("x-project-id", "project");
    assert_eq!(send("/v1/openai/project/chat", &[key, project]).await, Some(SplitKeyOutcome::Opened));
    assert_eq!(send("/v1/openai/other/chat", &[key, project]).await, Some(SplitKeyOutcome::Malformed));
    assert_eq!(send("/v1", &[key, project]).await, Some(SplitKeyOutcome::Opened));
    assert_eq!(send("/v1", &[key]).await, Some(SplitKeyOutcome::Missing));
}

#[tokio::test]
async fn a_preflight_passes_without_a_key() {
    let fixture = Fixture::new();
    let split = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let mut preflight = with(split.client_part().expose());
    preflight.extensions_mut().insert(opened(&split));
    *preflight.method_mut() = Method::OPTIONS;
    let response = fixture.send(preflight).await;
    assert_eq!(response.status(), StatusCode::OK, "a plain OPTIONS with a key");
    assert_eq!(fixture.outcome(), Some(SplitKeyOutcome::Opened));

    let preflight = |is_exempt: bool, part: Option<&str>| {
        let mut request = Request::options("/v1/chat")
            .header("origin", "https://example.com")
            .header("access-control-request-method", "POST")
            .extension(opened(&split));
        if is_exempt {
            request = request.extension(ExemptPreflight);
        }
        if let Some(part) = part {
            request = request.header("x-ai-key", part);
        }
        request.body(NoBody::new()).unwrap()
    };
    let response = fixture.send(preflight(true, None)).await;
    assert_eq!(*response.body(), "no key");
    assert_eq!(fixture.outcome(), None);
    let response = fixture.send(preflight(true, Some(split.client_part().expose()))).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "no browser sends a client part with it");
    let response = fixture.send(preflight(false, None)).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR, "no gate has exempted it");
}

/// A verifier that believes every token.
struct Gullible;

impl DeviceVerifier for Gullible {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        Ok(Verdict::Genuine)
    }

    fn scope(&self) -> &str {
        "gullible"
    }
}

#[tokio::test]
async fn behind_the_gate_in_both_forms() {
    let fixture = Fixture::new();
    let gate = DeviceCheckLayer::new(Gullible)
        .with_token_source(HeaderToken::new(HeaderName::from_static("x-device-token")))
        .add_token_source(BearerToken::new());
    let seen = |request: Request<NoBody>| async move {
        let key = request.extensions().get::<ApiKey>().map(|key| key.expose().to_owned());
        let headers = request.headers().len();
        Ok::<_, Infallible>(Response::new(http_body_util::Full::from(format!(
            "{} {headers}",
            key.unwrap_or_default()
        ))))
    };
    let service = ServiceBuilder::new().layer(gate).layer(fixture.layer.clone()).service(service_fn(seen));
    // A client part of version 1 has dots if the API key has dots.
    let dotted = format!("any.{}.key", "dots.".repeat(20));
    let splitter = Splitter::new().with_version(Version::Cut);
    let providers = Providers::default().with(Provider::new("any"));
    let split = splitter
        .with_providers(providers)
        .issue(&fixture.store, "project", "any", &dotted, Limits::none())
        .await
        .unwrap();
    let part = split.client_part().expose();
    let bearer = format!("Bearer {part}.AgAA");
    let cases: [&[(&str, &str)]; 2] = [
        &[("x-ai-key", part), ("x-device-token", "AgAA"), ("x-project-id", "project")],
        &[("authorization", &bearer), ("x-project-id", "project")],
    ];
    for headers in cases {
        let mut request = request(headers);
        request.extensions_mut().clear();
        let response = service.clone().oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("{dotted} 0"));
    }
}

#[tokio::test]
async fn a_slow_store_holds_no_readiness() {
    let fixture = Fixture::new();
    let split = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let limited = ServiceBuilder::new()
        .layer(fixture.layer.clone())
        .concurrency_limit(1)
        .service_fn(|_: Request<NoBody>| async { Ok::<_, Infallible>(Response::new(NoBody::new())) });
    // Two requests come at once, and the inner service takes one.
    let mut one = limited.clone();
    let first = one.ready().await.unwrap().call(with(split.client_part().expose()));
    let mut other = limited.clone();
    let second = other.ready().await.unwrap().call(with(split.client_part().expose()));
    assert_eq!(second.await.unwrap().status(), 200);
    assert_eq!(first.await.unwrap().status(), 200);
}

/// All uses of a split share one look at the store, and end together.
#[tokio::test(start_paused = true)]
async fn a_key_in_use_ends_with_its_revocation() {
    use futures_util::{FutureExt, future::join_all};
    let fixture = Fixture::new();
    let gets = || fixture.store.gets.load(Ordering::Relaxed);
    let key_of = async |split: &Split| {
        let response = fixture.send(with(split.client_part().expose())).await;
        assert_eq!(response.status(), http::StatusCode::OK);
        fixture.inner.key.lock().unwrap().take().unwrap()
    };
    let first = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let other = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let until = crate::runtime::wall_clock() + Duration::from_secs(3600);
    let retiring = fixture.key(SplitKeyState::Retiring { until }, Limits::none()).await;
    let (one, two, other) = (key_of(&first).await, key_of(&first).await, key_of(&other).await);
    let retiring = key_of(&retiring).await;

    let before = gets();
    let mut both = join_all([one.revoked(), two.revoked(), one.revoked()]);
    let (mut of_other, mut of_retiring) = (other.revoked(), retiring.revoked());
    assert!((&mut both).now_or_never().is_none());
    tokio::time::advance(Duration::from_secs(3)).await;
    assert!((&mut both).now_or_never().is_none());
    assert_eq!(gets() - before, 1, "one look for all uses of a split, and none for those that nobody polls");

    revoke(&fixture.store, "project", one.metadata().split()).await.unwrap();
    let started = tokio::time::Instant::now();
    both.await;
    assert!(started.elapsed() <= Duration::from_millis(200), "{:?}", started.elapsed());
    one.revoked().await;

    let mut late = (&mut of_other).now_or_never().is_some() || (&mut of_retiring).now_or_never().is_some();
    tokio::time::sleep(Duration::from_secs(1)).await;
    late |= (&mut of_other).now_or_never().is_some() || (&mut of_retiring).now_or_never().is_some();
    assert!(!late, "other splits go on");
    crate::runtime::set_wall_clock(until);
    of_retiring.await;
    // A key that no layer gave out has no store.
    let alone = Splitter::new().open(first.record(), first.client_part()).unwrap();
    tokio::time::timeout(Duration::from_secs(60), alone.revoked()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_ends_no_use() {
    let fixture = Fixture::new();
    let store: Arc<dyn crate::split_key::store::ErasedSplitKeyStore> = fixture.store.clone();
    let revocations = crate::split_key::revocations::Revocations::new(store);
    let split = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let revoked = revocations.revoked(&"down".into(), split.record().metadata());
    tokio::time::timeout(Duration::from_secs(60), revoked).await.unwrap_err();
    // A split that is gone from the store is revoked.
    let gone = revocations.revoked(&"gone".into(), split.record().metadata());
    tokio::time::timeout(Duration::from_millis(300), gone).await.unwrap();
}
