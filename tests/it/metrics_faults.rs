//! Metrics and spans while clients leave, objects are dropped, and recorders fail.

use std::time::Duration;

use futures::FutureExt;
use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tower_devicecheck::{
    AppleClient, DeviceCheckLayer, TokenDigest,
    cache::{CacheError, CachedVerdict, MayAsk, VerdictCache, VerdictKey},
    testing::{FakeApple, Reply},
};
use tracing::{Instrument, field::Empty, info_span, level_filters::LevelFilter};
use tracing_subscriber::{filter::Targets, fmt::format::FmtSpan, prelude::*};

use crate::metrics::Metrics;
use crate::support::{App, Apple, Log, keep_events_enabled};

fn app_with_few_slots(fake: &FakeApple) -> App {
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
    App::new(&DeviceCheckLayer::new(client.in_flight_limit(1).waiting_limit(1).build().unwrap()))
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_are_neither_in_flight_nor_waiting() {
    let metrics = Metrics::record();
    let apple = Apple::new();
    apple.fake.always(Reply::normal().delay(Duration::from_millis(100)));
    let app = app_with_few_slots(&apple.fake);
    let (sent, waits) = (apple.genuine(), apple.genuine());
    let mut requests: Vec<_> = [&sent, &waits].map(|token| Box::pin(app.get(token))).into();
    for request in &mut requests {
        assert!(request.now_or_never().is_none());
    }
    let gauges = || {
        tokio::task::yield_now().map(|()| {
            let gauge = |name| metrics.value(name, &[]);
            (gauge("devicecheck_apple_in_flight"), gauge("devicecheck_apple_waiting"))
        })
    };
    assert_eq!(gauges().await, (Some(1.0), Some(1.0)));
    requests.clear();
    assert_eq!(gauges().await, (Some(1.0), Some(0.0)), "the request that was sent keeps its slot");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(gauges().await, (Some(0.0), Some(0.0)));
    assert_eq!(apple.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_dropped_no_longer_counts_as_held_off() {
    let metrics = Metrics::record();
    let apple = Apple::new();
    apple.fake.always(Reply::status(429).header("retry-after", "60"));
    let mut apps = [(); 2].map(|()| app_with_few_slots(&apple.fake)).to_vec();
    for app in &apps {
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::SERVICE_UNAVAILABLE);
    }
    let clients = |state| {
        let labels = [("environment", "production"), ("state", state)];
        metrics.value("devicecheck_apple_availability", &labels)
    };
    assert_eq!(["available", "down", "held_off"].map(clients), [Some(0.0), Some(0.0), Some(2.0)]);
    apps.pop();
    assert_eq!(["available", "down", "held_off"].map(clients), [Some(0.0), Some(0.0), Some(1.0)]);

    apple.fake.always(Reply::normal());
    tokio::time::sleep(Duration::from_secs(61)).await;
    for _ in 0..2 {
        apps[0].status(&apple.genuine()).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(["available", "down", "held_off"].map(clients), [Some(1.0), Some(0.0), Some(0.0)]);
    apps.pop();
    assert_eq!(["available", "down", "held_off"].map(clients), [Some(0.0); 3]);
    assert_eq!(apple.calls(), 4);
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_redis_handle_that_is_dropped_takes_its_incident_along() {
    let metrics = Metrics::record();
    let incidents = || metrics.value("devicecheck_redis_incidents", &[]);
    // Nobody listens on this port.
    let redis = tower_devicecheck::Redis::connect("redis://127.0.0.1:1").await.unwrap();
    assert_eq!(incidents(), Some(1.0));
    drop(redis);
    assert_eq!(incidents(), Some(0.0));
}

/// A recorder without any metric that works.
struct Panics;

#[allow(clippy::panic, reason = "its purpose")]
impl Recorder for Panics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        panic!("a counter")
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        panic!("a gauge")
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        panic!("a histogram")
    }
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_panics_costs_neither_a_request_nor_a_slot() {
    let _guard = metrics::set_default_local_recorder(&Panics);
    let apple = Apple::new();
    let app = app_with_few_slots(&apple.fake);
    for _ in 0..3 {
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    }
    assert_eq!(apple.calls(), 3);
}

/// A cache whose lease takes longer than the client's total timeout.
struct SlowLease;

impl VerdictCache for SlowLease {
    async fn get(&self, _: &VerdictKey<'_>) -> Result<Option<CachedVerdict>, CacheError> {
        Ok(None)
    }

    async fn put(&self, _: &VerdictKey<'_>, _: CachedVerdict) -> Result<(), CacheError> {
        Ok(())
    }

    async fn lease(&self, _: &VerdictKey<'_>) -> MayAsk {
        tokio::time::sleep(Duration::from_secs(20)).await;
        MayAsk::Freely
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_time_is_over_before_it_is_made_counts_as_too_late() {
    let metrics = Metrics::record();
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_cache(SlowLease));
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::SERVICE_UNAVAILABLE);
    let too_late = metrics.value("devicecheck_apple_turned_away_total", &[("reason", "too_late")]);
    assert_eq!(too_late, Some(1.0));
    assert_eq!(apple.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_span_of_its_own_the_check_leaves_the_applications_span_alone() {
    keep_events_enabled();
    let log = Log::default();
    let writer = {
        let log = log.clone();
        move || log.clone()
    };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_span_events(FmtSpan::CLOSE);
    let targets =
        Targets::new().with_default(LevelFilter::INFO).with_target("tower_devicecheck", LevelFilter::WARN);
    let subscriber = tracing_subscriber::registry().with(lines.with_writer(writer)).with(targets);
    let _guard = tracing::subscriber::set_default(subscriber);
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let token = apple.genuine();
    let span = info_span!("request", outcome = "mine", digest = Empty, environment = Empty);
    assert_eq!(app.status(&token).instrument(span).await, StatusCode::OK);
    let text = log.take();
    assert!(text.contains("request{outcome=\"mine\"}"), "{text}");
    assert!(
        !text.contains(&TokenDigest::of(token.as_bytes()).to_string()) && !text.contains("verified"),
        "{text}"
    );
    assert_eq!(apple.calls(), 1);
}
