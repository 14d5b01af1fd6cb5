//! Enforcement by route, by share of credentials, and beside the requests.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, StatusCode, request};
use http_body_util::{Empty, Full};
use tower::{Layer, Service, service_fn};
use tower_devicecheck::{
    DeviceCheckLayer, DeviceOutcome, DeviceVerifier, Enforcement, Event, Facts, Observer, Proof, ReadBodies,
    Rejection, RolloutReport, Step, TokenQuestion, Verdict, VerifiedDevice, VerifyError,
    testing::{Reply, realistic_token},
};

use crate::support::{App, Apple, Counter, Stub, TOKEN_HEADER, get, plain, rejection};

/// Keeps what each event says of its request: the label in its head, the outcome, and the enforcement.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Said>>>);

type Said = (String, &'static str, Enforcement);

impl Told {
    fn take(&self) -> Vec<Said> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Told {
    fn decision(&self, event: &Event<'_>) {
        assert!(!event.head().headers.contains_key(TOKEN_HEADER), "no credentials");
        let label = event.head().headers.get("x-label").map(|label| label.to_str().unwrap().to_owned());
        let outcome = event.outcome().as_str();
        self.0.lock().unwrap().push((label.unwrap_or_default(), outcome, event.enforcement()));
    }
}

fn labelled(label: &str, token: &str) -> Request<Full<Bytes>> {
    let mut request = get(token);
    request.headers_mut().insert("x-label", label.parse().unwrap());
    request
}

fn outcome(app: &App) -> Option<&'static str> {
    app.inner.last().extensions.get::<DeviceOutcome>().map(DeviceOutcome::as_str)
}

/// Lets spawned tasks run as far as they can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// A verifier that refuses every token.
struct Refusing(Counter);

impl DeviceVerifier for Refusing {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        self.0.add();
        Ok(Verdict::Refused)
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

/// A verifier that never answers.
#[derive(Clone, Default)]
struct Hanging(Counter);

impl DeviceVerifier for Hanging {
    async fn verify(&self, _: TokenQuestion<'_>) -> Result<Verdict, VerifyError> {
        self.0.add();
        pending().await
    }

    fn scope(&self) -> &str {
        "TEAM123456"
    }
}

/// Which of 10,000 refused tokens a new layer with this share enforces.
async fn enforced(percent: u8) -> Vec<bool> {
    const TOKENS: usize = 10_000;
    let asked = Counter::default();
    let layer = DeviceCheckLayer::new(Refusing(asked.clone())).with_enforcement(Enforcement::Share(percent));
    let mut service = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
    }));
    let mut enforced = Vec::with_capacity(TOKENS);
    for number in 0..TOKENS {
        let request = Request::builder().header(TOKEN_HEADER, format!("{number:012}")).body(()).unwrap();
        let response = service.call(request).await.unwrap();
        enforced.push(response.status() == StatusCode::UNAUTHORIZED);
    }
    assert_eq!(asked.get(), TOKENS);
    enforced
}

#[tokio::test]
async fn a_share_of_tokens_is_enforced_and_is_the_same_after_a_restart() {
    let quarter = enforced(25).await;
    let count = quarter.iter().filter(|enforced| **enforced).count();
    assert!((2_300..=2_700).contains(&count), "{count} of 10,000");
    assert!(quarter == enforced(25).await, "the same ones after a restart");
    let half = enforced(50).await;
    assert!(quarter.iter().zip(&half).all(|(quarter, half)| !quarter || *half), "a share only grows");
    assert!(enforced(0).await.iter().all(|enforced| !enforced));
    assert!(enforced(100).await.iter().all(|enforced| *enforced));
}

#[tokio::test]
async fn a_token_stays_on_its_side_whether_it_is_remembered_or_apple_is_down() {
    let apple = Apple::new();
    let told = Told::default();
    let app = App::new(&apple.layer().with_enforcement(Enforcement::Share(50)).with_observer(told.clone()));
    let mut sides = [0, 0];
    for _ in 0..20 {
        let token = apple.fake.forged_token();
        let first = app.status(&token).await;
        assert_eq!(app.status(&token).await, first, "remembered");
        let is_enforced = first == StatusCode::UNAUTHORIZED;
        sides[usize::from(is_enforced)] += 1;
        let side = if is_enforced { Enforcement::Enforce } else { Enforcement::Monitor };
        for (_, outcome, enforcement) in told.take() {
            assert_eq!((outcome, enforcement), ("refused_token", side));
        }
        // Another layer, as after a restart, while Apple is down.
        let down = Apple::new();
        down.fake.always(Reply::status(500));
        let restarted = App::new(&down.layer().with_enforcement(Enforcement::Share(50)));
        let expected = if is_enforced { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        assert_eq!(restarted.status(&token).await, expected);
        if !is_enforced {
            assert_eq!(outcome(&restarted), Some("unavailable"));
        }
    }
    assert!(sides.iter().all(|tokens| *tokens > 0), "{sides:?}");
    assert_eq!(apple.calls(), 20);
    // An admitted token is admitted on both sides.
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
}

#[tokio::test]
async fn a_request_without_a_credential_is_in_the_whole_share_only() {
    for (percent, status) in [(0, 200), (99, 200), (100, 401), (255, 401)] {
        let apple = Apple::new();
        let app = App::new(&apple.layer().with_enforcement(Enforcement::Share(percent)));
        for request in [plain(), get("not base64!")] {
            let response = app.send(request).await;
            assert_eq!(response.status(), status, "{percent}");
            match status {
                200 => assert!(matches!(outcome(&app), Some("missing_token" | "malformed_token"))),
                _ => assert!(matches!(
                    rejection(&response),
                    Rejection::MissingToken | Rejection::MalformedToken(_)
                )),
            }
        }
        assert_eq!(apple.calls(), 0);
    }
}

#[tokio::test]
async fn each_route_has_an_enforcement_of_its_own() {
    let (apple, told) = (Apple::new(), Told::default());
    let layer = apple.layer().with_observer(told.clone());
    let app = App::new(&layer.with_enforcement(|head: &request::Parts| match head.uri.path() {
        "/feed" => Enforcement::Monitor,
        "/old" => Enforcement::Share(0),
        "/shadow" => Enforcement::Shadow,
        _ => Enforcement::Enforce,
    }));
    let token = apple.fake.forged_token();
    let rows = [
        ("/transfer", 401, Enforcement::Enforce),
        ("/feed", 200, Enforcement::Monitor),
        ("/old", 200, Enforcement::Monitor),
        // The verdict is remembered.
        ("/shadow", 200, Enforcement::Shadow),
        ("/feed/../transfer", 401, Enforcement::Enforce),
    ];
    for (path, status, enforcement) in rows {
        let mut request = get(&token);
        *request.uri_mut() = path.parse().unwrap();
        assert_eq!(app.send(request).await.status(), status, "{path}");
        assert_eq!(told.take(), [(String::new(), "refused_token", enforcement)], "{path}");
        if status == 200 {
            assert_eq!(outcome(&app), Some("refused_token"), "{path}");
        }
    }
    assert_eq!((apple.calls(), app.inner.calls()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_a_request_does_not_wait_and_its_outcome_comes_later() {
    let (apple, told) = (Apple::new(), Told::default());
    let report = Arc::new(RolloutReport::by(|head| head.headers.get("x-label")?.to_str().ok()));
    let observers = (told.clone(), Arc::clone(&report));
    let app = App::new(&apple.layer().with_enforcement(Enforcement::Shadow).with_observer(observers));
    let event = |label: &str, outcome| (label.to_owned(), outcome, Enforcement::Shadow);

    apple.fake.always(Reply::hang());
    let at_once = app.send(labelled("hangs", &apple.genuine())).now_or_never();
    assert_eq!(at_once.expect("no wait").status(), StatusCode::OK);
    assert_eq!(outcome(&app), Some("unknown"));
    assert!(app.inner.last().extensions.get::<VerifiedDevice>().is_none());
    settle().await;
    assert_eq!(told.take(), []);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(told.take(), [event("hangs", "unavailable")]);
    let calls = apple.calls();
    apple.fake.clear();

    let (genuine, forged) = (apple.genuine(), apple.fake.forged_token());
    for (label, token, later) in [("genuine", &genuine, "verified"), ("forged", &forged, "refused_token")] {
        let response = app.send(labelled(label, token)).now_or_never().expect("no wait");
        assert_eq!((response.status(), outcome(&app)), (StatusCode::OK, Some("unknown")), "{label}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(told.take(), [event(label, later)], "{label}");
        // From then on the verdict is remembered, and is there at once.
        let response = app.send(labelled(label, token)).now_or_never().expect("no wait");
        assert_eq!((response.status(), outcome(&app)), (StatusCode::OK, Some(later)), "{label}");
        assert_eq!(told.take(), [event(label, later)], "{label}");
    }
    app.send(plain()).now_or_never().expect("no wait");
    assert_eq!((outcome(&app), told.take()), (Some("missing_token"), vec![event("", "missing_token")]));
    assert_eq!((apple.calls(), app.inner.calls()), (calls + 2, 6));

    let counted: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!((&counted["monitor"]["checked"], &counted["enforce"]["checked"]), (&6.into(), &0.into()));
    assert_eq!(counted["labels"]["genuine"]["checked"], 2);
}

#[tokio::test(start_paused = true)]
async fn shadow_checks_are_bounded_and_the_others_are_counted() {
    const REQUESTS: usize = 100_000;
    const LIMIT: usize = 64;
    let (verifier, report) = (Hanging::default(), Arc::new(RolloutReport::new()));
    let layer = DeviceCheckLayer::new(verifier.clone()).with_enforcement(Enforcement::Shadow);
    let layer = layer.with_shadow_checks(LIMIT).with_observer(Arc::clone(&report));
    let mut service = layer.layer(service_fn(async |request: Request<()>| {
        let outcome = request.extensions().get::<DeviceOutcome>();
        assert!(matches!(outcome, Some(DeviceOutcome::Unknown)));
        assert!(!request.headers().contains_key(TOKEN_HEADER));
        Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
    }));
    let request =
        |number: usize| Request::builder().header(TOKEN_HEADER, format!("{number:012}")).body(()).unwrap();
    let mut send = |request: Request<()>| {
        let response = service.call(request).now_or_never().expect("no wait").unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    };
    let counted = || serde_json::from_str::<serde_json::Value>(&report.to_json()).unwrap();

    (0..REQUESTS).map(request).for_each(&mut send);
    settle().await;
    assert_eq!(verifier.0.get(), LIMIT);
    assert_eq!(counted()["left_out"], REQUESTS - LIMIT);
    assert_eq!(counted()["monitor"]["checked"], 0);
    // The credentials are taken out of these requests, too, which the inner service has seen. Even one without any is
    // left out.
    send(Request::new(()));
    assert_eq!(counted()["left_out"], REQUESTS - LIMIT + 1);
    // The layer's deadline ends the checks, and their places are free again.
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(counted()["monitor"]["codes"]["unavailable"], LIMIT);
    (0..=LIMIT).map(request).for_each(&mut send);
    settle().await;
    assert_eq!((verifier.0.get(), &counted()["left_out"]), (2 * LIMIT, &(REQUESTS - LIMIT + 2).into()));
    assert!(report.to_string().contains("left out of shadow mode, not checked: 99938"), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_shadow_check_survives_its_client() {
    let (apple, told) = (Apple::new(), Told::default());
    let layer = apple.layer().with_enforcement(Enforcement::Shadow).with_observer(told.clone());
    let mut service = layer.layer(service_fn(|_: Request<Full<Bytes>>| {
        pending::<Result<http::Response<Empty<Bytes>>, std::convert::Infallible>>()
    }));
    drop(service.call(labelled("left", &apple.genuine())));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(told.take(), [("left".to_owned(), "verified", Enforcement::Shadow)]);
    assert_eq!(apple.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_beside_a_request_keeps_no_place() {
    struct Panicking(Counter);

    impl Observer for Panicking {
        fn decision(&self, event: &Event<'_>) {
            assert_eq!(event.outcome().as_str(), "verified", "a place was free");
            self.0.add();
            panic!("an observer's own fault");
        }
    }

    let (apple, told) = (Apple::new(), Counter::default());
    let layer = apple.layer().with_enforcement(Enforcement::Shadow).with_shadow_checks(1);
    let app = App::new(&layer.with_observer(Panicking(told.clone())));
    for round in 1..=3 {
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((told.get(), apple.calls()), (round, round));
    }
}

#[test]
fn without_a_runtime_shadow_mode_leaves_out_what_it_must_ask_about() {
    let (asked, told) = (Counter::default(), Told::default());
    let layer = DeviceCheckLayer::new(Stub::genuine(&asked)).with_enforcement(Enforcement::Shadow);
    let app = App::new(&layer.with_observer(told.clone()));
    let response = app.send(get(&realistic_token())).now_or_never().expect("no wait");
    assert_eq!((response.status(), outcome(&app)), (StatusCode::OK, Some("unknown")));
    assert_eq!(told.take(), [(String::new(), "left_out", Enforcement::Shadow)]);
    assert_eq!(asked.get(), 0);
}

/// A proof that needs the body, at once or after it has asked.
struct NeedsBody;

impl Proof for NeedsBody {
    fn scheme(&self) -> &'static str {
        "Body"
    }

    fn judge(&self, head: &mut request::Parts, _: &Facts) -> Step {
        let body = || Step::needs_body(64, |_| Step::rejected(Rejection::MissingToken));
        match head.headers.remove("x-body") {
            Some(value) if value == "later" => Step::ask(async move { body() }),
            Some(_) => body(),
            None => Step::absent(),
        }
    }

    fn strip(&self, head: &mut request::Parts) {
        head.headers.remove("x-body");
    }

    fn reads_body(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn shadow_mode_reads_no_body() {
    for when in ["at once", "later"] {
        let (apple, told) = (Apple::new(), Told::default());
        let layer = apple.layer().with_bodies(ReadBodies::new()).add_proof_before(NeedsBody).unwrap();
        let layer = layer.with_enforcement(Enforcement::Shadow).with_observer(told.clone());
        let mut service =
            layer.layer(service_fn(async |request: Request<tower_devicecheck::GateBody<Full<Bytes>>>| {
                assert!(!request.headers().contains_key("x-body"));
                Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
            }));
        let mut request = plain();
        request.headers_mut().insert("x-body", when.parse().unwrap());
        let response = service.call(request).now_or_never().expect("no wait").unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{when}");
        settle().await;
        assert_eq!(told.take(), [(String::new(), "left_out", Enforcement::Shadow)], "{when}");
        assert_eq!(apple.calls(), 0, "{when}");
    }
}
