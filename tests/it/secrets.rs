//! Secrets must not get out, and forged devices must not get in.

use std::time::{Duration, SystemTime};

use http::{HeaderName, Request, StatusCode, request};
use http_body_util::Full;
use tower_devicecheck::{
    AppleClient, BearerToken, Credentials, DebugTokens, DeviceCheckLayer, DeviceOutcome, DeviceToken,
    Enforcement, Environment, Evidence, HeaderToken, Rejection, Route, VerifiedDevice,
    testing::{FakeApple, Reply},
};

use crate::captured::Fails as _;
use crate::support::{App, Apple, Log, TOKEN_HEADER, get, plain, rejection};

const DEBUG_SECRET: &str = "debug-secret-7d9f1c6e";

fn debug_tokens() -> DebugTokens {
    DebugTokens::new().add("ci", DEBUG_SECRET).unwrap()
}

fn with(
    mut request: Request<Full<bytes::Bytes>>,
    name: &'static str,
    value: &str,
) -> Request<Full<bytes::Bytes>> {
    request.headers_mut().insert(HeaderName::from_static(name), value.parse().unwrap());
    request
}

#[tokio::test]
async fn r27_a_verified_device_from_outside_is_removed() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    let stolen = app.device();
    let forge = |mut request: Request<Full<bytes::Bytes>>| {
        request.extensions_mut().insert(stolen.clone());
        request.extensions_mut().insert(DeviceOutcome::Verified(stolen.clone()));
        request
    };
    let exempt = apple.layer().with_routing(|_: &request::Parts| Route::Exempt);
    let monitor = apple.layer().with_enforcement(Enforcement::Monitor);
    for (name, layer, outcome) in [("exempt", exempt, None), ("monitored", monitor, Some("missing_token"))] {
        let app = App::new(&layer);
        assert_eq!(app.send(forge(plain())).await.status(), StatusCode::OK, "{name}");
        let seen = app.inner.last().extensions;
        assert!(seen.get::<VerifiedDevice>().is_none(), "{name}");
        assert_eq!(seen.get::<DeviceOutcome>().map(DeviceOutcome::as_str), outcome, "{name}");
    }
    assert_eq!(app.send(forge(plain())).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(app.send(forge(get(&apple.genuine()))).await.status(), StatusCode::OK);
    assert_eq!(app.device().evidence(), &Evidence::APPLE);
    assert_ne!(app.device().digest(), stolen.digest());
    assert_eq!(apple.calls(), 2);
}

#[tokio::test]
async fn r28_credential_headers_do_not_reach_the_inner_service() {
    let apple = Apple::new();
    let layer = apple
        .layer()
        .with_token_source(HeaderToken::default())
        .add_token_source(BearerToken::new())
        .with_debug_tokens(debug_tokens());
    let token = apple.genuine();
    let bearer = format!("Bearer part.metadata.{token}");
    let request = || with(with(get(&token), "authorization", &bearer), "x-debug-token", DEBUG_SECRET);

    for enforcement in [Enforcement::Enforce, Enforcement::Monitor] {
        let app = App::new(&layer.clone().with_enforcement(enforcement));
        for _ in ["miss", "hit"] {
            assert_eq!(app.send(request()).await.status(), StatusCode::OK);
            let headers = app.inner.last().headers;
            assert_eq!(headers.len(), 1, "{headers:?}");
            assert_eq!(headers["authorization"], "Bearer part.metadata");
            assert!(headers["authorization"].is_sensitive());
        }
    }
    assert_eq!(apple.calls(), 1);

    let app = App::new(&layer.with_forwarded_credentials(true));
    assert_eq!(app.send(with(request(), "accept", "*/*")).await.status(), StatusCode::OK);
    let headers = app.inner.last().headers;
    assert_eq!(headers[TOKEN_HEADER], token);
    assert_eq!(headers["authorization"], bearer);
    assert_eq!(headers["x-debug-token"], DEBUG_SECRET);
    for (name, value) in &headers {
        assert_eq!(value.is_sensitive(), name != "accept", "{name}");
    }
    assert_eq!(apple.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn r29_nothing_that_is_printed_holds_a_secret() {
    let log = Log::default();
    let _guard = log.listen(tracing::Level::TRACE);

    let apple = Apple::new();
    let layer = apple.layer().with_debug_tokens(debug_tokens());
    let app = App::new(&layer);
    let token = apple.genuine();
    let mut secrets = vec![token.clone(), DEBUG_SECRET.to_owned()];
    let mut printed = Vec::new();
    let replies = [
        Reply::normal(),
        Reply::status(400).body(format!("unexpected {token}")),
        Reply::status(401).body("Unable to verify authorization token"),
        Reply::status(403),
        Reply::status(429),
        Reply::status(503),
        Reply::reset(),
        Reply::hang(),
        Reply::oversized(1 << 20),
        Reply::normal().cut_short(),
    ];
    for reply in replies {
        apple.fake.always(reply);
        let token = apple.genuine();
        let response = app.get(&token).await;
        printed.push(format!("{response:?} {:?}", response.body()));
        secrets.push(token);
    }
    let malformed = format!("{token}!");
    printed.push(format!("{:?}", app.get(&malformed).await));
    apple.fake.clear();
    assert_eq!(app.send(with(plain(), "x-debug-token", DEBUG_SECRET)).await.status(), StatusCode::OK);
    assert_eq!(app.status(&token).await, StatusCode::OK);

    let pem = apple.fake.private_key().to_pem().to_string();
    let key_lines = pem.lines().filter(|line| !line.starts_with('-')).map(str::to_owned);
    secrets.extend(key_lines);
    // How every JWT begins.
    secrets.push("eyJ".to_owned());
    let device_token: DeviceToken = token.parse().unwrap();
    let bad_key = Credentials::from_pem("TEAM123456", "KEY1234567", &pem[..pem.len() / 2]).failure();
    let error = apple.client.validate(&device_token, Environment::Production).await;
    printed.push(format!(
        "{:?} {:?} {device_token:?} {bad_key:?} {bad_key} {error:?}",
        app.device(),
        apple.client
    ));
    printed.push(format!("{:?} {layer:?} {:?} {:?}", apple.fake.credentials(), apple.fake, debug_tokens()));
    let logged = log.take();
    assert!(logged.contains("outcome=\"verified\""), "the log was captured");
    printed.push(logged);

    for text in &printed {
        for secret in &secrets {
            assert!(!text.contains(&**secret), "a secret in {text}");
        }
    }
    // One for each reply, one more for the 401, the 503 and the silence each, and the last two. The 403 finds a
    // provider token that was replaced just now.
    assert_eq!(apple.calls(), 15);
}

#[tokio::test]
async fn r30_debug_tokens_are_visible_expire_and_never_win_over_a_device_token() {
    let apple = Apple::new();
    let now = SystemTime::now();
    let tokens = debug_tokens()
        .add_expiring("old", "an-expired-debug-token", now - Duration::from_secs(1))
        .unwrap()
        .with_header(HeaderName::from_static("x-proxed-test-key"));
    let app = App::new(&apple.layer().with_debug_tokens(tokens));
    let debug = |secret: &str| with(plain(), "x-proxed-test-key", secret);

    for request in [debug(DEBUG_SECRET), get(DEBUG_SECRET)] {
        assert_eq!(app.send(request).await.status(), StatusCode::OK);
        assert_eq!(app.evidence(), Evidence::debug_token("ci"));
        assert_eq!(app.evidence().to_string(), "debug-token:ci");
        let error = apple.client.query_bits(&app.device()).await.failure();
        assert_eq!(error.kind(), tower_devicecheck::BitsErrorKind::NoDeviceToken);
    }
    for secret in ["an-expired-debug-token", "debug-secret-7d9f1c6f", "", "ci"] {
        let response = app.send(debug(secret)).await;
        assert_eq!(rejection(&response), Rejection::MissingToken, "{secret:?}");
    }
    assert_eq!(apple.calls(), 0);

    let together = |token: &str| with(get(token), "x-proxed-test-key", DEBUG_SECRET);
    assert_eq!(app.send(together(&apple.fake.forged_token())).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(app.send(together("not a token")).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(app.send(together(&apple.genuine())).await.status(), StatusCode::OK);
    assert_eq!(app.evidence(), Evidence::APPLE);
    assert_eq!(apple.calls(), 2);
}

#[tokio::test]
async fn r31_the_testing_feature_changes_no_decision() {
    // This binary is built with the feature. What it adds, a fake's key above all, is not trusted by anyone
    // who was not given it.
    let (ours, theirs) = (FakeApple::new(), FakeApple::new());
    let client = AppleClient::builder(ours.credentials()).transport(theirs.transport()).build().unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    let response = app.get(&theirs.genuine_token(Environment::Production)).await;
    assert_eq!(rejection(&response), Rejection::Misconfigured);
    assert_eq!((ours.calls(), theirs.calls()), (0, 2));

    let defaults = AppleClient::new(ours.credentials()).unwrap();
    let hosts = format!("{defaults:?}");
    assert!(hosts.contains("https://api.devicecheck.apple.com"), "{hosts}");
    assert!(hosts.contains("https://api.development.devicecheck.apple.com"), "{hosts}");
}

#[tokio::test]
async fn r32_the_client_signs_with_both_crypto_features_on() {
    // Both back ends are in this binary; which one signs was chosen when the crate was built.
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!((apple.calls(), apple.fake.provider_tokens()), (1, 1));
}
