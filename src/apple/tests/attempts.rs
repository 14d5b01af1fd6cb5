use std::{future::pending, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::Response;
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};

use super::{NOT_GENUINE, TransportResult, apple, builder, script, status, token, validate};
use crate::apple::{token::Verdict, transport::TransportError};
use crate::gate::error::VerifyError;
use crate::gate::error::VerifyErrorKind::{self, Misconfigured, Throttled, Unavailable};
use crate::gate::routing::Environment;

#[tokio::test(start_paused = true)]
async fn attempts() {
    use Verdict::{Genuine, Refused};
    type Case = (&'static str, Vec<fn() -> TransportResult>, Result<Verdict, VerifyErrorKind>, usize, usize);
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
    assert_eq!((error.kind(), started.elapsed()), (Unavailable, seconds(5)));
    assert_eq!(sent.count(), 2, "one attempt of three seconds, and one of two");

    let started = Instant::now();
    let patient = builder().attempt_timeout(seconds(60));
    assert_eq!(validate(patient, transport).await.unwrap_err().kind(), Unavailable);
    assert_eq!(started.elapsed(), seconds(5));

    // The second attempt has only the rest of the time for the whole call.
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
            .service(service_fn(|_| pending::<TransportResult>())),
    );
    let client = builder().transport(never.map_err(TransportError::other)).build().unwrap();
    let started = Instant::now();
    assert!(client.validate(&token(), Environment::Production).await.is_err());
    assert_eq!(started.elapsed(), seconds(5));
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
    assert_eq!(started.elapsed(), Duration::from_secs(4));
    // Two calls run at once, and two after 2 s. The other three could not end in time, which is known after 4 s. The
    // eighth finds the queue full.
    let good = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(good, 4);
    let at_once = results[7].as_ref().unwrap_err();
    assert_eq!(at_once.kind(), Unavailable);
    assert_eq!(at_once.retry_after(), Some(Duration::from_secs(3)));
    assert!(client.validate(&token, Environment::Production).await.is_ok(), "all slots are back");
}

#[test]
fn without_a_runtime_it_works_too() {
    let (_, transport) = script(vec![|| status(200, "")]);
    let verdict = validate(builder(), transport).now_or_never();
    assert_eq!(verdict.unwrap().unwrap(), Verdict::Genuine);
}

#[test]
fn without_a_runtime_a_call_without_time_left_ends_with_what_went_wrong() {
    for (answer, kind) in [(|| status(401, "")) as fn() -> TransportResult, || status(503, "")]
        .into_iter()
        .zip([Misconfigured, Unavailable])
    {
        let (sent, transport) = script(vec![answer]);
        let call = validate(builder().total_timeout(Duration::from_nanos(1)), transport);
        let error = call.now_or_never().unwrap().unwrap_err();
        assert_eq!((error.kind(), sent.count()), (kind, 1));
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("status"), "{cause}");
    }
}
