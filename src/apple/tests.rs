use std::{future::pending, sync::Mutex, time::Duration};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use http::{Request, Response, header::AUTHORIZATION};
use p256::{SecretKey, pkcs8::EncodePrivateKey};
use tokio::time::Instant;
use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};

use super::*;
use crate::{
    device_check::verifier::VerifyErrorKind::{self, Misconfigured, Throttled, Unavailable},
    gate::credential::TokenDigest,
    gate::decision::Evidence,
    gate::rejection::Rejection,
    runtime::SystemTime,
};

type Answer = Result<Response<Bytes>, TransportError>;
type Transport = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, TransportError>;

const TOKEN: &str = "AgAASECRETTOKEM=";
const NOT_GENUINE: &str = "Missing or incorrectly formatted device token payload";

fn credentials_of(seed: u8) -> Credentials {
    let key = SecretKey::from_slice(&[seed; 32]).unwrap().to_pkcs8_der().unwrap();
    Credentials::from_der("TEAM123456", &format!("KEY12345{seed:02}"), key.as_bytes()).unwrap()
}

fn builder() -> AppleClientBuilder {
    AppleClient::builder(credentials_of(7))
}

fn token() -> DeviceToken {
    TOKEN.parse().unwrap()
}

fn device(environment: Environment) -> VerifiedDevice {
    let digest = TokenDigest::from([0; 32]);
    VerifiedDevice::new(token(), digest, environment, Evidence::Apple, SystemTime::UNIX_EPOCH)
}

fn status(status: u16, body: &'static str) -> Answer {
    Ok(Response::builder().status(status).body(Bytes::from(body)).unwrap())
}

/// What was sent, request by request.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Request<Bytes>>>>);

impl Sent {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The provider tokens that were used, each once, in order.
    fn provider_tokens(&self) -> Vec<http::HeaderValue> {
        let mut tokens = Vec::new();
        for request in &*self.0.lock().unwrap() {
            let value = request.headers()[AUTHORIZATION].clone();
            if !tokens.contains(&value) {
                tokens.push(value);
            }
        }
        tokens
    }
}

/// An Apple that answers the n-th request with `answer(n, request)`.
fn apple(
    answer: impl Fn(usize, &Request<Bytes>) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
) -> (Sent, Transport) {
    let sent = Sent::default();
    let log = sent.clone();
    let answer = Arc::new(answer);
    let service = service_fn(move |request: Request<Bytes>| {
        let mut log = log.0.lock().unwrap();
        let future = answer(log.len(), &request);
        log.push(request);
        future
    });
    (sent, BoxCloneSyncService::new(service))
}

/// An Apple that gives these answers one after the other, and the last one ever after.
fn script(answers: Vec<fn() -> Answer>) -> (Sent, Transport) {
    apple(move |n, _| {
        let answer = answers[n.min(answers.len() - 1)]();
        Box::pin(std::future::ready(answer))
    })
}

async fn validate(builder: AppleClientBuilder, transport: Transport) -> Result<Verdict, VerifyError> {
    let client = builder.transport(transport).build().unwrap();
    client.validate(&token(), Environment::Production).await
}

#[tokio::test(start_paused = true)]
async fn attempts() {
    use Verdict::{Genuine, Refused};
    type Case = (&'static str, Vec<fn() -> Answer>, Result<Verdict, VerifyErrorKind>, usize, usize);
    let cases: Vec<Case> = vec![
        // name, answers, result, requests, provider tokens
        ("genuine", vec![|| status(200, "")], Ok(Genuine), 1, 1),
        ("refused", vec![|| status(400, NOT_GENUINE)], Ok(Refused), 1, 1),
        ("an empty 400", vec![|| status(400, "")], Err(Unavailable), 1, 1),
        ("an unknown 400", vec![|| status(400, "Bad")], Err(Unavailable), 1, 1),
        ("our request", vec![|| status(400, "Bad Timestamp")], Err(Misconfigured), 1, 1),
        ("forbidden", vec![|| status(403, "")], Err(Misconfigured), 2, 2),
        ("not found", vec![|| status(404, "")], Err(Misconfigured), 1, 1),
        ("throttled", vec![|| status(429, "")], Err(Throttled), 1, 1),
        ("500 is not retried", vec![|| status(500, "")], Err(Unavailable), 1, 1),
        ("a redirect", vec![|| status(302, "")], Err(Unavailable), 1, 1),
        ("another success", vec![|| status(204, "")], Err(Unavailable), 1, 1),
        ("502, then genuine", vec![|| status(502, ""), || status(200, "")], Ok(Genuine), 2, 1),
        ("503, then refused", vec![|| status(503, ""), || status(400, NOT_GENUINE)], Ok(Refused), 2, 1),
        ("504 for good", vec![|| status(504, "")], Err(Unavailable), 2, 1),
        (
            "503 with Retry-After",
            vec![|| {
                Ok(Response::builder().status(503).header("retry-after", "9").body(Bytes::new()).unwrap())
            }],
            Err(Unavailable),
            1,
            1,
        ),
        (
            "no connection, then genuine",
            vec![|| Err(TransportError::connect("x")), || status(200, "")],
            Ok(Genuine),
            2,
            1,
        ),
        ("no connection for good", vec![|| Err(TransportError::connect("x"))], Err(Unavailable), 2, 1),
        (
            "no connection, then 503",
            vec![|| Err(TransportError::connect("x")), || status(503, "")],
            Err(Unavailable),
            2,
            1,
        ),
        (
            "turned away, then genuine",
            vec![|| Err(TransportError::turned_away("x")), || status(200, "")],
            Ok(Genuine),
            2,
            1,
        ),
        ("turned away for good", vec![|| Err(TransportError::turned_away("x"))], Err(Unavailable), 2, 1),
        ("broken off", vec![|| Err(TransportError::other("x"))], Err(Unavailable), 1, 1),
        ("401, then genuine", vec![|| status(401, ""), || status(200, "")], Ok(Genuine), 2, 2),
        (
            "provider token malformed, then refused",
            vec![|| status(400, "Bad Authorization Token"), || status(400, NOT_GENUINE)],
            Ok(Refused),
            2,
            2,
        ),
        ("401 for good", vec![|| status(401, "")], Err(Misconfigured), 2, 2),
        (
            "503, 401, 503: one retry in all",
            vec![|| status(503, ""), || status(401, ""), || status(503, "")],
            Err(Unavailable),
            3,
            2,
        ),
        (
            "401, 503, genuine",
            vec![|| status(401, ""), || status(503, ""), || status(200, "")],
            Ok(Genuine),
            3,
            2,
        ),
    ];
    for (name, answers, expected, requests, provider_tokens) in cases {
        let (sent, transport) = script(answers);
        let result = validate(builder(), transport).await;
        assert_eq!(result.as_ref().map_err(VerifyError::kind).copied(), expected, "{name}");
        assert_eq!(sent.count(), requests, "{name}");
        assert_eq!(sent.provider_tokens().len(), provider_tokens, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn retry_can_be_turned_off() {
    let (sent, transport) = script(vec![|| status(503, "")]);
    assert!(validate(builder().retry(false), transport).await.is_err());
    assert_eq!(sent.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_passed_on() {
    for code in [429, 503] {
        let (_, transport) = apple(move |_, _| {
            let response = Response::builder().status(code).header("retry-after", "42");
            Box::pin(std::future::ready(Ok(response.body(Bytes::new()).unwrap())))
        });
        let error = validate(builder(), transport).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(42)), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn deadlines() {
    let seconds = Duration::from_secs;
    let (sent, transport) = apple(|_, _| Box::pin(pending()));
    let started = Instant::now();
    let error = validate(builder(), transport.clone()).await.unwrap_err();
    assert_eq!((error.kind(), started.elapsed()), (Unavailable, seconds(3)));
    assert_eq!(sent.count(), 1, "an attempt that timed out may have reached Apple");

    let started = Instant::now();
    let patient = builder().attempt_timeout(seconds(60));
    assert_eq!(validate(patient, transport).await.unwrap_err().kind(), Unavailable);
    assert_eq!(started.elapsed(), seconds(5));

    // The second attempt has only what is left of the whole.
    let (sent, transport) = apple(|n, _| {
        Box::pin(async move {
            if n > 0 {
                pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            status(503, "")
        })
    });
    let started = Instant::now();
    assert!(validate(builder(), transport).await.is_err());
    assert_eq!((started.elapsed(), sent.count()), (seconds(5), 2));

    // A transport that is never ready.
    let never = tower::util::BoxCloneSyncService::new(
        tower::ServiceBuilder::new()
            .load_shed()
            .concurrency_limit(1)
            .service(service_fn(|_| pending::<Answer>())),
    );
    let client = builder().transport(never.map_err(TransportError::other)).build().unwrap();
    let started = Instant::now();
    assert!(client.validate(&token(), Environment::Production).await.is_err());
    assert_eq!(started.elapsed(), seconds(3));
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_a_slot_and_no_longer_than_the_deadline() {
    let under_way = Arc::new(());
    let (_, transport) = apple(move |_, _| {
        let this = Arc::clone(&under_way);
        Box::pin(async move {
            assert!(Arc::strong_count(&this) <= 3, "more than the limit");
            tokio::time::sleep(Duration::from_secs(2)).await;
            status(200, "")
        })
    });
    let client = builder().in_flight_limit(2).waiting_limit(5).transport(transport).build().unwrap();
    let started = Instant::now();
    let token = token();
    let results = join_all((0..8).map(|_| client.validate(&token, Environment::Production))).await;
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    // Two at once, two after 2 s; two begin after 4 s and are cut off, as is the one that still waits. The
    // eighth finds too many before it.
    let good = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(good, 4);
    let at_once = results[7].as_ref().unwrap_err();
    assert_eq!(at_once.kind(), Unavailable);
    assert_eq!(at_once.retry_after(), Some(Duration::from_secs(1)));
    assert!(client.validate(&token, Environment::Production).await.is_ok(), "all slots are back");
}

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
    assert_eq!((sent.count(), sent.provider_tokens().len()), (11, 2));
    tokio::time::advance(Duration::from_secs(20 * 60)).await;
    assert!(client.check_credentials(Environment::Production).await.is_err());
    assert_eq!(sent.provider_tokens().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn check_credentials() {
    type Case = (&'static str, fn() -> Answer, Option<VerifyErrorKind>);
    let cases: &[Case] = &[
        ("good", || status(400, NOT_GENUINE), None),
        ("good, and Apple likes the token", || status(200, ""), None),
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
    let (first, second) = futures_util::future::join(under_way, rotate).await;
    assert!(first.is_ok() && second.is_ok());
    // The call whose token was refused goes on with the new key's one, which nobody refused.
    assert_eq!((sent.count(), sent.provider_tokens().len()), (3, 2));
    assert_eq!(client.scope(), "TEAM123456");

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
    assert_eq!((bits.bit0(), bits.bit1(), bits.last_update()), (true, false, Some("2024-02")));
    assert_eq!(client.query_bits(&device).await.unwrap(), Bits::default());
    assert_eq!(client.query_bits(&device).await.unwrap_err().kind(), BitsErrorKind::Unavailable);
    assert_eq!(client.query_bits(&device).await.unwrap_err().kind(), BitsErrorKind::RefusedToken);
    client.update_bits(&device, true, false).await.unwrap();

    let debug =
        VerifiedDevice::from_debug_token("ci".into(), Environment::Production, SystemTime::UNIX_EPOCH);
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
    client.verify(&token(), Environment::Production).await.unwrap();
    client.verify(&token(), Environment::Development).await.unwrap();
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
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
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

#[test]
fn without_a_runtime_it_works_too() {
    let (_, transport) = script(vec![|| status(200, "")]);
    let verdict = futures_util::FutureExt::now_or_never(validate(builder(), transport));
    assert_eq!(verdict.unwrap().unwrap(), Verdict::Genuine);
}

#[test]
fn without_a_runtime_a_call_without_time_left_ends_with_what_went_wrong() {
    for (answer, kind) in [(|| status(401, "")) as fn() -> Answer, || status(503, "")]
        .into_iter()
        .zip([Misconfigured, Unavailable])
    {
        let (sent, transport) = script(vec![answer]);
        let call = validate(builder().total_timeout(Duration::from_nanos(1)), transport);
        let error = futures_util::FutureExt::now_or_never(call).unwrap().unwrap_err();
        assert_eq!((error.kind(), sent.count()), (kind, 1));
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("status"), "{cause}");
    }
}
