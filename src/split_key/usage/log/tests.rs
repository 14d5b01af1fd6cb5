use std::time::Duration;

use web_time::UNIX_EPOCH;

use super::UsageLog;
use crate::runtime::set_wall_clock;
use crate::split_key::fixtures::{Fixture, KEYS, request, with};
use crate::split_key::splitter::{Split, Splitter};
use crate::split_key::usage::stated::TokenUsage;
use crate::split_key::{api_key::ApiKey, limits::Limits, record::SplitKeyState};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn logged(log: &UsageLog) -> (Fixture, Split) {
    let mut fixture = Fixture::new();
    fixture.layer = fixture.layer.clone().with_observer(log.clone());
    let split = fixture.key(SplitKeyState::Active, Limits::none().with_paths(["/v1/chat"])).await;
    (fixture, split)
}

fn stated(model: Option<&str>, input: u64, output: u64) -> TokenUsage {
    TokenUsage { model: model.map(str::to_owned), input: Some(input), output: Some(output) }
}

fn open(split: &Split) -> ApiKey {
    Splitter::new().open(split.record(), split.client_part()).unwrap()
}

/// Counts an answer to a request with the key of this split.
fn count(log: &UsageLog, split: &Split, usage: &TokenUsage) {
    log.count_answers(&open(split)).count(usage);
}

#[tokio::test]
async fn uses_and_tokens() {
    let log = UsageLog::new().with_capacity(1);
    let (fixture, split) = logged(&log).await;
    let part = split.client_part().expose();
    fixture.send(with(part)).await;
    fixture.send(with(part)).await;
    let mut elsewhere = with(part);
    *elsewhere.uri_mut() = "/v1/files".parse().unwrap();
    fixture.send(elsewhere).await;
    fixture.send(request(&[])).await;
    count(&log, &split, &stated(Some("gpt"), 3, 4));
    count(&log, &split, &stated(Some("gpt"), 30, 40));
    count(&log, &split, &TokenUsage::default());
    let usage: serde_json::Value = serde_json::from_str(&log.report().await.unwrap().to_json()).unwrap();
    let entry = &usage["entries"][0];
    assert_eq!(entry["project"], "project");
    assert_eq!(entry["split"], split.record().split().to_string());
    assert_eq!(entry["provider"], "openai");
    assert_eq!(entry["version"], 2);
    assert_eq!(entry["opened"], 2);
    assert_eq!(entry["limited"], 1);
    assert_eq!(entry["refused"], 0);
    assert!(entry["last_used"].as_u64().unwrap() > 0);
    let models = serde_json::json!([
        { "model": "gpt", "requests": 2, "unstated": 0, "input_tokens": 33, "output_tokens": 44 },
        { "model": null, "requests": 1, "unstated": 1, "input_tokens": 0, "output_tokens": 0 },
    ]);
    assert_eq!(entry["models"], models);
    assert_eq!(usage["unattributed"], 1);

    let other = fixture.key(SplitKeyState::Active, Limits::none()).await;
    fixture.send(with(other.client_part().expose())).await;
    let report = log.report().await.unwrap();
    assert_eq!(report.entries.len(), 1);
    assert_eq!(report.entries[0].opened + report.dropped, 4);
}

#[tokio::test]
async fn models_beyond_a_limit_count_together() {
    let log = UsageLog::new();
    let (_, split) = logged(&log).await;
    for number in 0..100 {
        count(&log, &split, &stated(Some(&format!("model-{number}")), 1, 2));
    }
    count(&log, &split, &stated(Some("model-0"), 1, 2));
    count(&log, &split, &TokenUsage::default());
    let models = &log.report().await.unwrap().entries[0].models;
    assert_eq!(models.len(), 34);
    assert_eq!((models[0].requests, models[0].output_tokens), (2, 4));
    let other = models.iter().find(|model| model.model.as_deref() == Some("other")).unwrap();
    assert_eq!((other.requests, other.input_tokens), (68, 68));
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_costs_one_day() {
    let log = UsageLog::new().with_retention(3);
    let (_, split) = logged(&log).await;
    let days = async |log: &UsageLog| {
        log.report().await.unwrap().entries.into_iter().map(|entry| entry.day).collect::<Vec<_>>()
    };
    for day in [1, 2, 3, 4] {
        set_wall_clock(UNIX_EPOCH + DAY * day);
        count(&log, &split, &stated(None, 1, 1));
    }
    assert_eq!(days(&log).await, ["1970-01-05", "1970-01-04", "1970-01-03"]);
    set_wall_clock(UNIX_EPOCH + DAY * 40_000);
    count(&log, &split, &stated(None, 1, 1));
    set_wall_clock(UNIX_EPOCH + DAY * 5);
    count(&log, &split, &stated(None, 1, 1));
    assert_eq!(days(&log).await, ["2079-07-08", "1970-01-06", "1970-01-05"]);
}

#[tokio::test]
async fn an_answer_counts_for_the_day_on_which_it_began() {
    let log = UsageLog::new();
    let (_, split) = logged(&log).await;
    set_wall_clock(UNIX_EPOCH + DAY - Duration::from_secs(1));
    let counter = log.count_answers(&open(&split));
    assert!(!format!("{counter:?}").contains(KEYS[0].1));
    set_wall_clock(UNIX_EPOCH + DAY);
    counter.count(&stated(None, 1, 1));
    assert_eq!(log.report().await.unwrap().entries[0].day, "1970-01-01");
}
