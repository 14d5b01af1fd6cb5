//! The interface at which a fake Apple takes orders. Apple itself is served by [`FakeApple::serve_on`].

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_devicecheck::{
    Environment, UnknownEnvironment,
    testing::{Endpoint, FakeApple, Reply},
};

/// Every order, as commands to paste. `FAKE_APPLE` is the base URL of this interface.
pub(crate) const HELP: &str = "\
Orders that the fake Apple takes (\"$FAKE_APPLE\" is the URL of this page, without /fake):

# a new genuine token; both parameters are optional, tokens of one device share its bits
curl \"$FAKE_APPLE/fake/token?environment=production&device=one\"
# a forged token
curl \"$FAKE_APPLE/fake/forged\"
# a request with a new token
curl -H \"X-Apple-Device-Token: $(curl -s \"$FAKE_APPLE/fake/token\")\" http://127.0.0.1:8080/

# all tokens of a device expire; or one token, as the body
curl -X POST \"$FAKE_APPLE/fake/expire?device=one\"
curl \"$FAKE_APPLE/fake/expire\" -d \"$TOKEN\"
# the server's key is revoked, and accepted again; optional: key_id=KEY1234567
curl -X POST \"$FAKE_APPLE/fake/revoke\"
curl -X DELETE \"$FAKE_APPLE/fake/revoke\"

# an outage until further notice; instead of status: fault=hang, fault=reset
curl -X POST \"$FAKE_APPLE/fake/outage?status=503\"
# throttling: Apple names the time to come back
curl -X POST \"$FAKE_APPLE/fake/outage?status=429&retry_after_s=60\"
# an outage for each tenth call
curl -X POST \"$FAKE_APPLE/fake/outage?status=503&share=0.1\"
# slow, but well
curl -X POST \"$FAKE_APPLE/fake/outage?delay_ms=500\"
# well again
curl -X DELETE \"$FAKE_APPLE/fake/outage\"
# Apple's clock is two hours ahead
curl -X POST \"$FAKE_APPLE/fake/clock?ahead_s=7200\"

# the number of calls, and the numbers of each kind; counting starts anew
curl \"$FAKE_APPLE/fake/calls\"
curl \"$FAKE_APPLE/fake/counts\"
curl -X DELETE \"$FAKE_APPLE/fake/counts\"
";

pub(crate) fn app(apple: FakeApple) -> Router {
    Router::new()
        .route("/fake", get(HELP))
        .route("/fake/token", get(token).post(token))
        .route("/fake/forged", get(forged))
        .route("/fake/expire", post(expire))
        .route("/fake/revoke", post(revoke).delete(accept))
        .route("/fake/outage", post(outage).delete(end_outage))
        .route("/fake/clock", post(clock))
        .route("/fake/calls", get(calls))
        .route("/fake/counts", get(counts).delete(reset_counts))
        .with_state(apple)
}

type BadOrder = (StatusCode, String);

fn bad_order(reason: impl Into<String>) -> BadOrder {
    (StatusCode::BAD_REQUEST, reason.into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    environment: Option<String>,
    device: Option<String>,
}

async fn token(State(apple): State<FakeApple>, Query(order): Query<NewToken>) -> Result<String, BadOrder> {
    let environment = match order.environment {
        None => Environment::Production,
        Some(name) => name.parse().map_err(|error: UnknownEnvironment| bad_order(error.to_string()))?,
    };
    Ok(match order.device {
        None => apple.genuine_token(environment),
        Some(device) => apple.genuine_token_of(&device, environment),
    })
}

async fn forged(State(apple): State<FakeApple>) -> String {
    apple.forged_token()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expiry {
    device: Option<String>,
}

async fn expire(
    State(apple): State<FakeApple>,
    Query(order): Query<Expiry>,
    token: String,
) -> Result<StatusCode, BadOrder> {
    match (order.device, token.trim()) {
        (Some(device), "") => apple.expire_device(&device),
        (None, "") => return Err(bad_order("give a device, or a token as the body")),
        (None, token) => apple.expire(token),
        (Some(_), _) => return Err(bad_order("give a device or a token, not both")),
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key_id: Option<String>,
}

async fn revoke(State(apple): State<FakeApple>, Query(order): Query<Key>) -> StatusCode {
    apple.revoke_key(order.key_id.as_deref().unwrap_or(apple.key_id()));
    StatusCode::NO_CONTENT
}

async fn accept(State(apple): State<FakeApple>, Query(order): Query<Key>) -> StatusCode {
    apple.accept_key(order.key_id.as_deref().unwrap_or(apple.key_id()), apple.private_key());
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outage {
    status: Option<u16>,
    fault: Option<String>,
    delay_ms: Option<u64>,
    retry_after_s: Option<u64>,
    share: Option<f64>,
}

async fn outage(State(apple): State<FakeApple>, Query(order): Query<Outage>) -> Result<StatusCode, BadOrder> {
    let reply = match (order.status, order.fault.as_deref()) {
        (Some(status @ 200..=599), None) => Reply::status(status),
        (Some(status), None) => return Err(bad_order(format!("status {status} is not within 200 and 599"))),
        (None, Some("hang")) => Reply::hang(),
        (None, Some("reset")) => Reply::reset(),
        (None, Some(other)) => return Err(bad_order(format!("fault {other:?} is neither hang nor reset"))),
        (None, None) if order.delay_ms.is_some() => Reply::normal(),
        _ => return Err(bad_order("give one of status and fault, or delay_ms alone")),
    };
    let reply = reply.delay(Duration::from_millis(order.delay_ms.unwrap_or(0)));
    let reply = match order.retry_after_s {
        Some(seconds) if order.status.is_some() => reply.header("retry-after", &seconds.to_string()),
        Some(_) => return Err(bad_order("retry_after_s needs a status")),
        None => reply,
    };
    match order.share {
        None => apple.always(reply),
        Some(share) if (0.0..=1.0).contains(&share) => apple.share(share, reply),
        Some(share) => return Err(bad_order(format!("share {share} is not within 0 and 1"))),
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn end_outage(State(apple): State<FakeApple>) -> StatusCode {
    apple.clear();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    ahead_s: u64,
}

async fn clock(State(apple): State<FakeApple>, Query(order): Query<Clock>) -> StatusCode {
    apple.set_clock_ahead(Duration::from_secs(order.ahead_s));
    StatusCode::NO_CONTENT
}

async fn calls(State(apple): State<FakeApple>) -> String {
    apple.calls().to_string()
}

async fn counts(State(apple): State<FakeApple>) -> Json<Value> {
    Json(json!({
        "calls": apple.calls(),
        "production": apple.calls_in(Environment::Production),
        "development": apple.calls_in(Environment::Development),
        "validate": apple.calls_to(Endpoint::Validate),
        "query_bits": apple.calls_to(Endpoint::QueryBits),
        "update_bits": apple.calls_to(Endpoint::UpdateBits),
        "provider_tokens": apple.provider_tokens(),
    }))
}

async fn reset_counts(State(apple): State<FakeApple>) -> StatusCode {
    apple.reset_counts();
    StatusCode::NO_CONTENT
}
