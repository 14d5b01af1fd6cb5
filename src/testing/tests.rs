use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::testing::{endpoint::Endpoint, fake_apple::FakeApple, keys::PrivateKey, script::Reply};
use crate::{BoxError, gate::routing::Environment};

const PRODUCTION: &str = "https://api.devicecheck.apple.com";
const DEVELOPMENT: &str = "https://api.development.devicecheck.apple.com";
const HOUR: Duration = Duration::from_secs(60 * 60);

fn millis() -> u64 {
    u64::try_from(UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

pub(super) fn provider_token(apple: &FakeApple) -> String {
    let key = apple.private_key();
    key.provider_token(apple.team_id(), apple.key_id(), SystemTime::now())
}

pub(super) fn body(token: &str) -> Value {
    json!({ "device_token": token, "transaction_id": "t-1", "timestamp": millis() })
}

fn request(base: &str, endpoint: Endpoint, provider_token: &str, body: &Value) -> Request<Bytes> {
    Request::post(format!("{base}{}", endpoint.path()))
        .header("authorization", format!("Bearer {provider_token}"))
        .body(body.to_string().into())
        .unwrap()
}

async fn send(apple: &FakeApple, request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
    apple.transport().oneshot(request).await
}

/// Status and text of an answer to a well-made call.
async fn ask(apple: &FakeApple, endpoint: Endpoint, body: &Value) -> (u16, String) {
    let request = request(PRODUCTION, endpoint, &provider_token(apple), body);
    answer(&send(apple, request).await.unwrap())
}

fn answer(response: &Response<Bytes>) -> (u16, String) {
    assert_eq!(response.headers()["x-b3-traceid"].len(), 16);
    let text = String::from_utf8(response.body().to_vec()).unwrap();
    (response.status().as_u16(), text)
}

#[tokio::test]
async fn provider_tokens_are_judged_first() {
    const BAD: (u16, &str) = (400, "Missing or badly formatted authorization token");
    const UNKNOWN: (u16, &str) = (401, "Unable to verify authorization token");
    const GOOD: (u16, &str) = (400, "Missing or incorrectly formatted device token payload");

    let apple = FakeApple::new();
    let (team, id) = (apple.team_id(), apple.key_id());
    let now = SystemTime::now();
    let iat = UNIX_EPOCH.elapsed().unwrap().as_secs();
    let key = apple.private_key();
    let good = key.provider_token(team, id, now);
    let sign = |header: Value, claims: Value| key.sign(&header, &claims);
    let (head, signature) = good.rsplit_once('.').unwrap();
    let other_signature = {
        let other = key.provider_token(team, id, now - HOUR / 2);
        other.rsplit_once('.').unwrap().1.to_owned()
    };

    let cases: &[(&str, Option<String>, (u16, &str))] = &[
        ("good", Some(format!("Bearer {good}")), GOOD),
        ("scheme in lower case", Some(format!("bearer {good}")), GOOD),
        (
            "nearly an hour old",
            Some(format!("Bearer {}", key.provider_token(team, id, now - HOUR + Duration::from_secs(60)))),
            GOOD,
        ),
        (
            "other claims besides",
            Some(format!(
                "Bearer {}",
                sign(
                    json!({ "alg": "ES256", "kid": id, "typ": "JWT" }),
                    json!({ "iss": team, "iat": iat, "exp": iat + 600, "sub": "org.example.app" })
                )
            )),
            GOOD,
        ),
        ("no header", None, BAD),
        ("no scheme", Some(good.clone()), BAD),
        ("another scheme", Some(format!("Basic {good}")), BAD),
        ("no JWT", Some("Bearer token".to_owned()), BAD),
        ("two parts", Some(format!("Bearer {head}")), BAD),
        ("four parts", Some(format!("Bearer {good}.x")), BAD),
        ("no base64", Some(format!("Bearer {head}.!{signature}")), BAD),
        (
            "another algorithm",
            Some(format!(
                "Bearer {}",
                sign(json!({ "alg": "none", "kid": id }), json!({ "iss": team, "iat": iat }))
            )),
            BAD,
        ),
        (
            "no key id",
            Some(format!("Bearer {}", sign(json!({ "alg": "ES256" }), json!({ "iss": team, "iat": iat })))),
            BAD,
        ),
        (
            "over an hour old",
            Some(format!("Bearer {}", key.provider_token(team, id, now - HOUR - Duration::from_secs(60)))),
            UNKNOWN,
        ),
        ("of the future", Some(format!("Bearer {}", key.provider_token(team, id, now + HOUR))), UNKNOWN),
        (
            "no time",
            Some(format!("Bearer {}", sign(json!({ "alg": "ES256", "kid": id }), json!({ "iss": team })))),
            UNKNOWN,
        ),
        ("another team", Some(format!("Bearer {}", key.provider_token("TEAM654321", id, now))), UNKNOWN),
        ("another key id", Some(format!("Bearer {}", key.provider_token(team, "KEY7654321", now))), UNKNOWN),
        (
            "another key",
            Some(format!("Bearer {}", PrivateKey::generate().provider_token(team, id, now))),
            UNKNOWN,
        ),
        ("another token's signature", Some(format!("Bearer {head}.{other_signature}")), UNKNOWN),
        ("half a signature", Some(format!("Bearer {head}.{}", &signature[..40])), UNKNOWN),
    ];
    for (name, header, expected) in cases {
        let mut request = request(PRODUCTION, Endpoint::Validate, "", &body(&apple.forged_token()));
        request.headers_mut().remove("authorization");
        if let Some(header) = header {
            request.headers_mut().insert("authorization", header.parse().unwrap());
        }
        let (status, text) = answer(&send(&apple, request).await.unwrap());
        assert_eq!((status, text.as_str()), *expected, "{name}");
    }
}

#[tokio::test]
async fn bodies_are_judged_by_endpoint() {
    const DEVICE_TOKEN: (u16, &str) = (400, "Missing or incorrectly formatted device token payload");
    const TIMESTAMP: (u16, &str) = (400, "Missing or incorrectly formatted time stamp");
    const BITS: (u16, &str) = (400, "Missing or incorrectly formatted bits");
    const PAYLOAD: (u16, &str) = (400, "Bad Payload");
    const OK: (u16, &str) = (200, "");
    use Endpoint::{QueryBits, UpdateBits, Validate};

    let apple = FakeApple::new();
    let genuine = apple.genuine_token(Environment::Production);
    let expired = apple.genuine_token(Environment::Production);
    apple.expire(&expired);
    let with = |name: &str, value: Value| {
        let mut body = body(&genuine);
        body[name] = value;
        body
    };
    let without = |name: &str| {
        let mut body = body(&genuine);
        body.as_object_mut().unwrap().remove(name);
        body
    };
    let day = 24 * 60 * 60 * 1000;
    let cases: &[(&str, Endpoint, Value, (u16, &str))] = &[
        ("genuine", Validate, body(&genuine), OK),
        ("genuine again", Validate, body(&genuine), OK),
        ("never set", QueryBits, body(&genuine), (200, "Failed to find bit state")),
        ("unknown fields", Validate, with("bit0", json!("no")), OK),
        ("forged", Validate, body(&apple.forged_token()), DEVICE_TOKEN),
        ("expired", Validate, body(&expired), DEVICE_TOKEN),
        ("garbage", Validate, body("token"), DEVICE_TOKEN),
        ("line break", Validate, body(&format!("{genuine}\n")), DEVICE_TOKEN),
        ("of development", Validate, body(&apple.genuine_token(Environment::Development)), DEVICE_TOKEN),
        ("no device token", Validate, without("device_token"), DEVICE_TOKEN),
        ("a number for it", Validate, with("device_token", json!(1)), DEVICE_TOKEN),
        ("no body", Validate, Value::Null, PAYLOAD),
        ("a list", Validate, json!([]), PAYLOAD),
        ("no transaction", Validate, without("transaction_id"), PAYLOAD),
        ("empty transaction", Validate, with("transaction_id", json!("")), PAYLOAD),
        ("no time stamp", Validate, without("timestamp"), TIMESTAMP),
        ("text", Validate, with("timestamp", json!(millis().to_string())), TIMESTAMP),
        ("seconds", Validate, with("timestamp", json!(millis() / 1000)), TIMESTAMP),
        ("fraction", Validate, with("timestamp", json!(millis() as f64 + 0.5)), TIMESTAMP),
        ("two days old", Validate, with("timestamp", json!(millis() - 2 * day)), TIMESTAMP),
        ("negative", Validate, with("timestamp", json!(-1)), TIMESTAMP),
        ("an hour ahead", Validate, with("timestamp", json!(millis() + day / 24)), OK),
        ("no bits", UpdateBits, body(&genuine), BITS),
        ("a number", UpdateBits, with("bit0", json!(1)), BITS),
        ("null", UpdateBits, with("bit1", Value::Null), BITS),
        ("a bit", UpdateBits, with("bit1", json!(true)), OK),
    ];
    for (name, endpoint, body, expected) in cases {
        let (status, text) = ask(&apple, *endpoint, body).await;
        assert_eq!((status, text.as_str()), *expected, "{name}");
    }
}

#[tokio::test]
async fn paths_methods_and_environments() {
    let apple = FakeApple::new();
    let token = apple.genuine_token(Environment::Development);
    let cases: &[(&str, &str, String, u16)] = &[
        ("development", "POST", format!("{DEVELOPMENT}/v1/validate_device_token"), 200),
        ("production", "POST", format!("{PRODUCTION}/v1/validate_device_token"), 400),
        ("no host", "POST", "/v1/validate_device_token".to_owned(), 400),
        ("GET", "GET", format!("{DEVELOPMENT}/v1/validate_device_token"), 405),
        ("no path", "POST", DEVELOPMENT.to_owned(), 404),
        ("another path", "POST", format!("{DEVELOPMENT}/v1/validate"), 404),
    ];
    for (name, method, uri, status) in cases {
        let request = Request::builder()
            .method(*method)
            .uri(uri)
            .header("authorization", format!("Bearer {}", provider_token(&apple)))
            .body(body(&token).to_string().into())
            .unwrap();
        let response = send(&apple, request).await.unwrap();
        assert_eq!(response.status().as_u16(), *status, "{name}");
    }
    assert_eq!(apple.calls(), cases.len());
    assert_eq!(apple.calls_in(Environment::Production), 2);
    assert_eq!(apple.calls_to(Endpoint::Validate), 4);
    apple.reset_counts();
    assert_eq!((apple.calls(), apple.provider_tokens()), (0, 0));
}

#[tokio::test]
async fn bits_belong_to_the_device() {
    let apple = FakeApple::new();
    let first = apple.genuine_token_of("mary's phone", Environment::Production);
    let second = apple.genuine_token_of("mary's phone", Environment::Production);
    let other = apple.genuine_token(Environment::Production);
    assert_eq!(apple.bits(&first), None);

    let steps: &[(&str, Value, (bool, bool))] = &[
        ("one", json!({ "bit1": true }), (false, true)),
        ("the other", json!({ "bit0": true }), (true, true)),
        ("both", json!({ "bit0": false, "bit1": false }), (false, false)),
    ];
    for (name, update, expected) in steps {
        let mut update = update.clone();
        update.as_object_mut().unwrap().extend(body(&first).as_object().unwrap().clone());
        assert_eq!(ask(&apple, Endpoint::UpdateBits, &update).await, (200, String::new()), "{name}");

        let (status, text) = ask(&apple, Endpoint::QueryBits, &body(&second)).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (status, &answer["bit0"], &answer["bit1"]),
            (200, &json!(expected.0), &json!(expected.1)),
            "{name}"
        );
        assert_eq!(answer["last_update_time"].as_str().unwrap().len(), "2025-01".len(), "{name}");
        assert_eq!(apple.bits(&second), Some(*expected), "{name}");
    }
    assert_eq!(ask(&apple, Endpoint::QueryBits, &body(&other)).await.1, "Failed to find bit state");
}

#[tokio::test]
async fn keys_rotate() {
    let apple = FakeApple::new();
    let (old, new) = (apple.private_key().clone(), PrivateKey::generate());
    let token = apple.genuine_token(Environment::Production);
    let status = async |key: &PrivateKey, id: &str| {
        let provider_token = key.provider_token(apple.team_id(), id, SystemTime::now());
        let request = request(PRODUCTION, Endpoint::Validate, &provider_token, &body(&token));
        send(&apple, request).await.unwrap().status().as_u16()
    };
    assert_eq!(status(&new, "KEYNEW").await, 401);
    apple.accept_key("KEYNEW", &new);
    assert_eq!((status(&old, apple.key_id()).await, status(&new, "KEYNEW").await), (200, 200));
    apple.revoke_key(apple.key_id());
    assert_eq!((status(&old, apple.key_id()).await, status(&new, "KEYNEW").await), (401, 200));
    apple.set_clock_ahead(2 * HOUR);
    assert_eq!(status(&new, "KEYNEW").await, 401);
}

#[tokio::test(start_paused = true)]
async fn scripted_replies_in_process() {
    let apple = FakeApple::new();
    apple.set_token_lifetime(Duration::MAX);
    let token = apple.genuine_token(Environment::Production);
    let call =
        || send(&apple, request(PRODUCTION, Endpoint::Validate, &provider_token(&apple), &body(&token)));

    apple.script(Reply::status(429).header("retry-after", "7").body("Too Many Requests"));
    let response = call().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (429, &"7".parse().unwrap())
    );
    assert_eq!(response.body(), "Too Many Requests");

    let started = tokio::time::Instant::now();
    apple.script(Reply::normal().delay(HOUR));
    assert_eq!(call().await.unwrap().status(), 200);
    assert_eq!(started.elapsed(), HOUR);

    for (reply, kind) in [
        (Reply::reset(), io::ErrorKind::ConnectionReset),
        (Reply::normal().cut_short(), io::ErrorKind::UnexpectedEof),
    ] {
        apple.script(reply);
        let error = call().await.unwrap_err();
        assert_eq!(error.downcast_ref::<io::Error>().map(io::Error::kind), Some(kind));
    }

    apple.script(Reply::oversized(5000));
    assert_eq!(call().await.unwrap().body().len(), 5000);

    apple.script(Reply::hang());
    assert!(tokio::time::timeout(24 * HOUR, call()).await.is_err());

    for _ in 0..2 {
        apple.script(Reply::status(500));
    }
    apple.always(Reply::status(503));
    assert_eq!(apple.scripted(), 2);
    for status in [500, 500, 503, 503] {
        assert_eq!(call().await.unwrap().status(), status);
    }
    apple.clear();
    assert_eq!(call().now_or_never().unwrap().unwrap().status(), 200);
    assert_eq!(apple.calls(), 11);
}

#[tokio::test]
async fn a_given_key_and_token() {
    let key = PrivateKey::generate();
    let apple = FakeApple::with_key(&key, "A1B2C3D4E5", "F6G7H8I9J0");
    apple.accept_token("AgAA", "phone", Environment::Production);
    assert_eq!(ask(&apple, Endpoint::Validate, &body("AgAA")).await.0, 200);
    assert_eq!(PrivateKey::from_pem(&apple.private_key().to_pem()).unwrap().to_pem(), key.to_pem());
}

#[test]
fn debug_shows_no_secret() {
    let apple = FakeApple::new();
    let token = apple.genuine_token(Environment::Production);
    let pem = apple.private_key().to_pem();
    let shown = format!("{apple:?} {:?} {:?}", apple.transport(), apple.private_key());
    assert!(!shown.contains(&token) && !shown.contains(pem.lines().nth(1).unwrap()));
}
