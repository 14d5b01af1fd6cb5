//! The seam of limiters: the requests that they are asked about, and the answer to one over the limit.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Request, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
    request,
};
use http_body_util::Full;
use tower_devicecheck::{
    DebugTokens, DeviceCheckLayer, DeviceOutcome, Enforcement, Event, Observer, Rejection, Route,
    cache::{CacheError, CachedVerdict, MemoryCache, VerdictCache, VerdictKey},
    limit::Limiter,
    replay::MemoryReplayGuard,
    testing::Reply,
};

use crate::{
    captured,
    support::{App, Apple, Counter, TOKEN_HEADER, get, plain, rejection},
};

const DEBUG_TOKEN: &str = "debug-secret-7d9f1c6e";

/// A limiter that counts, and refuses after this many.
fn at_most(permits: usize, asked: &Counter) -> impl Limiter {
    let asked = asked.clone();
    move |head: &request::Parts| {
        assert!(!head.headers.contains_key(TOKEN_HEADER), "a limiter needs no token");
        asked.add();
        if asked.get() <= permits { Ok(()) } else { Err(Duration::from_millis(41_500)) }
    }
}

/// A shared cache: it is never in this process's memory.
struct Far(MemoryCache);

impl VerdictCache for Far {
    async fn get(&self, key: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        self.0.get(key).await
    }

    async fn put(&self, key: &VerdictKey<'_>, verdict: CachedVerdict) -> Result<(), CacheError> {
        self.0.put(key, verdict).await
    }
}

#[tokio::test]
async fn a_limiter_is_asked_about_what_others_would_be_asked_about() {
    let apple = Apple::new();
    let token = apple.genuine();
    let debug = || Request::builder().header("x-debug-token", DEBUG_TOKEN).body(Full::default()).unwrap();
    let twice = |request: fn(&str) -> Request<Full<Bytes>>, token: &str| vec![request(token), request(token)];
    let with_debug_tokens =
        |layer: DeviceCheckLayer| layer.with_debug_tokens(DebugTokens::new().add("ci", DEBUG_TOKEN).unwrap());
    type Row = (&'static str, fn(DeviceCheckLayer) -> DeviceCheckLayer, Vec<Request<Full<Bytes>>>);
    // The questions to the limiter, those to Apple, and the status of the last answer.
    let rows: Vec<(Row, usize, usize, u16)> = vec![
        (("a hit", |layer| layer, twice(get, &token)), 1, 1, 200),
        (("a refusal that is remembered", |layer| layer, twice(get, &apple.fake.forged_token())), 1, 1, 401),
        (("a debug token", with_debug_tokens, vec![debug()]), 0, 0, 200),
        (("one in the token's place", with_debug_tokens, vec![get(DEBUG_TOKEN)]), 0, 0, 200),
        (("no token", |layer| layer, vec![plain()]), 0, 0, 401),
        (("a malformed one", |layer| layer, vec![get("&"), get("")]), 0, 0, 401),
        (("exempt", |layer| layer.with_routing(Route::Exempt), vec![get(&token)]), 0, 0, 200),
        (
            ("two different tokens", |layer| layer, vec![get(&apple.genuine()), get(&apple.genuine())]),
            2,
            2,
            200,
        ),
        (("no cache", DeviceCheckLayer::without_cache, twice(get, &token)), 2, 2, 200),
        (
            ("a shared cache", |layer| layer.with_cache(Far(MemoryCache::new())), twice(get, &token)),
            2,
            1,
            200,
        ),
        (
            (
                "two servers",
                |layer| layer.with_routing(Route::ProductionThenDevelopment),
                vec![get(&apple.fake.forged_token())],
            ),
            1,
            2,
            401,
        ),
        (
            (
                "single use",
                |layer| layer.with_single_use(MemoryReplayGuard::new()),
                twice(get, &apple.genuine()),
            ),
            2,
            1,
            401,
        ),
    ];
    for ((name, change, requests), limiter, calls, status) in rows {
        let (asked, before) = (Counter::default(), apple.calls());
        let app = App::new(&change(apple.layer()).with_limiter(at_most(2, &asked)));
        let mut last = None;
        for request in requests {
            last = Some(app.send(request).await.status().as_u16());
        }
        assert_eq!((asked.get(), apple.calls() - before, last), (limiter, calls, Some(status)), "{name}");
    }
}

#[tokio::test]
async fn requests_that_wait_for_one_answer_take_a_permit_each() {
    let apple = Apple::new();
    let asked = Counter::default();
    let app = App::new(&apple.layer().with_limiter(at_most(3, &asked)));
    let token = apple.genuine();
    apple.fake.always(Reply::normal().delay(Duration::from_millis(20)));
    let statuses = futures::future::join_all((0..5).map(|_| app.status(&token))).await;
    assert_eq!(statuses.iter().filter(|status| status.is_success()).count(), 3);
    assert_eq!((asked.get(), apple.calls()), (5, 1));
}

#[tokio::test]
async fn the_answer_over_the_limit() {
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_limiter(at_most(0, &Counter::default())));
    let connect = "application/json";
    for (content_type, status, grpc) in
        [("text/plain", 429, None), ("application/grpc", 200, Some("8")), (connect, 429, None)]
    {
        let request = Request::post("/").header(CONTENT_TYPE, content_type);
        let request = request.header("connect-protocol-version", "1").header(TOKEN_HEADER, apple.genuine());
        let response = app.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status().as_u16(), status, "{content_type}");
        let headers = response.headers();
        assert_eq!(headers[RETRY_AFTER], "42", "{content_type}");
        assert_eq!(headers["x-devicecheck-code"], "limit_exceeded", "{content_type}");
        assert_eq!(headers.get("grpc-status").map(|code| code.to_str().unwrap()), grpc, "{content_type}");
        let body = std::str::from_utf8(response.body()).unwrap();
        assert_eq!(body.contains("resource_exhausted"), content_type == connect, "{body}");
        assert_eq!(
            rejection(&response),
            Rejection::limit_exceeded(Duration::from_secs(42)),
            "{content_type}"
        );
    }
    assert_eq!((apple.calls(), app.inner.calls()), (0, 0));
}

/// The outcomes of decisions, and the number of outages.
#[derive(Clone, Default)]
struct Outcomes(Arc<Mutex<Vec<String>>>, Counter);

impl Observer for Outcomes {
    fn decision(&self, event: &Event<'_>) {
        captured::shown(event);
        self.0.lock().unwrap().push(event.outcome().as_str().to_owned());
    }

    fn outage(&self, _: &tower_devicecheck::Outage<'_>) {
        self.1.add();
    }
}

#[tokio::test]
async fn monitor_mode_records_and_forwards() {
    let apple = Apple::new();
    let outcomes = Outcomes::default();
    let layer = apple.layer().with_limiter(at_most(1, &Counter::default()));
    let app = App::new(&layer.with_enforcement(Enforcement::Monitor).with_observer(outcomes.clone()));
    for _ in 0..2 {
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    }
    let head = app.inner.last();
    let Some(DeviceOutcome::Rejected(limited)) = head.extensions.get() else { panic!("no rejection") };
    assert_eq!(*limited, Rejection::limit_exceeded(Duration::from_secs(42)));
    assert_eq!(*outcomes.0.lock().unwrap(), ["verified", "limit_exceeded"]);
    // The limit is the operator's own: it is no outage.
    assert_eq!((apple.calls(), app.inner.calls(), outcomes.1.get()), (1, 2, 0));
}

#[tokio::test]
async fn a_limited_request_reserves_nothing() {
    let apple = Apple::new();
    let guard = Arc::new(MemoryReplayGuard::new());
    let is_open = Counter::default();
    let closed = is_open.clone();
    let limiter = move |_: &request::Parts| {
        if closed.get() > 0 { Ok(()) } else { Err(Duration::from_secs(1)) }
    };
    let app = App::new(&apple.layer().with_single_use(Arc::clone(&guard)).with_limiter(limiter));
    let token = apple.genuine();
    for _ in 0..2 {
        assert_eq!(app.status(&token).await, StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!((guard.len(), apple.calls()), (0, 0));
    is_open.add();
    assert_eq!(app.status(&token).await, StatusCode::OK);
    assert_eq!(rejection(&app.get(&token).await), Rejection::ReusedToken);
    assert_eq!((guard.len(), apple.calls()), (1, 1));
}
