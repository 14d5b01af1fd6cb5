//! Verdicts and statuses: what is Apple's answer, what is an outage, and who is at fault.

use std::time::Duration;

use http::{Request, Response, StatusCode, header::RETRY_AFTER, request};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{
    DeviceOutcome, Enforcement, Environment, Evidence, Rejection, Route, VerifiedDevice, testing::Reply,
};

use crate::captured::Fails as _;
use crate::support::{App, Apple, TOKEN_HEADER, get, plain, rejection};

#[tokio::test]
async fn r01_the_happy_path_lets_a_genuine_device_through() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();

    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.evidence(), Evidence::APPLE);
    assert_eq!(app.device().environment(), Environment::Production);
    assert_eq!(apple.calls(), 1);

    let first = app.device();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(app.evidence(), Evidence::CACHE);
    assert_eq!(app.device().digest(), first.digest());
    let drift = first.verified_at().duration_since(app.device().verified_at()).unwrap();
    assert!(drift < Duration::from_millis(1), "kept to the millisecond");
    assert_eq!(apple.calls(), 1);
}

#[tokio::test]
async fn r02_no_token_is_401_and_apple_is_not_asked() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let response = app.send(plain()).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.headers()["www-authenticate"], "DeviceCheck");
    assert_eq!(rejection(&response), Rejection::MissingToken);
    assert_eq!((apple.calls(), app.inner.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn r03_an_outage_is_never_401() {
    // The reply, how often Apple is asked because of it, the status and the bounds of Retry-After.
    type Case = (&'static str, Reply, usize, u16, (u64, u64));
    let cases: Vec<Case> = vec![
        ("500", Reply::status(500), 1, 503, (1, 5)),
        ("502", Reply::status(502), 2, 503, (1, 5)),
        ("503", Reply::status(503), 2, 503, (1, 5)),
        ("503, come back", Reply::status(503).header("retry-after", "3"), 1, 503, (3, 5)),
        ("504", Reply::status(504), 2, 503, (1, 5)),
        ("429", Reply::status(429), 1, 503, (5, 7)),
        ("429, come back", Reply::status(429).header("retry-after", "60"), 1, 503, (60, 90)),
        (
            "429, come back next year",
            Reply::status(429).header("retry-after", "31536000"),
            1,
            503,
            (300, 300),
        ),
        ("a redirect", Reply::status(302).header("location", "https://example.com"), 1, 503, (1, 5)),
        ("another success", Reply::status(204), 1, 503, (1, 5)),
        ("connection reset", Reply::reset(), 1, 503, (1, 5)),
        ("no answer", Reply::hang(), 2, 503, (1, 5)),
        ("a late answer", Reply::normal().delay(Duration::from_secs(10)), 2, 503, (1, 5)),
        ("too long an answer", Reply::oversized(1 << 20), 1, 503, (1, 5)),
        ("half an answer", Reply::normal().cut_short(), 1, 503, (1, 5)),
        ("an HTML page", Reply::status(400).body("<html>proxy error</html>"), 1, 503, (1, 5)),
    ];
    for (name, reply, calls, status, (soonest, latest)) in cases {
        let apple = Apple::new();
        let app = App::new(&apple.layer());
        let token = apple.genuine();
        apple.fake.always(reply);
        let started = tokio::time::Instant::now();
        let response = app.get(&token).await;
        assert!(started.elapsed() <= Duration::from_secs(5), "{name}");
        assert_eq!(response.status().as_u16(), status, "{name}");
        let sent = response.headers()[RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap();
        assert!((soonest..=latest).contains(&sent), "{name}: {sent}");
        assert_eq!((apple.calls(), app.inner.calls()), (calls, 0), "{name}");

        // It was not remembered: service returns when Apple does, and Apple is left alone for as long as it said.
        apple.fake.clear();
        tokio::time::sleep(Duration::from_secs(sent)).await;
        let token = if sent < 100 { token } else { apple.genuine() };
        assert_eq!(app.status(&token).await, StatusCode::OK, "{name}");
        assert_eq!(apple.calls(), calls + 1, "{name}");
    }
}

#[tokio::test]
async fn r04_our_credentials_are_our_fault() {
    let cases: Vec<(&str, Reply, usize)> = vec![
        ("401", Reply::status(401).body("Unable to verify authorization token"), 2),
        ("401 without a text", Reply::status(401), 2),
        ("400 about the token", Reply::status(400).body("Missing or badly formatted authorization token"), 2),
        ("400 in capitals", Reply::status(400).body("BAD_AUTHENTICATION_TOKEN"), 2),
        ("403", Reply::status(403), 2),
        ("400 about the time", Reply::status(400).body("Missing or incorrectly formatted time stamp"), 1),
        ("400 about the payload", Reply::status(400).body("Bad Payload"), 1),
    ];
    for (name, reply, calls) in cases {
        let apple = Apple::new();
        let app = App::new(&apple.layer());
        let token = apple.genuine();
        apple.fake.always(reply);
        let response = app.get(&token).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR, "{name}");
        assert_eq!(rejection(&response), Rejection::Misconfigured, "{name}");
        assert!(!response.headers().contains_key(RETRY_AFTER), "{name}");
        assert_eq!((apple.calls(), app.inner.calls()), (calls, 0), "{name}");

        apple.fake.clear();
        assert_eq!(app.status(&token).await, StatusCode::OK, "{name}: not remembered");
    }
}

#[tokio::test]
async fn r04_one_renewed_provider_token_is_enough_when_apple_has_forgotten_the_old_one() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    apple.fake.script(Reply::status(401).body("Unable to verify authorization token"));
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!(apple.calls(), 2);
}

#[tokio::test]
async fn r05_an_empty_or_unknown_400_is_unavailable() {
    for body in ["", " ", "Bad Request", "{}", "de"] {
        let apple = Apple::new();
        let app = App::new(&apple.layer());
        apple.fake.always(Reply::status(400).body(body));
        let response = app.get(&apple.genuine()).await;
        assert!(matches!(rejection(&response), Rejection::Unavailable { .. }), "{body:?}");
        assert_eq!(apple.calls(), 1, "{body:?}");
    }
}

#[tokio::test]
async fn a_refused_token_is_401_and_remembered() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.fake.forged_token();
    for _ in 0..3 {
        let response = app.get(&token).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(rejection(&response), Rejection::RefusedToken);
    }
    assert_eq!((apple.calls(), app.inner.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn r06_fallback_to_development_only_on_a_refused_token() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_routing(Route::ProductionThenDevelopment));
    let calls = |environment| apple.fake.calls_in(environment);
    let development = apple.fake.genuine_token(Environment::Development);

    assert_eq!(app.status(&development).await, StatusCode::OK);
    assert_eq!(app.device().environment(), Environment::Development);
    assert_eq!((calls(Environment::Production), calls(Environment::Development)), (1, 1));
    assert_eq!(app.status(&development).await, StatusCode::OK);
    assert_eq!(app.evidence(), Evidence::CACHE);
    assert_eq!(apple.calls(), 2);

    apple.fake.reset_counts();
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!((calls(Environment::Production), calls(Environment::Development)), (1, 0));

    apple.fake.reset_counts();
    let forged = apple.fake.forged_token();
    for _ in 0..2 {
        assert_eq!(app.status(&forged).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!((calls(Environment::Production), calls(Environment::Development)), (1, 1));

    for reply in [Reply::status(500), Reply::status(401), Reply::status(429), Reply::hang()] {
        apple.fake.reset_counts();
        apple.fake.always(reply);
        let status = app.status(&apple.fake.genuine_token(Environment::Development)).await;
        assert_ne!(status, StatusCode::OK);
        assert_ne!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(calls(Environment::Development), 0);
        apple.fake.clear();
    }
}

#[test]
fn r07_an_unknown_environment_name_is_an_error() {
    for name in ["prod", "Development", "", "sandbox"] {
        assert!(name.parse::<Environment>().is_err(), "{name}");
    }
}

#[tokio::test]
async fn r08_the_clients_header_does_not_choose_the_environment() {
    let apple = Apple::new();
    let token = apple.fake.genuine_token(Environment::Development);
    let request = || {
        let mut request = get(&token);
        request.headers_mut().insert("x-apple-device-development", "true".parse().unwrap());
        request
    };
    let app = App::new(&apple.layer());
    assert_eq!(app.send(request()).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(apple.fake.calls_in(Environment::Development), 0);
    assert_eq!(apple.fake.calls_in(Environment::Production), 1);

    let opted_in = tower_devicecheck::EnvironmentHeader::default();
    let app = App::new(&apple.layer().with_routing(opted_in));
    assert_eq!(app.send(request()).await.status(), StatusCode::OK);
    assert_eq!(apple.fake.calls_in(Environment::Development), 1);
}

#[tokio::test]
async fn r09_an_error_of_the_inner_service_passes_through_untouched() {
    #[derive(Debug, PartialEq)]
    struct Mine;
    let apple = Apple::new();
    let service = apple.layer().layer(service_fn(|_: Request<Full<bytes::Bytes>>| async {
        Err::<Response<Full<bytes::Bytes>>, _>(Mine)
    }));
    let token = apple.genuine();
    for expected_calls in [1, 1] {
        assert_eq!(service.clone().oneshot(get(&token)).await.unwrap_err(), Mine);
        assert_eq!(apple.calls(), expected_calls);
    }
}

#[tokio::test]
async fn r10_bits_that_were_never_set_come_as_plain_text() {
    for text in ["Bit State Not Found", "Failed to find bit state", " failed to find bit state\n"] {
        let apple = Apple::new();
        let app = App::new(&apple.layer());
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
        apple.fake.script(Reply::status(200).body(text));
        let bits = apple.client.query_bits(&app.device()).await.unwrap();
        assert_eq!((bits.bit0(), bits.bit1(), bits.last_update()), (false, false, None), "{text:?}");
        assert_eq!(apple.calls(), 2, "{text:?}");
    }
}

#[tokio::test]
async fn bits_are_written_and_read_again() {
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    let device = app.device();
    assert!(!apple.client.query_bits(&device).await.unwrap().bit0());
    apple.client.update_bits(&device, true, false).await.unwrap();
    let bits = apple.client.query_bits(&device).await.unwrap();
    assert_eq!((bits.bit0(), bits.bit1()), (true, false));
    assert!(bits.last_update().is_some());
    assert_eq!(apple.calls(), 4);
}

#[tokio::test]
async fn monitoring_lets_everything_through_and_tells() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_enforcement(Enforcement::Monitor));
    let outcome = || app.inner.last().extensions.get::<DeviceOutcome>().map(DeviceOutcome::as_str);

    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!(outcome(), Some("verified"));
    assert!(app.inner.last().extensions.get::<VerifiedDevice>().is_some());
    assert_eq!(app.status(&apple.fake.forged_token()).await, StatusCode::OK);
    assert_eq!(outcome(), Some("refused_token"));
    assert_eq!(app.send(plain()).await.status(), StatusCode::OK);
    assert_eq!(outcome(), Some("missing_token"));
    apple.fake.always(Reply::status(500));
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!(outcome(), Some("unavailable"));
    assert!(app.inner.last().extensions.get::<VerifiedDevice>().is_none());
    assert!(!app.inner.last().headers.contains_key(TOKEN_HEADER));
    assert_eq!((apple.calls(), app.inner.calls()), (3, 4));
}

#[tokio::test]
async fn an_exempt_request_is_left_alone() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_routing(|_: &request::Parts| Route::Exempt));
    assert_eq!(app.status("anything").await, StatusCode::OK);
    assert_eq!(app.inner.last().headers[TOKEN_HEADER], "anything");
    assert_eq!((apple.calls(), app.inner.calls()), (0, 1));
}

#[tokio::test]
async fn a_custom_rejection_response_keeps_the_rejection_for_outer_layers() {
    let apple = Apple::new();
    let layer = apple.layer().with_rejection_response(|rejection: &Rejection, _: &request::Parts| {
        let mut response = Response::new(bytes::Bytes::from(rejection.code()));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    });
    let response = App::new(&layer).send(plain()).await;
    assert_eq!((response.status(), &response.body()[..]), (StatusCode::IM_A_TEAPOT, &b"missing_token"[..]));
    assert_eq!(rejection(&response), Rejection::MissingToken);
    assert_eq!(apple.calls(), 0);
}

#[tokio::test]
async fn credentials_are_told_from_bad_ones_without_a_device() {
    let apple = Apple::new();
    for environment in [Environment::Production, Environment::Development] {
        apple.client.check_credentials(environment).await.unwrap();
    }
    assert_eq!(apple.calls(), 2);
    apple.fake.always(Reply::status(401).body("Unable to verify authorization token"));
    let error = apple.client.check_credentials(Environment::Production).await.failure();
    assert_eq!(error.kind(), tower_devicecheck::VerifyErrorKind::Misconfigured);
    assert_eq!(apple.calls(), 4, "asked again once with a new provider token");
}
