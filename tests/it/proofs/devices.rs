//! The devices that proofs verify, and the headers that they add to responses.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response, header::SET_COOKIE, request};
use http_body_util::{Empty, Full};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_devicecheck::{
    DebugTokens, DeviceCheckLayer, DeviceOutcome, Enforcement, Environment, Evidence, GateBody,
    MalformedToken, ReadBodies, Rejected, Rejection, Route, Step, TokenDigest, Verdict, VerifiedDevice,
    VerifyError,
    cache::{CacheError, CachedVerdict, MemoryCache, VerdictCache, VerdictKey},
};

use super::{Made, Pieces, headers, hex, key};
use crate::captured::Fails as _;
use crate::support::{App, Apple, Log, TOKEN_HEADER, get, plain, rejection};

const DEBUG_SECRET: &str = "debug-secret-7d9f1c6e";

/// Part of a device that must not be printed.
#[derive(Debug, PartialEq)]
struct PrivateValue(&'static str);

#[test]
fn evidence_says_what_it_rests_on() {
    let named = Evidence::stand_in("Key", "pass", "ci".into());
    type Row<'a> = (Evidence, &'a str, &'a str, Option<&'a str>, bool, bool, &'a str);
    let cases: &[Row<'_>] = &[
        (Evidence::fresh("Key", "server"), "Key", "server", None, true, false, "server"),
        (Evidence::remembered("Key", "session"), "Key", "session", None, false, false, "session"),
        (named, "Key", "pass", Some("ci"), false, true, "pass:ci"),
        (Evidence::APPLE, "DeviceCheck", "apple", None, true, false, "apple"),
        (Evidence::CACHE, "DeviceCheck", "cache", None, false, false, "cache"),
        (
            Evidence::debug_token("ci"),
            "DeviceCheck",
            "debug-token",
            Some("ci"),
            false,
            true,
            "debug-token:ci",
        ),
    ];
    for (evidence, proof, basis, name, is_fresh, is_stand_in, text) in cases {
        assert_eq!((evidence.proof(), evidence.basis(), evidence.name()), (*proof, *basis, *name), "{text}");
        assert_eq!((evidence.is_fresh(), evidence.is_stand_in()), (*is_fresh, *is_stand_in), "{text}");
        assert_eq!(evidence.to_string(), *text);
    }
}

#[tokio::test]
async fn the_inner_service_gets_the_device_that_the_proof_made() {
    let apple = Apple::new();
    let earlier = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let proof = Made::new("Key", "x-key", move |value, facts| {
        let device = facts.verified(Evidence::remembered("Key", "store"), TokenDigest::of(value.as_bytes()));
        if value == "plain" {
            return Step::verified(device);
        }
        let value: Arc<dyn Any + Send + Sync> = Arc::new(PrivateValue("hidden"));
        let device = device.with_environment(Environment::Development).with_verified_at(earlier);
        Step::verified(device.with_subject("subject-1".into()).with_value(value))
    });
    let layer = apple.layer().with_routing(Route::ProductionThenDevelopment).add_proof_before(proof).unwrap();
    let app = App::new(&layer);
    let device = async |value: &str| {
        let mut request = plain();
        request.headers_mut().insert("x-key", value.parse().unwrap());
        assert_eq!(app.send(request).await.status(), 200);
        app.device()
    };
    let before = SystemTime::now();
    let simple = device("plain").await;
    assert_eq!((simple.environment(), simple.subject()), (Environment::Production, None));
    assert!(simple.value::<PrivateValue>().is_none());
    assert!((before..=SystemTime::now()).contains(&simple.verified_at()));
    assert_eq!(simple.digest(), TokenDigest::of(b"plain"));

    let full = device("full").await;
    assert_eq!((full.environment(), full.verified_at()), (Environment::Development, earlier));
    assert_eq!(full.subject(), Some("subject-1"));
    assert_eq!(full.value::<PrivateValue>().as_deref(), Some(&PrivateValue("hidden")));
    assert!(full.value::<u8>().is_none());
    assert_eq!(full.clone().value::<PrivateValue>(), full.value());

    // A device of another proof has no device token.
    let error = apple.client.query_bits(&full).await.failure();
    assert_eq!(error.kind(), tower_devicecheck::BitsErrorKind::NoDeviceToken);
    assert_eq!(apple.calls(), 0);
    let from_apple = App::new(&layer);
    assert_eq!(from_apple.status(&apple.genuine()).await, 200);
    let from_apple = from_apple.device();
    assert_eq!((from_apple.subject(), apple.calls()), (None, 1));
    assert!(from_apple.value::<PrivateValue>().is_none());
}

/// Hands a session out to devices that another proof has just checked.
fn minting(scheme: &'static str, header: &'static str) -> Made {
    Made::new(scheme, header, |_, _| Step::absent()).admitting(move |device, facts| {
        assert!(facts.now() >= device.verified_at());
        assert_eq!(facts.environments(), [Environment::Production]);
        device.evidence().is_fresh().then(|| {
            let mut all = headers(&[("x-minted-for", device.evidence().proof())]);
            all.append(SET_COOKIE, format!("{scheme}=1").parse().unwrap());
            all.append(SET_COOKIE, format!("{scheme}=2").parse().unwrap());
            all
        })
    })
}

#[tokio::test]
async fn a_session_is_minted_on_fresh_evidence_only_and_overwrites_nothing() {
    let apple = Apple::new();
    let layer = apple
        .layer()
        .with_routing(|head: &request::Parts| match head.uri.path() {
            "/open" => Route::Exempt,
            _ => Route::Production,
        })
        .with_debug_tokens(DebugTokens::new().add("ci", DEBUG_SECRET).unwrap())
        .add_proof_before(minting("A", "x-a"))
        .unwrap()
        .add_proof_after(key())
        .unwrap()
        .add_proof_after(minting("B", "x-b"))
        .unwrap();
    let inner = service_fn(async |_: Request<Full<Bytes>>| {
        let response = Response::builder().header(SET_COOKIE, "own=1").header("x-minted-for", "nobody");
        Ok::<_, std::convert::Infallible>(response.body(Empty::<Bytes>::new()).unwrap())
    });
    let token = apple.genuine();
    let fresh = |proof| (vec!["own=1", "A=1", "A=2", "B=1", "B=2"], vec!["nobody", proof, proof]);
    let plainly = || (vec!["own=1"], vec!["nobody"]);
    let nothing = || (vec![], vec![]);
    for enforcement in [Enforcement::Enforce, Enforcement::Monitor] {
        let service = layer.clone().with_cache(MemoryCache::new());
        let service = service.with_enforcement(enforcement).layer(inner);
        let rejected = if enforcement == Enforcement::Enforce { nothing() } else { plainly() };
        let cases = [
            ("a token, asked about", "/", vec![(TOKEN_HEADER, &*token)], fresh("DeviceCheck")),
            ("a token, remembered", "/", vec![(TOKEN_HEADER, &*token)], plainly()),
            ("a key", "/", vec![("x-key", "good")], fresh("Key")),
            ("a debug token", "/", vec![("x-debug-token", DEBUG_SECRET)], plainly()),
            ("exempt", "/open", vec![("x-key", "good")], plainly()),
            ("rejected", "/", vec![("x-key", "bad")], rejected.clone()),
            ("nothing", "/", vec![], rejected),
        ];
        for (name, path, pairs, (cookies, minted)) in cases {
            let mut request = Request::get(path).body(Full::default()).unwrap();
            *request.headers_mut() = headers(&pairs);
            let response = service.clone().oneshot(request).await.unwrap();
            let values = |name| response.headers().get_all(name).iter().collect::<Vec<_>>();
            assert_eq!(values(SET_COOKIE.as_str()), cookies, "{name} {enforcement:?}");
            assert_eq!(values("x-minted-for"), minted, "{name} {enforcement:?}");
        }
    }
    assert_eq!(apple.calls(), 2);
}

#[tokio::test]
async fn headers_come_with_an_answer_that_waited_for_a_body_too() {
    let app = super::BodyApp::new(ReadBodies::new());
    let layer = app.layer.clone().add_proof_after(minting("A", "x-a")).unwrap();
    let app = super::BodyApp { layer, ..app };
    let response = app.send(super::post(&hex(b"body"), Pieces::whole("body"))).await;
    assert_eq!(response.headers()["x-minted-for"], "Digest");
    assert_eq!(response.headers().get_all(SET_COOKIE).iter().count(), 2);
    let response = app.send(super::post(&hex(b"other"), Pieces::whole("body"))).await;
    assert_eq!(response.headers().get(SET_COOKIE), None);
    assert_eq!(app.apple.calls(), 0);
}

/// Finds a genuine verdict for whatever it is asked about, and compares no text.
struct Credulous;

impl VerdictCache for Credulous {
    fn peek(&self, key: &VerdictKey<'_>) -> Option<CachedVerdict> {
        let (digest, now) = (key.digest(), SystemTime::now());
        Some(CachedVerdict::new(Verdict::Genuine, digest, now, Duration::from_secs(60)))
    }

    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Ok(self.peek(key))
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_cache_that_answers_for_an_alias_does_not_make_a_token_of_it() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_cache(Credulous));
    assert_eq!(app.status("AgAA").await, 200);
    for alias in ["Ah==", "Ah", "Ag AA", "-_-_", "AgAA, AgAA", "é"] {
        let mut request = get("AgAA");
        request.headers_mut().insert(TOKEN_HEADER, http::HeaderValue::from_bytes(alias.as_bytes()).unwrap());
        let response = app.send(request).await;
        assert_eq!(rejection(&response), MalformedToken::NotCanonical.into(), "{alias}");
    }
    assert_eq!((app.inner.calls(), apple.calls()), (1, 0));
}

#[tokio::test]
async fn nothing_of_the_seam_prints_a_secret() {
    const SECRET: &str = "hush-7d9f1c6e";
    let log = Log::default();
    let _guard = log.listen(tracing::Level::TRACE);
    let apple = Apple::new();
    let mut printed = Vec::new();
    let mut print = |thing: &dyn fmt::Debug| printed.push(format!("{thing:?} {thing:#?}"));

    let proof = || {
        Made::new("Key", "x-key", |key, facts| {
            let device = facts.verified(Evidence::fresh("Key", "key"), TokenDigest::of(key.as_bytes()));
            let device = device.with_value(Arc::new(PrivateValue(SECRET)));
            match key.to_str().unwrap() {
                "ask" => Step::ask(std::future::pending()),
                "body" => Step::needs_body(10, move |_| Step::verified(device)),
                SECRET => Step::verified(device),
                _ => Step::rejected(
                    Rejected::from(Rejection::RefusedToken).with_digest(TokenDigest::of(b"bad")),
                ),
            }
        })
        .reading()
    };
    let layer = apple.layer().with_bodies(ReadBodies::new()).with_enforcement(Enforcement::Monitor);
    let layer: DeviceCheckLayer<ReadBodies> = layer.add_proof_before(proof()).unwrap();
    print(&layer);
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    let service = layer.layer(service_fn(move |request: Request<GateBody<Full<Bytes>>>| {
        let seen = Arc::clone(&seen);
        async move {
            seen.lock().unwrap().push(request);
            Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    }));
    for value in [SECRET, "body", "ask", "bad"] {
        let body = Full::from(Bytes::from_static(SECRET.as_bytes()));
        let request = Request::post("/").header("x-key", value).body(body).unwrap();
        let mut call = Box::pin(service.clone().oneshot(request));
        let answer = futures::future::poll_immediate(&mut call).await;
        assert_eq!(answer.is_none(), value == "ask", "{value}");
        print(&answer.transpose().unwrap().map(Response::into_parts));
    }
    let request = Request::post("/").header("x-key", "ask").body(Full::from(SECRET)).unwrap();
    let mut ready = service.clone();
    print(&ready.ready().await.unwrap().call(request));
    for request in &*requests.lock().unwrap() {
        print(&request.extensions().get::<VerifiedDevice>());
        print(&request.extensions().get::<DeviceOutcome>());
        print(request.body());
    }

    print(&Step::needs_body(10, |_| Step::absent()));
    print(&Step::ask(async { Step::absent() }));
    print(&Step::absent());
    print(&Step::rejected(VerifyError::unavailable("the store is down")));
    printed.push(log.take());
    assert!(
        printed.iter().any(|text| text.contains("Rebuilt"))
            && printed.iter().any(|text| text.contains("Waiting"))
    );
    for text in &printed {
        assert!(!text.contains(SECRET), "a secret in {text}");
    }
    assert_eq!(apple.calls(), 0);
}
