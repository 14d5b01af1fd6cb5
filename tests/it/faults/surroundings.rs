//! Faults of the surroundings: an upstream that is not Apple, plug-ins that panic or hang, and what the log says.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{Router, body::Body, routing::get as on_get};
use bytes::Bytes;
use http::{Request, Response, StatusCode, request};
use http_body_util::{BodyExt, Full};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_devicecheck::{
    BearerToken, DeviceCheckLayer, DeviceVerifier, Enforcement, Environment, Facts, HeaderToken, Proof,
    Rejection, Step, TokenQuestion, Verdict, VerifiedDevice, VerifyError, VerifyErrorKind,
    cache::{CacheError, CachedVerdict, VerdictCache, VerdictKey},
    replay::{Claim, Claimed, GuardError, MemoryReplayGuard, ReplayGuard, ReplayKey},
    split_key::{ApiKey, Limits, MemorySplitKeyStore, SplitKeyLayer, Splitter},
    testing::Reply,
};

use crate::captured::Fails as _;
use crate::{
    split_key::KEYS,
    support::{App, Apple, Counter, Log, Stub, TOKEN_HEADER, get, plain, rejection},
};

const PAGE: &str = "<!DOCTYPE html><html><body>Your device token is not configured</body></html>";

#[tokio::test]
async fn g02_an_upstream_that_answers_200_to_everything_is_not_apple() {
    for (name, reply) in [
        ("nothing", Reply::status(200)),
        ("a word", Reply::status(200).body("OK")),
        ("a page", Reply::status(200).body(PAGE)),
        ("JSON", Reply::status(200).body("{}")),
    ] {
        let apple = Apple::new();
        apple.fake.always(reply);
        let error = apple.client.check_credentials(Environment::Production).await.failure();
        if name == "nothing" {
            assert_eq!(error.kind(), VerifyErrorKind::Misconfigured);
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains("made-up token") && cause.contains("not Apple"), "{cause}");
        }
        assert_eq!(apple.calls(), 1, "{name}");
    }
}

#[tokio::test]
async fn g02_a_200_that_apple_would_not_give_is_no_verdict() {
    for (name, reply, status) in [
        ("nothing", Reply::status(200), 200),
        ("a word", Reply::status(200).body("OK\n"), 200),
        ("a page", Reply::status(200).body(PAGE), 500),
        ("a type", Reply::status(200).header("content-type", "text/html; charset=utf-8").body("hello"), 500),
        ("much text", Reply::status(200).body("all is well ".repeat(100)), 503),
        // An answer to another question, late.
        ("bits", Reply::status(200).body(r#"{"bit0":true,"bit1":false,"last_update_time":"2026-01"}"#), 503),
        ("no bits", Reply::status(200).body("Failed to find bit state"), 503),
        ("JSON", Reply::status(200).body("{}"), 503),
        ("a list", Reply::status(200).body(" [1]"), 503),
        ("not text", Reply::status(200).body(vec![0xff, 0xfe, 0]), 503),
    ] {
        let apple = Apple::new();
        let app = App::new(&apple.layer());
        apple.fake.always(reply);
        assert_eq!(app.status(&apple.genuine()).await.as_u16(), status, "{name}");
        assert_eq!(apple.calls(), 1, "{name}");
    }
}

#[tokio::test]
async fn g03_only_apples_own_short_text_is_a_refusal() {
    let cases = [
        ("Apple's", "Missing or incorrectly formatted device token payload".to_owned(), 401),
        ("Apple's name for it", "Bad Device Token".to_owned(), 401),
        ("both, the other one first", "Bad authorization token. No device token was read".to_owned(), 500),
        ("both", "Device token not read: BAD_AUTHENTICATION_TOKEN".to_owned(), 500),
        ("a page", PAGE.to_owned(), 503),
        ("a part of a page", "device token <br> blocked".to_owned(), 503),
        ("a long text", format!("device token {}", "blocked ".repeat(100)), 503),
    ];
    for (name, text, status) in cases {
        let apple = Apple::new();
        let app = App::new(&apple.layer());
        apple.fake.always(Reply::status(400).body(text));
        assert_eq!(app.status(&apple.genuine()).await.as_u16(), status, "{name}");
    }
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    apple.fake.always(Reply::status(400).header("content-type", "text/html").body("Bad device token"));
    assert_eq!(app.status(&apple.genuine()).await.as_u16(), 503);
}

#[tokio::test]
async fn g05_monitor_mode_says_what_happened_to_a_handler_that_takes_a_device() {
    let apple = Apple::new();
    let log = Log::default();
    let _guard = log.listen(tracing::Level::INFO);
    let routes =
        Router::new().route("/", on_get(async |device: VerifiedDevice| device.evidence().to_string()));
    let app = routes.layer(apple.layer().with_enforcement(Enforcement::Monitor));
    let send = async |token: Option<String>| {
        let mut request = Request::get("/");
        if let Some(token) = token {
            request = request.header(TOKEN_HEADER, token);
        }
        let (head, body) =
            app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().into_parts();
        (
            head.status.as_u16(),
            String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()).into_owned(),
        )
    };
    assert_eq!(send(Some(apple.genuine())).await, (200, "apple".to_owned()));
    for (token, expected, code) in
        [(None, 401, "missing_token"), (Some(apple.fake.forged_token()), 401, "refused_token")]
    {
        let (status, text) = send(token).await;
        assert_eq!(status, expected, "{code}");
        assert!(text.contains("monitor") && text.contains(code), "{text}");
        let logged = log.take();
        assert!(logged.contains("monitor") && logged.contains(code), "{logged}");
    }
    apple.fake.always(Reply::status(500));
    assert_eq!(send(Some(apple.genuine())).await.0, 503);
}

#[tokio::test]
async fn g06_forwarded_credentials_and_split_keys_go_together() {
    let (apple, store) = (Apple::new(), Arc::new(MemorySplitKeyStore::new()));
    let (provider, key) = KEYS[0];
    let split = Splitter::new().issue(&store, "project", provider, key, Limits::none()).await.unwrap();
    let (part, token) = (split.client_part().expose(), apple.genuine());
    let bearer = format!("Bearer {part}.{token}");
    let part_alone = format!("Bearer {part}");
    let token_alone = format!("Bearer {token}");
    // The part of the bearer form that the inner service gets, for the switches of the gate and of the split keys.
    for (gate, keys, left) in [
        (false, false, None),
        (false, true, Some(&part_alone)),
        (true, false, Some(&token_alone)),
        (true, true, Some(&bearer)),
    ] {
        let stack = ServiceBuilder::new()
            .layer(
                apple
                    .layer()
                    .with_token_source(HeaderToken::default())
                    .add_token_source(BearerToken::new())
                    .with_forwarded_credentials(gate),
            )
            .layer(SplitKeyLayer::new(Arc::clone(&store)).with_forwarded_credentials(keys));
        let service = stack.service(service_fn(async |request: Request<Full<Bytes>>| {
            let opened = request.extensions().get::<ApiKey>().is_some_and(|opened| *opened.expose() == *key);
            let mut response = Response::new(opened);
            *response.headers_mut() = request.into_parts().0.headers;
            Ok::<_, Infallible>(response.map(|opened| Full::<Bytes>::from(opened.to_string())))
        }));
        let send = async |headers: &[(&str, &str)]| {
            let mut request = Request::post("/").header("x-project-id", "project");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = service.clone().oneshot(request.body(Full::default()).unwrap()).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{gate} {keys} {headers:?}");
            let (head, body) = response.into_parts();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "true", "{gate} {keys}");
            head.headers
        };
        let headers = send(&[("authorization", &bearer)]).await;
        assert_eq!(headers.get("authorization").map(|value| value.to_str().unwrap()), left.map(|x| &**x));
        assert!(headers.values().all(http::HeaderValue::is_sensitive), "{headers:?}");
        assert_eq!(headers.contains_key("x-project-id"), keys);
        let headers = send(&[("x-ai-key", part), (TOKEN_HEADER, &token)]).await;
        assert_eq!((headers.contains_key("x-ai-key"), headers.contains_key(TOKEN_HEADER)), (keys, gate));
        // The client part in a header of its own, the device token as the bearer.
        let headers = send(&[("x-ai-key", part), ("authorization", &token_alone)]).await;
        assert_eq!((headers.contains_key("x-ai-key"), headers.contains_key("authorization")), (keys, gate));
    }
    assert_eq!(apple.calls(), 4, "each layer has a cache of its own");
}

#[tokio::test]
async fn g11_the_log_says_why_a_token_is_malformed_or_a_debug_token_unknown() {
    let apple = Apple::new();
    let log = Log::default();
    let _guard = log.listen(tracing::Level::DEBUG);
    let tokens = tower_devicecheck::DebugTokens::new().add("ci", "debug-secret-7d9f1c6e").unwrap();
    let app = App::new(&apple.layer().with_debug_tokens(tokens));
    for (request, code, reason) in [
        (get("%"), "malformed_token", "the device token is not canonical base64"),
        (get(""), "malformed_token", "the device token is empty"),
        (get(&"A".repeat(9000)), "malformed_token", "the device token is too long"),
        (plain(), "missing_token", ""),
    ] {
        assert_eq!(app.send(request).await.status(), StatusCode::UNAUTHORIZED);
        let logged = log.take();
        assert!(logged.contains(code), "{logged}");
        assert_eq!(logged.contains("reason="), !reason.is_empty(), "{logged}");
        assert!(logged.contains(reason), "{logged}");
    }
    let mut wrong = plain();
    wrong.headers_mut().insert("x-debug-token", "debug-secret-7d9f1c6f".parse().unwrap());
    assert_eq!(rejection(&app.send(wrong).await), Rejection::MissingToken);
    let logged = log.take();
    assert!(logged.contains("unknown debug token") && !logged.contains("7d9f1c6f"), "{logged}");
    assert_eq!(apple.calls(), 0);
}

/// Asks through the gate that it serves: in its own task, or as a server would, in another one.
struct Circular(Arc<OnceLock<App>>, bool);

impl DeviceVerifier for Circular {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        let app = self.0.get().unwrap().clone();
        let status = async move { app.status("AgAA").await };
        let status = if self.1 { tokio::spawn(status).await.unwrap() } else { status.await };
        if status.is_success() { Ok(Verdict::Genuine) } else { Err(VerifyError::unavailable("x")) }
    }

    fn scope(&self) -> &str {
        "circular"
    }
}

/// A proof whose question has no answer, or panics.
struct Odd(fn());

impl Proof for Odd {
    fn scheme(&self) -> &'static str {
        "Odd"
    }

    fn judge(&self, _: &mut request::Parts, _: &Facts) -> Step {
        let then = self.0;
        Step::ask(async move {
            then();
            pending().await
        })
    }

    fn strip(&self, _: &mut request::Parts) {}
}

#[tokio::test(start_paused = true)]
async fn g14_no_request_waits_for_ever() {
    let circular = |in_another_task| {
        let app = Arc::new(OnceLock::new());
        let verifier = Circular(Arc::clone(&app), in_another_task);
        app.get_or_init(|| App::new(&DeviceCheckLayer::new(verifier))).clone()
    };
    let odd = DeviceCheckLayer::new(Stub::genuine(&Counter::default())).add_proof_before(Odd(|| ())).unwrap();
    let monitored = odd.clone().with_enforcement(Enforcement::Monitor);
    for (name, app, status) in [
        ("circular", circular(false), 503),
        ("circular, over a socket", circular(true), 503),
        ("no end", App::new(&odd), 503),
        ("no end, monitored", App::new(&monitored), 200),
    ] {
        for _ in 0..2 {
            let answer = tokio::time::timeout(Duration::from_secs(60), app.get("AgAA"));
            assert_eq!(answer.await.expect(name).status().as_u16(), status, "{name}");
        }
    }
    let started = tokio::time::Instant::now();
    let hasty = odd.with_deadline(Duration::from_secs(1));
    assert_eq!(App::new(&hasty).status("AgAA").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(started.elapsed().as_secs(), 1);
}

#[derive(Clone, Copy, PartialEq)]
enum At {
    Reserve,
    Confirm,
    Release,
    Get,
    Put,
}

/// Panics in one method, before its future or in it.
struct Panics(At, MemoryReplayGuard);

impl Panics {
    fn at(&self, at: At) {
        assert!(self.0 != at, "a panic, as this test wants");
    }
}

impl ReplayGuard for Panics {
    async fn reserve(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<Claimed, GuardError> {
        self.at(At::Reserve);
        self.1.reserve(key, claim).await
    }

    fn confirm(
        &self,
        key: &ReplayKey<'_>,
        claim: &Claim,
    ) -> impl Future<Output = Result<Claimed, GuardError>> + Send {
        self.at(At::Confirm);
        self.1.confirm(key, claim)
    }

    async fn release(&self, key: &ReplayKey<'_>, claim: &Claim) -> Result<(), GuardError> {
        self.at(At::Release);
        self.1.release(key, claim).await
    }

    fn abandon(&self, _: &ReplayKey<'_>, _: &Claim) {
        panic!("a panic, as this test wants");
    }
}

impl VerdictCache for Panics {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        self.at(At::Get);
        Ok(None)
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        self.at(At::Put);
        Ok(())
    }
}

#[tokio::test]
async fn g15_a_panic_of_a_plug_in_is_no_verdict() {
    let apple = Apple::new();
    let guard = |at| apple.layer().with_single_use(Panics(at, MemoryReplayGuard::new()));
    let cache = |at| apple.layer().with_cache(Panics(at, MemoryReplayGuard::new()));
    for (name, layer, outage) in [
        ("a guard", guard(At::Reserve), false),
        ("a guard, later", guard(At::Confirm), false),
        ("a guard, at the end", guard(At::Release), true),
        ("a cache", cache(At::Get), false),
        ("a cache, later", cache(At::Put), false),
        ("a proof", apple.layer().add_proof_before(Odd(|| panic!("as this test wants"))).unwrap(), false),
    ] {
        apple.fake.clear();
        if outage {
            apple.fake.always(Reply::status(500));
        }
        let monitored = layer.clone().with_enforcement(Enforcement::Monitor);
        for (layer, status, calls) in [(layer, 503, 0), (monitored, 200, 1)] {
            let app = App::new(&layer);
            let token = apple.genuine();
            let answer = tokio::spawn(async move { (app.status(&token).await.as_u16(), app.inner.calls()) });
            assert_eq!(answer.await.expect(name), (status, calls), "{name}");
        }
    }
}
