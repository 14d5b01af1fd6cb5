//! The metrics of a run, as the Prometheus exporter writes them.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use http::{Response, StatusCode};
use http_body_util::Empty;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_devicecheck::replay::MemoryReplayGuard;
use tower_devicecheck::split_key::{Limits, MemorySplitKeyStore, SplitKeyLayer, Splitter};
use tower_devicecheck::{
    AppleClient, DebugTokens, DeviceCheckLayer, Enforcement, Route, describe_metrics,
    testing::{FakeApple, Reply},
};

use crate::captured;
use crate::split_key::KEYS;
use crate::support::{App, Apple, get, plain};

/// A recorder for this test's thread.
pub(crate) struct Metrics {
    handle: PrometheusHandle,
    _local: metrics::LocalRecorderGuard<'static>,
}

impl Metrics {
    pub(crate) fn record() -> Self {
        let recorder: &'static PrometheusRecorder =
            Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        let local = metrics::set_default_local_recorder(recorder);
        describe_metrics();
        Self { handle: recorder.handle(), _local: local }
    }

    fn text(&self) -> String {
        self.handle.run_upkeep();
        let text = self.handle.render();
        captured::printed(&text);
        text
    }

    /// The value of a series, whose labels may be in any order.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: BTreeSet<_> = labels.iter().map(|(name, value)| format!(r#"{name}="{value}""#)).collect();
        self.text().lines().filter(|line| !line.starts_with('#')).find_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, "}"));
            let rest: BTreeSet<_> = rest.trim_end_matches('}').split(',').map(str::to_owned).collect();
            let is_same =
                found == name && (rest == labels || labels.is_empty() && rest == [String::new()].into());
            is_same.then(|| value.parse().unwrap())
        })
    }

    fn decisions(&self, outcome: &str, evidence: &str, environment: &str, enforcement: &str) -> Option<f64> {
        let labels = [
            ("outcome", outcome),
            ("evidence", evidence),
            ("environment", environment),
            ("enforcement", enforcement),
            ("tenant", "none"),
        ];
        self.value("devicecheck_decisions_total", &labels)
    }

    fn apple(&self, result: &str) -> Option<f64> {
        let labels = [("environment", "production"), ("operation", "validate"), ("result", result)];
        self.value("devicecheck_apple_request_duration_seconds_count", &labels)
    }

    fn lookups(&self, cache: &str, result: &str) -> Option<f64> {
        self.value("devicecheck_cache_lookups_total", &[("cache", cache), ("result", result)])
    }
}

#[tokio::test(start_paused = true)]
async fn decisions_are_counted_by_outcome_evidence_environment_and_enforcement() {
    let metrics = Metrics::record();
    let apple = Apple::new();
    let secret = "9a1f0f66-5f0b-4d0c-8f3b-0c5d6a0d2c11";
    let layer = apple.layer().with_debug_tokens(DebugTokens::new().add("ci", secret).unwrap());
    let (genuine, forged) = (apple.genuine(), apple.fake.forged_token());
    let app = App::new(&layer);
    for token in [&genuine, &genuine, &genuine, &forged, &forged] {
        app.get(token).await;
    }
    app.send(plain()).await;
    app.get("not base64!").await;
    let mut debug = plain();
    debug.headers_mut().insert("x-debug-token", secret.parse().unwrap());
    assert_eq!(app.send(debug).await.status(), StatusCode::OK);
    App::new(&layer.clone().with_routing(Route::Exempt)).send(plain()).await;
    App::new(&layer.clone().with_enforcement(Enforcement::Monitor)).send(plain()).await;
    let shadow = layer.with_enforcement(Enforcement::Shadow);
    App::new(&shadow).get(&genuine).await;
    App::new(&shadow.with_shadow_checks(0)).get(&genuine).await;

    let rows = [
        ("verified", "apple", "production", "enforce", 1.0),
        ("verified", "cache", "production", "enforce", 2.0),
        ("verified", "debug-token", "production", "enforce", 1.0),
        ("refused_token", "none", "production", "enforce", 2.0),
        ("missing_token", "none", "production", "enforce", 1.0),
        ("malformed_token", "none", "production", "enforce", 1.0),
        ("exempt", "none", "none", "enforce", 1.0),
        ("missing_token", "none", "production", "monitor", 1.0),
        ("verified", "cache", "production", "shadow", 1.0),
        ("left_out", "none", "none", "shadow", 1.0),
    ];
    for (outcome, evidence, environment, enforcement, expected) in rows {
        let counted = metrics.decisions(outcome, evidence, environment, enforcement);
        assert_eq!(counted, Some(expected), "{outcome} {evidence} {enforcement}");
    }
    assert_eq!(metrics.text().matches("devicecheck_decisions_total{").count(), rows.len(), "no other series");
    assert_eq!((metrics.lookups("memory", "hit"), metrics.lookups("memory", "miss")), (Some(4.0), Some(3.0)));
    assert_eq!(metrics.value("devicecheck_cache_entries", &[]), Some(2.0));
    assert_eq!(metrics.value("devicecheck_provider_tokens_total", &[("forced", "false")]), Some(1.0));
    let checks = |outcome| {
        metrics.value("devicecheck_check_duration_seconds_count", &[("outcome", outcome), ("tenant", "none")])
    };
    assert_eq!(
        (checks("verified"), checks("refused_token"), checks("missing_token")),
        (Some(1.0), Some(1.0), None)
    );
    assert_eq!((metrics.apple("accepted"), metrics.apple("refused")), (Some(1.0), Some(1.0)));
    assert_eq!(apple.calls(), 2);
    drop(app);
}

#[tokio::test(start_paused = true)]
async fn requests_to_apple_are_timed_by_result_and_retries_are_counted() {
    let metrics = Metrics::record();
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let seconds = |result| {
        let labels = [("environment", "production"), ("operation", "validate"), ("result", result)];
        metrics.value("devicecheck_apple_request_duration_seconds_sum", &labels)
    };
    apple.fake.script(Reply::normal().delay(Duration::from_millis(250)));
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!(seconds("accepted"), Some(0.25));

    for (reply, result, retries) in [
        (Reply::status(503), "unavailable", 1),
        (Reply::status(500), "unavailable", 1),
        (Reply::hang(), "no_answer", 2),
        (Reply::status(401), "misconfigured", 2),
        (Reply::status(429).header("retry-after", "60"), "throttled", 2),
    ] {
        let before = metrics.apple(result).unwrap_or(0.0);
        let asked = apple.calls();
        apple.fake.always(reply.clone());
        app.status(&apple.genuine()).await;
        let requests = metrics.apple(result).unwrap() - before;
        assert_eq!(requests, (apple.calls() - asked) as f64, "{reply:?}");
        let labels = [("environment", "production"), ("operation", "validate")];
        let counted = metrics.value("devicecheck_apple_retries_total", &labels).unwrap_or(0.0);
        assert!(counted >= f64::from(retries), "{reply:?}: {counted} retries");
    }
    // Apple wants to be left alone.
    let state = |state| {
        metrics.value("devicecheck_apple_availability", &[("environment", "production"), ("state", state)])
    };
    assert_eq!([state("available"), state("down"), state("held_off")], [Some(0.0), Some(0.0), Some(1.0)]);
    let asked = apple.calls();
    app.status(&apple.genuine()).await;
    assert_eq!(apple.calls(), asked);
    assert_eq!(metrics.value("devicecheck_apple_turned_away_total", &[("reason", "outage")]), Some(1.0));

    apple.fake.clear();
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!([state("available"), state("down"), state("held_off")], [Some(1.0), Some(0.0), Some(0.0)]);
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_and_waiting_return_to_zero() {
    let metrics = Metrics::record();
    let fake = FakeApple::new();
    let client = AppleClient::builder(fake.credentials()).transport(fake.transport());
    let client = client.in_flight_limit(2).waiting_limit(3).build().unwrap();
    let app = App::new(&DeviceCheckLayer::new(client));
    let apple = Apple {
        fake: fake.clone(),
        client: AppleClient::builder(fake.credentials()).transport(fake.transport()).build().unwrap(),
    };
    fake.always(Reply::normal().delay(Duration::from_millis(100)));
    let tokens: Vec<_> = (0..7).map(|_| apple.genuine()).collect();
    let gauges = || {
        let gauge = |name| metrics.value(name, &[]);
        (gauge("devicecheck_apple_in_flight"), gauge("devicecheck_apple_waiting"))
    };
    let during = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(gauges(), (Some(2.0), Some(3.0)));
    };
    let (statuses, ()) = futures::join!(join_all(tokens.iter().map(|token| app.status(token))), during);
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::OK).count(), 5);
    assert_eq!(gauges(), (Some(0.0), Some(0.0)));
    assert_eq!(metrics.value("devicecheck_apple_turned_away_total", &[("reason", "queue_full")]), Some(2.0));
    assert_eq!(apple.calls(), 5);

    // A crowd with one token makes one check.
    let token = apple.genuine();
    join_all((0..10).map(|_| app.status(&token))).await;
    assert_eq!(metrics.value("devicecheck_checks_joined_total", &[]), Some(9.0));
    assert_eq!(apple.calls(), 6);
}

#[tokio::test(start_paused = true)]
async fn reservations_are_counted_by_result() {
    let metrics = Metrics::record();
    let apple = Apple::new();
    let app = App::new(&apple.layer().with_single_use(MemoryReplayGuard::new()));
    let token = apple.genuine();
    for expected in [StatusCode::OK, StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED] {
        assert_eq!(app.status(&token).await, expected);
    }
    let reservations = |result| metrics.value("devicecheck_reservations_total", &[("result", result)]);
    assert_eq!((reservations("reserved"), reservations("reused")), (Some(1.0), Some(2.0)));
    assert_eq!(apple.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn uses_of_split_keys_are_counted_by_the_projects_that_the_store_has() {
    let metrics = Metrics::record();
    let (apple, store) = (Apple::new(), Arc::new(MemorySplitKeyStore::new()));
    let (_, key) = KEYS[0];
    let split = Splitter::new().issue(&store, "shop", "openai", key, Limits::none()).await.unwrap();
    let inner = service_fn(async |_| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())));
    let service = ServiceBuilder::new().layer(apple.layer()).layer(SplitKeyLayer::new(store)).service(inner);
    let token = apple.genuine();
    let part = split.client_part().expose();
    for project in ["shop", "shop", "shop-1", "shop-2", "not a project"] {
        let mut request = get(&token);
        request.headers_mut().insert("x-project-id", project.parse().unwrap());
        request.headers_mut().insert("x-ai-key", part.parse().unwrap());
        service.clone().oneshot(request).await.unwrap();
    }
    let uses = |project, provider, outcome| {
        let labels = [("project", project), ("provider", provider), ("outcome", outcome)];
        metrics.value("devicecheck_split_key_uses_total", &labels)
    };
    assert_eq!(uses("shop", "openai", "opened"), Some(2.0));
    assert_eq!(uses("unknown", "unknown", "unknown"), Some(2.0));
    assert_eq!(uses("unknown", "unknown", "malformed"), Some(1.0));
    assert_eq!(metrics.text().matches("devicecheck_split_key_uses_total{").count(), 3);
    assert!(!metrics.text().contains(part.split('.').next().unwrap()));
    assert_eq!(apple.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_label_holds_anything_of_a_client() {
    let metrics = Metrics::record();
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let (genuine, forged) = (apple.genuine(), apple.fake.forged_token());
    for token in [&genuine, &genuine, &forged] {
        app.get(token).await;
    }
    let digest = app.device().digest().to_string();
    app.send(get("<script>")).await;
    let text = metrics.text();
    for secret in [&genuine, &forged, &digest, "<script>", apple.fake.key_id(), apple.fake.team_id()] {
        assert!(!text.contains(secret), "{secret}");
    }
    assert_eq!(apple.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn different_tokens_make_no_new_series() {
    let metrics = Metrics::record();
    let apple = Apple::new();
    let app = App::new(&apple.layer());
    let mut series = Vec::new();
    for tokens in [10, 500] {
        for _ in 0..tokens {
            app.get(&apple.genuine()).await;
            app.get(&apple.fake.forged_token()).await;
        }
        series.push(metrics.text().lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count());
    }
    assert_eq!(series[0], series[1]);
    assert_eq!(apple.calls(), 1020);
}

/// Each layer counts for its own tenant, although all of them are clones of one.
#[tokio::test]
async fn decisions_are_counted_by_tenant() {
    use tower_devicecheck::tenant::{ClientChosenTenant, Tenants};
    let metrics = Metrics::record();
    let base = Apple::new().layer();
    let mut tenants = Tenants::new(ClientChosenTenant::new("x-tenant".parse().unwrap()));
    for name in ["shop", "club"] {
        tenants = tenants.with(name, base.clone()).unwrap();
    }
    let app = App::new(&tenants);
    for name in ["shop", "club", "club", "unknown", "another"] {
        let mut request = plain();
        request.headers_mut().insert("x-tenant", name.parse().unwrap());
        app.send(request).await;
    }
    for (tenant, outcome, count) in
        [("shop", "missing_token", 1.0), ("club", "missing_token", 2.0), ("none", "refused_token", 2.0)]
    {
        let labels = [
            ("outcome", outcome),
            ("evidence", "none"),
            ("environment", "production"),
            ("enforcement", "enforce"),
            ("tenant", tenant),
        ];
        assert_eq!(metrics.value("devicecheck_decisions_total", &labels), Some(count), "{tenant}");
    }
    assert!(metrics.apple("ok").is_none(), "nobody was asked");
}
