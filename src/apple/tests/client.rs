use std::sync::{Arc, Mutex};
use std::{error::Error, time::Duration};

use bytes::Bytes;
use futures_util::future::{join, join_all};
use http::{Request, header::AUTHORIZATION};
use p256::{SecretKey, pkcs8::EncodePrivateKey};
use tower::service_fn;

use super::{
    NOT_GENUINE, TOKEN, TransportResult, apple, builder, credentials_of, device, script, status, token,
};
use crate::apple::bits::{BitsError, BitsErrorKind};
use crate::apple::credentials::Credentials;
use crate::gate::bits::{Bits, Month};
use crate::gate::decision::VerifiedDevice;
use crate::gate::error::VerifyErrorKind::{self, Misconfigured, Unavailable};
use crate::gate::evidence::Evidence;
use crate::gate::{credential::TokenDigest, rejection::Rejection, routing::Environment};
use crate::runtime::SystemTime;

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_share_one_provider_token() {
    let (sent, transport) = script(vec![|| status(200, "")]);
    let client = builder().transport(transport).build().unwrap();
    let token = token();
    let ask = || join_all((0..1000).map(|_| client.validate(&token, Environment::Production)));
    assert!(ask().await.iter().all(Result::is_ok));
    assert_eq!((sent.count(), sent.provider_tokens().len()), (1000, 1));
    tokio::time::advance(Duration::from_secs(40 * 60)).await;
    assert!(ask().await.iter().all(Result::is_ok));
    assert_eq!(sent.provider_tokens().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_with_a_refused_provider_token_cause_one_renewal() {
    let first = Arc::new(Mutex::new(None));
    let (sent, transport) = apple(move |_, request| {
        let given = request.headers()[AUTHORIZATION].clone();
        let refused = first.lock().unwrap().get_or_insert(given.clone()) == &given;
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if refused { status(401, "") } else { status(200, "") }
        })
    });
    let client = builder().in_flight_limit(1000).transport(transport).build().unwrap();
    let token = token();
    let results = join_all((0..1000).map(|_| client.validate(&token, Environment::Production))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!((sent.count(), sent.provider_tokens().len()), (2000, 2));
}

#[tokio::test(start_paused = true)]
async fn bad_credentials_cost_two_signatures_in_twenty_minutes() {
    let (sent, transport) = script(vec![|| status(401, "")]);
    let client = builder().transport(transport).build().unwrap();
    for _ in 0..10 {
        let error = client.check_credentials(Environment::Production).await.unwrap_err();
        assert_eq!(error.kind(), Misconfigured);
    }
    assert_eq!((sent.count(), sent.provider_tokens().len()), (3, 2));
    tokio::time::advance(Duration::from_secs(20 * 60)).await;
    assert!(client.check_credentials(Environment::Production).await.is_err());
    assert_eq!(sent.provider_tokens().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn check_credentials() {
    type Case = (&'static str, fn() -> TransportResult, Option<VerifyErrorKind>);
    let cases: &[Case] = &[
        ("good", || status(400, NOT_GENUINE), None),
        ("a server that likes every token", || status(200, ""), Some(Misconfigured)),
        ("bad", || status(401, "Unable to verify authorization token"), Some(Misconfigured)),
        ("malformed", || status(400, "Bad Authorization Token"), Some(Misconfigured)),
        ("without the service", || status(403, ""), Some(Misconfigured)),
        ("an outage", || status(500, ""), Some(Unavailable)),
        ("an empty 400", || status(400, ""), Some(Unavailable)),
    ];
    for (name, answer, expected) in cases {
        let (_, transport) = script(vec![*answer]);
        let client = builder().transport(transport).build().unwrap();
        let result = client.check_credentials(Environment::Development).await;
        assert_eq!(result.err().map(|error| error.kind()), *expected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_rotate_while_calls_are_under_way() {
    let (sent, transport) = apple(|n, _| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if n == 0 { status(401, "") } else { status(200, "") }
        })
    });
    let client = builder().transport(transport).build().unwrap();
    let token = token();
    let under_way = client.validate(&token, Environment::Production);
    let rotate = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.rotate_credentials(credentials_of(8)).unwrap();
        client.validate(&token, Environment::Production).await
    };
    let (first, second) = join(under_way, rotate).await;
    assert!(first.is_ok() && second.is_ok());
    // The call whose token was refused continues with the new key's token.
    assert_eq!((sent.count(), sent.provider_tokens().len()), (3, 2));
    assert_eq!(client.team_id(), "TEAM123456");

    let key = SecretKey::from_slice(&[9; 32]).unwrap().to_pkcs8_der().unwrap();
    let other = Credentials::from_der("OTHER12345", "KEY1234509", key.as_bytes()).unwrap();
    let error = client.rotate_credentials(other).unwrap_err().to_string();
    assert!(error.contains("OTHER12345") && error.contains("TEAM123456"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn bits() {
    let (sent, transport) = script(vec![
        || status(200, r#"{"bit0":true,"bit1":false,"last_update_time":"2024-02"}"#),
        || status(200, "Failed to find bit state"),
        || status(200, "<html>"),
        || status(400, NOT_GENUINE),
        || status(200, ""),
    ]);
    let client = builder()
        .base_url(Environment::Development, "http://localhost:1/apple/")
        .transport(transport)
        .build()
        .unwrap();
    let device = device(Environment::Development);
    let bits = client.query_bits(&device).await.unwrap();
    assert_eq!((bits.bit0(), bits.bit1(), bits.last_update()), (true, false, Month::new(2024, 2)));
    assert_eq!(client.query_bits(&device).await.unwrap(), Bits::default());
    assert_eq!(client.query_bits(&device).await.unwrap_err().kind(), BitsErrorKind::Misconfigured);
    assert_eq!(client.query_bits(&device).await.unwrap_err().kind(), BitsErrorKind::RefusedToken);
    client.update_bits(&device, true, false).await.unwrap();

    let debug = VerifiedDevice::new(
        TokenDigest::of(b"debug-token:ci"),
        Environment::Production,
        Evidence::debug_token("ci"),
        SystemTime::UNIX_EPOCH,
    );
    let error = client.query_bits(&debug).await.unwrap_err();
    assert_eq!((error.kind(), error.rejection()), (BitsErrorKind::NoDeviceToken, Rejection::MissingToken));
    assert_eq!(sent.count(), 5);

    let sent = sent.0.lock().unwrap();
    assert_eq!(sent[0].uri(), "http://localhost:1/apple/v1/query_two_bits");
    assert_eq!(sent[4].uri(), "http://localhost:1/apple/v1/update_two_bits");
    let body: serde_json::Value = serde_json::from_slice(sent[4].body()).unwrap();
    assert_eq!((&body["bit0"], &body["bit1"]), (&true.into(), &false.into()));
}

#[tokio::test(start_paused = true)]
async fn requests_are_as_apple_wants_them() {
    let (sent, transport) = script(vec![|| status(503, ""), || status(200, "")]);
    let client = builder().transport(transport).build().unwrap();
    client.validate(&token(), Environment::Production).await.unwrap();
    client.validate(&token(), Environment::Development).await.unwrap();
    let sent = sent.0.lock().unwrap();
    let uris: Vec<String> = sent.iter().map(|request| request.uri().to_string()).collect();
    assert_eq!(uris[1], "https://api.devicecheck.apple.com/v1/validate_device_token");
    assert_eq!(uris[2], "https://api.development.devicecheck.apple.com/v1/validate_device_token");
    let mut transactions = std::collections::HashSet::new();
    for request in &*sent {
        assert_eq!(request.method(), "POST");
        assert_eq!(request.headers()["content-type"], "application/json");
        assert!(request.headers()[AUTHORIZATION].is_sensitive());
        let body: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
        assert_eq!(body["device_token"], TOKEN);
        assert!(body["timestamp"].as_u64().unwrap() > 1_700_000_000_000);
        let transaction: uuid::Uuid = body["transaction_id"].as_str().unwrap().parse().unwrap();
        assert_eq!(transaction.get_version_num(), 4);
        transactions.insert(transaction);
    }
    assert_eq!(transactions.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn nothing_secret_is_shown() {
    let (sent, transport) =
        script(vec![|| status(401, "AgAASECRETTOKEM"), || status(400, "AgAASECRETTOKEM")]);
    let builder = builder().transport(transport);
    let client = builder.clone().build().unwrap();
    let error = client.validate(&token(), Environment::Production).await.unwrap_err();
    let mut shown = format!("{builder:?} {client:?} {error:?} {:?}", BitsError::from(error.clone()));
    let mut next: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(error) = next {
        shown += &error.to_string();
        next = error.source();
    }
    assert!(!shown.contains("SECRET"), "{shown}");
    for value in sent.provider_tokens() {
        let signature = value.to_str().unwrap().rsplit('.').next().unwrap();
        assert!(!shown.contains(signature), "{shown}");
    }
}

#[test]
fn what_cannot_be_built() {
    let transport = || service_fn(|_: Request<Bytes>| std::future::ready(status(200, "")));
    let cases = [
        ("attempt timeout", builder().attempt_timeout(Duration::ZERO)),
        ("total timeout", builder().total_timeout(Duration::ZERO)),
        ("in-flight limit", builder().in_flight_limit(0)),
        ("base URL for development", builder().base_url(Environment::Development, "http://example.com")),
    ];
    for (reason, builder) in cases {
        let error = builder.transport(transport()).build().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(builder().build().is_ok(), cfg!(feature = "reqwest"));
}
