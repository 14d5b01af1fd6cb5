use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::split_key::audit::{event::SuspicionKind, suspicion::Suspicion};
use crate::split_key::fixtures::{Fixture, KEYS, device, with};
use crate::split_key::splitter::{Split, Splitter};
use crate::split_key::{limits::Limits, record::SplitKeyState};

#[tokio::test(start_paused = true)]
async fn blocking_and_release() {
    let mut fixture = Fixture::new();
    let minute = Duration::from_secs(60);
    fixture.layer = fixture
        .layer
        .clone()
        .with_suspicion(Suspicion::new().with_max_devices(2).with_max_refusals(3).with_blocking(minute));
    let used = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let quiet = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let from = |split: &Split, token: &str| {
        let mut request = with(split.client_part().expose());
        request.extensions_mut().insert(device(token));
        request
    };
    for token in ["AQAA", "AQAA", "AgAA", "AgAA"] {
        assert_eq!(fixture.send(from(&used, token)).await.status(), 200);
    }
    assert!(fixture.suspicions().is_empty());
    assert_eq!(fixture.send(from(&used, "AwAA")).await.status(), 200);
    assert_eq!(fixture.suspicions(), [(SuspicionKind::ManyDevices, Some(minute))]);

    tokio::time::advance(Duration::from_millis(500)).await;
    let gets = fixture.store.gets.load(Ordering::Relaxed);
    let response = fixture.send(from(&used, "AQAA")).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "60");
    assert_eq!(fixture.store.gets.load(Ordering::Relaxed), gets);
    assert_eq!(fixture.send(from(&quiet, "AQAA")).await.status(), 200, "another split");
    tokio::time::advance(minute).await;
    assert_eq!(fixture.send(from(&used, "AQAA")).await.status(), 200, "released");
    assert!(fixture.suspicions().is_empty());

    // An unknown split is blocked as well, so that blocking does not reveal which splits exist.
    let (provider, key) = KEYS[0];
    let unknown = Splitter::new().split("project", provider, key).unwrap();
    for expected in [401, 401, 401, 401, 429] {
        assert_eq!(fixture.send(from(&unknown, "AQAA")).await.status(), expected);
    }
    assert_eq!(fixture.suspicions(), [(SuspicionKind::ManyRefusals, Some(minute))]);
    tokio::time::advance(minute).await;
    assert_eq!(fixture.send(from(&unknown, "AQAA")).await.status(), 401);
}

#[tokio::test]
async fn suspicion_alone_blocks_nothing() {
    let mut fixture = Fixture::new();
    fixture.layer = fixture.layer.clone().with_suspicion(Suspicion::new().with_max_refusals(0));
    let (provider, key) = KEYS[0];
    let unknown = Splitter::new().split("project", provider, key).unwrap();
    for _ in 0..5 {
        assert_eq!(fixture.send(with(unknown.client_part().expose())).await.status(), 401);
    }
    // An event comes once in a window.
    assert_eq!(fixture.suspicions(), [(SuspicionKind::ManyRefusals, None)]);
}

/// The time that this thread has had a processor, which no other thread lengthens.
#[cfg(target_os = "linux")]
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn c10_made_up_splits_do_not_make_each_use_dear() {
    let mut fixture = Fixture::new();
    fixture.layer = fixture.layer.clone().with_suspicion(Suspicion::new());
    let split = fixture.key(SplitKeyState::Active, Limits::none()).await;
    let part = split.client_part().expose();
    let made_up = async |from: u32, uses: u32| {
        let before = processor_time();
        for number in from..from + uses {
            let part = format!("{}{number:08x}", &part[..part.len() - 8]);
            assert_eq!(fixture.send(with(&part)).await.status(), 401);
        }
        processor_time() - before
    };
    made_up(1, 1_000).await;
    let before = made_up(1_001, 1_000).await;
    made_up(2_001, 9_000).await;
    let mut after = Duration::MAX;
    for batch in 11..14 {
        after = after.min(made_up(batch * 1_000, 1_000).await);
    }
    assert!(after < before * 2, "{after:?}, and {before:?} before");
}

#[tokio::test]
async fn c08_the_longest_block_lasts() {
    let mut fixture = Fixture::new();
    let rules = Suspicion::new().with_max_refusals(1).with_window(Duration::MAX).with_blocking(Duration::MAX);
    fixture.layer = fixture.layer.clone().with_suspicion(rules);
    let (provider, key) = KEYS[0];
    let unknown = Splitter::new().split("project", provider, key).unwrap();
    for expected in [401, 401, 429, 429] {
        assert_eq!(fixture.send(with(unknown.client_part().expose())).await.status(), expected);
    }
}
