//! The operator's own mistakes: a key that the provider refuses, and settings that hold secrets.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use axum::{
    http::{Method, StatusCode},
    response::IntoResponse,
};
use serde_json::{Value, json};
use tower_devicecheck::{
    split_key::{Limits as KeyLimits, MemorySplitKeyStore, Splitter, gateway::Refusals},
    testing::FakeApple,
};
use tracing::Level;

use super::{ADMIN, CHAT, Gateway, KEY, ai_gateway::Limits, code, provider, settings::KeyFile};
use crate::support::{Log, example};

pub(super) async fn usage(gateway: &Gateway) -> Value {
    let request = gateway.client.get(format!("{}/usage", gateway.url));
    let response = request.header("authorization", format!("Bearer {ADMIN}")).send().await.unwrap();
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

#[tokio::test]
async fn w12_a_refusal_of_the_operators_key_is_no_401_and_is_told_once() {
    let status = Arc::new(AtomicU16::new(401));
    let (url, seen) = {
        let status = Arc::clone(&status);
        provider(move |_| {
            let status = StatusCode::from_u16(status.load(Ordering::SeqCst)).unwrap();
            let headers = [("www-authenticate", "Bearer"), ("x-request-id", "req_1")];
            let body = json!({ "error": { "message": format!("Incorrect API key provided: {KEY}") } });
            async move { (status, headers, body.to_string()).into_response() }
        })
        .await
    };
    let gateway = Gateway::new(&url, Limits::default()).await;
    assert_eq!(usage(&gateway).await["refused_by_provider"], json!([]));
    let log = Log::default();
    let _guard = log.listen(Level::INFO);
    let split = gateway.split.record().split().to_string();
    for (round, refusal) in [401, 407, 401].into_iter().enumerate() {
        status.store(refusal, Ordering::SeqCst);
        let response = gateway.post(CHAT).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{refusal}");
        assert!(!response.headers().contains_key("www-authenticate"), "{refusal}");
        assert_eq!(response.headers()["x-request-id"], "req_1", "{refusal}");
        // The SDKs would repeat it.
        assert_eq!(response.headers()["x-should-retry"], "false", "{refusal}");
        let text = response.text().await.unwrap();
        let problem: Value = serde_json::from_str(&text).unwrap();
        // In the shape that the SDK reads, as all answers of the gateway.
        assert_eq!(problem["error"]["code"], "key_refused_by_provider", "{refusal}");
        assert!(!text.contains("sk-proj"), "{text}");

        let text = log.take();
        let errors: Vec<_> = text.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), usize::from(round == 0), "{text}");
        for line in errors {
            assert!(["app", "openai", &split, "401"].iter().all(|word| line.contains(word)), "{line}");
        }
        assert!(!text.contains("sk-proj") && !text.contains(gateway.part()), "{text}");
    }
    let marked = usage(&gateway).await["refused_by_provider"].clone();
    assert_eq!(marked.as_array().unwrap().len(), 1, "{marked}");
    for (field, expected) in [
        ("project", json!("app")),
        ("split", json!(split)),
        ("provider", json!("openai")),
        ("count", json!(3)),
        ("status", json!(401)),
    ] {
        assert_eq!(marked[0][field], expected, "{field}");
    }
    assert!(!marked.to_string().contains("sk-proj"));
    assert_eq!(seen.lock().unwrap().len(), 3);

    // Other errors say nothing about the key.
    for other in [400, 404, 429, 500, 503] {
        status.store(other, Ordering::SeqCst);
        assert_eq!(gateway.post(CHAT).send().await.unwrap().status(), other);
    }
    assert_eq!(usage(&gateway).await["refused_by_provider"], marked);
    assert!(!log.take().contains("ERROR"));
}

#[tokio::test(start_paused = true)]
async fn w12_an_incident_is_over_when_the_key_works_and_was_not_refused_for_a_minute() {
    let keys = MemorySplitKeyStore::new();
    let split = Splitter::new().issue(&keys, "app", "openai", KEY, KeyLimits::none()).await.unwrap();
    let key = Splitter::new().open(split.record(), split.client_part()).unwrap();
    let refusals = Refusals::new();
    let list = || serde_json::from_str::<Value>(&refusals.to_json()).unwrap();
    let log = Log::default();
    let _guard = log.listen(Level::INFO);
    // Some calls are refused and others are not: one incident.
    for _ in 0..3 {
        refusals.refused(&key, StatusCode::FORBIDDEN);
        tokio::time::advance(Duration::from_secs(59)).await;
        refusals.accepted(&key);
    }
    assert_eq!(list()[0]["count"], 3);
    assert_eq!(log.take().lines().count(), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    refusals.accepted(&key);
    refusals.accepted(&key);
    assert_eq!(list(), json!([]));
    let text = log.take();
    assert!(text.lines().count() == 1 && text.contains("refused=3"), "{text}");
    refusals.refused(&key, StatusCode::UNAUTHORIZED);
    assert!(log.take().contains("ERROR"));
}

/// Google says it with a 400, and puts the error into a list where a stream was wanted.
#[tokio::test]
async fn w12_google_refuses_a_key_with_400() {
    let error = |reason: &str| {
        json!({ "error": {
            "code": 400, "status": "INVALID_ARGUMENT", "message": "API key not valid. Please pass a valid API key.",
            "details": [{ "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason }],
        } })
    };
    for (body, status) in [
        (error("API_KEY_INVALID"), 502),
        (json!([error("API_KEY_INVALID")]), 502),
        (error("FIELD_INVALID"), 400),
        (json!({ "error": { "message": "you wrote API_KEY_INVALID" } }), 400),
        (json!([]), 400),
    ] {
        let (url, _) = provider(move |_| {
            let body = body.to_string();
            async { (StatusCode::BAD_REQUEST, body).into_response() }
        })
        .await;
        let gateway = Gateway::new(&url, Limits::default()).await;
        assert_eq!(gateway.post(CHAT).send().await.unwrap().status(), status);
    }
}

#[tokio::test]
async fn w12_a_head_request_is_told_the_same() {
    let (url, _) = provider(async |_| StatusCode::UNAUTHORIZED.into_response()).await;
    let gateway = Gateway::new(&url, Limits::default()).await;
    let request = gateway.client.request(Method::HEAD, format!("{}{CHAT}", gateway.url));
    let response = request.header("authorization", format!("Bearer {}", gateway.credential())).send();
    assert_eq!(response.await.unwrap().status(), StatusCode::BAD_GATEWAY);
    let response = gateway.post(CHAT).send().await.unwrap();
    assert_eq!(code(response).await, "key_refused_by_provider");
}

pub(super) fn start(program: &str, variables: &[(&str, &str)]) -> Command {
    let mut process = Command::new(example(program));
    process.env_clear().env("LISTEN", "127.0.0.1:0").env("RUST_LOG", "debug").stdin(Stdio::null());
    process.envs(variables.iter().copied());
    process
}

/// Each value is wrong, so that the program ends with an error; the secret is not in what it says.
#[test]
fn w16_no_setting_that_is_refused_is_printed() {
    const SECRET: &str = "MARKERmarkerMARKERmarker";
    let fake = FakeApple::new();
    let pem = fake.private_key().to_pem();
    let line = pem.lines().nth(1).unwrap();
    let apple = [("APPLE_JWT_ISS", fake.team_id()), ("APPLE_JWT_KID", fake.key_id())];
    let with_key = [apple[0], apple[1], ("APPLE_JWT_PRIVATE_KEY", &*pem)];
    let no_keys = KeyFile::new("w16");
    let no_keys = ("KEYS_FILE", &*no_keys.0);
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let keys = folder.join(format!("w16-wrong-{}.json", std::process::id()));
    std::fs::write(&keys, format!("{{\"format\":1,\"keys\":[{{\"{SECRET}\":\"{SECRET}\"}}]}}")).unwrap();

    let urls = [
        "https://user:{}@api.example/v1",
        "https://{}@api.example/v1",
        "https://{}:x@api.example/v1",
        "https://api.example/v1?key={}",
        "https://api.example/v1#{}",
        "http://user:{}@api.example/v1",
        "ftp://user:{}@api.example/v1",
        "https://user:{}/x@api.example/v1",
        "https://user:1/{}@api.example/v1",
        "https://user:1?{}@api.example/v1",
        "https:/user:{}@",
        "https//user:{}@api.example/v1",
        "user:{}@api.example/v1",
        "{}",
        "sk-proj-{}",
        "Bearer {}",
    ];
    for url in urls {
        let url = url.replace("{}", SECRET);
        refused("ai_gateway", &[("OPENAI_URL", &url)], "OPENAI_URL", SECRET);
        let variables =
            [with_key[0], with_key[1], with_key[2], no_keys, ("DEVICECHECK_PRODUCTION_URL", &*url)];
        refused("ai_gateway", &variables, "", SECRET);
    }
    for name in ["ANTHROPIC_URL", "GOOGLE_URL"] {
        refused("ai_gateway", &[(name, &urls[0].replace("{}", SECRET))], name, SECRET);
    }
    for name in [
        "MAX_BODY_BYTES",
        "HEAD_TIMEOUT",
        "IDLE_TIMEOUT",
        "IDLE_CONNECTIONS",
        "LISTEN",
        "REQUEST_HEAD_TIMEOUT",
        "SHUTDOWN_TIMEOUT",
        "SINGLE_USE",
        "FLEET_SINGLE_FLIGHT",
        "REDIS_URL",
        "KEYS_FILE",
        "PROVIDERS_FILE",
        "PROVIDER_CA_FILE",
    ] {
        refused("ai_gateway", &[(name, &format!("redis+x://:{SECRET}@host/"))], "", SECRET);
    }
    for (name, value) in [
        ("REQUEST_HEAD_TIMEOUT", "0"),
        ("REQUEST_HEAD_TIMEOUT", "3601"),
        ("SHUTDOWN_TIMEOUT", "-1"),
        ("SHUTDOWN_TIMEOUT", "18446744073709551616"),
    ] {
        refused("ai_gateway", &[(name, value)], name, SECRET);
    }
    refused("ai_gateway", &[("TEST_KEY", &format!("{SECRET} {SECRET}"))], "TEST_KEY", SECRET);
    let fake_apple = ("ALLOW_FAKE_APPLE", "1");
    refused("ai_gateway", &[("KEYS_FILE", keys.to_str().unwrap()), fake_apple], "line 1", SECRET);
    for url in ["redis://:{}@host/none", "redis://user:{}@/", "redis://host/?x={}", "redis://:{}@host:x/"] {
        refused("ai_gateway", &[("REDIS_URL", &url.replace("{}", SECRET)), fake_apple], "", SECRET);
    }
    // The text of the key where its path should be, and in the places of the ids.
    for text in [&*pem, line, SECRET] {
        let file = [apple[0], apple[1], no_keys, ("APPLE_JWT_PRIVATE_KEY_FILE", text)];
        refused("ai_gateway", &file, "APPLE_JWT_PRIVATE_KEY_FILE", line);
        refused("ai_gateway", &file, "APPLE_JWT_PRIVATE_KEY_FILE", SECRET);
    }
    for place in 0..2 {
        let mut variables = [with_key[0], with_key[1], with_key[2], no_keys, ("MAX_BODY_BYTES", "x")];
        variables[place].1 = SECRET;
        refused("ai_gateway", &variables, "", SECRET);
    }
    std::fs::remove_file(keys).unwrap();
}

/// After a client part, it would be cut at its last dot.
#[test]
fn w08_a_test_key_with_a_dot_is_refused_at_the_start() {
    refused(
        "ai_gateway",
        &[("TEST_KEY", "MARKER.marker.MARKER")],
        "TEST_KEY: a test key must not have a dot",
        "MARKER.",
    );
}

/// An SDK that repeats a request by itself would get 401 for its spent token, and show that.
#[tokio::test]
async fn w17_sdks_do_not_repeat_requests_whose_token_is_spent() {
    let status = Arc::new(AtomicU16::new(429));
    let (url, seen) = {
        let status = Arc::clone(&status);
        provider(move |_| {
            let status = StatusCode::from_u16(status.load(Ordering::SeqCst)).unwrap();
            async move { (status, [("x-should-retry", "true"), ("retry-after", "7")], "{}").into_response() }
        })
        .await
    };
    let keys = MemorySplitKeyStore::new();
    let providers = super::providers_at(&url);
    let once =
        Gateway::put_together(("openai", KEY), providers, keys, KeyLimits::none(), |settings, gate| {
            settings.single_use = true;
            gate.with_single_use(tower_devicecheck::replay::MemoryReplayGuard::new())
        });
    let once = once.await;
    let often = Gateway::new(&url, Limits::default()).await;
    for (code, retried) in
        [(408, true), (409, true), (429, true), (500, true), (503, true), (400, false), (200, false)]
    {
        status.store(code, Ordering::SeqCst);
        let response = once.post(CHAT).send().await.unwrap();
        assert_eq!(response.status(), code);
        assert_eq!(response.headers()["x-should-retry"], if retried { "false" } else { "true" }, "{code}");
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(often.post(CHAT).send().await.unwrap().headers()["x-should-retry"], "true", "{code}");
    }
    let before = seen.lock().unwrap().len();
    let credential = format!("Bearer {}", once.credential());
    let send = async || {
        let request = once.client.post(format!("{}{CHAT}", once.url));
        request.header("authorization", &credential).send().await.unwrap()
    };
    assert_eq!(send().await.status(), StatusCode::OK);
    let again = send().await;
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED);
    // Our own refusals say nothing of it: another token may do.
    assert!(!again.headers().contains_key("x-should-retry"));
    assert_eq!(seen.lock().unwrap().len() - before, 1);
    assert_eq!(once.apple.calls(), 8);
}

/// A fake Apple gives genuine tokens to all that ask it.
#[test]
fn w09_a_fake_apple_opens_no_keys_of_the_operators_own() {
    let keys =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("w09-{}.json", std::process::id()));
    std::fs::write(&keys, r#"{"format":1,"keys":[]}"#).unwrap();
    let keys = keys.to_str().unwrap();
    let redis = ("REDIS_URL", "redis://127.0.0.1:1/");
    let cases: [&[(&str, &str)]; 4] = [
        &[("KEYS_FILE", keys)],
        &[("KEYS_IN_REDIS", "1"), redis],
        // The keys are made up, and the verdicts would be shared with others.
        &[redis],
        &[("KEYS_FILE", keys), ("ALLOW_FAKE_APPLE", "0")],
    ];
    for variables in cases {
        refused("ai_gateway", variables, "a fake Apple would admit anybody", "no secret");
    }
    // Projects have teams of their own.
    refused("ai_gateway", &[("PROJECTS_FILE", keys), ("KEYS_FILE", keys)], "PROJECTS_FILE", "fake Apple");
    // With the switch it starts, until it cannot listen.
    refused("ai_gateway", &[("KEYS_FILE", keys), ("ALLOW_FAKE_APPLE", "1")], "LISTEN", "fake Apple would");
    // Without keys of the operator's own, nothing is wanted.
    refused("ai_gateway", &[], "LISTEN", "fake Apple would");
    std::fs::remove_file(keys).unwrap();
}

/// Runs a program that must fail, and looks at all that it prints.
pub(super) fn refused(program: &str, variables: &[(&str, &str)], named: &str, secret: &str) {
    // The program cannot listen there, so that it ends also where it takes the value.
    let mut all = vec![("LISTEN", "nowhere")];
    all.extend(variables);
    let output = start(program, &all).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    crate::captured::printed(&text);
    assert!(!output.status.success(), "{variables:?}: {text}");
    assert!(text.contains(named), "{variables:?}: {text}");
    assert!(!text.contains(secret), "{variables:?}: {text}");
}

/// The commands that it prints for trying it name the variable, where the operator has set it.
#[test]
fn w16_the_operators_admin_token_is_not_printed() {
    let secret = "an-admin-token-of-the-operators-own";
    let mut process = start("ai_gateway", &[("ADMIN_TOKEN", secret)])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut printed = String::new();
    for line in lines {
        printed += &line;
        if line.contains("/usage -H") {
            break;
        }
    }
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(printed.contains("/usage") && printed.contains("$ADMIN_TOKEN"), "{printed}");
    assert!(!printed.contains(secret), "{printed}");
}

#[test]
fn w16_a_url_in_apples_place_is_logged_without_what_is_refused_later() {
    let fake = FakeApple::new();
    let (pem, no_keys) = (fake.private_key().to_pem(), KeyFile::new("w16-url"));
    let output = start(
        "ai_gateway",
        &[
            ("APPLE_JWT_ISS", fake.team_id()),
            ("APPLE_JWT_KID", fake.key_id()),
            ("APPLE_JWT_PRIVATE_KEY", &pem),
            ("KEYS_FILE", &no_keys.0),
            ("DEVICECHECK_PRODUCTION_URL", "https://user:hidden@apple.example:8443/base?key=hidden"),
        ],
    )
    .output()
    .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    crate::captured::printed(&text);
    assert!(!output.status.success() && !text.contains("hidden"), "{text}");
    assert!(text.contains("DEVICECHECK_PRODUCTION_URL"), "{text}");
}
