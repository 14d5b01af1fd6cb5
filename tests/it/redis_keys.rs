//! Split keys in a Redis that replicas share.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Response};
use http_body_util::Full;
use redis::AsyncCommands;
use tower::{Layer, ServiceExt, service_fn};
use tower_devicecheck::{
    Redis,
    split_key::{
        Limits, RedisSplitKeyStore, SplitKeyLayer, SplitKeyRecord, SplitKeyState, SplitKeyStore, Splitter,
        UsageLog, revoke,
    },
};

use crate::captured::Fails as _;
use crate::{
    redis_server::RedisServer,
    support::{Apple, TOKEN_HEADER},
};

async fn store(server: &RedisServer) -> RedisSplitKeyStore {
    store_with_deadline(server, Duration::from_secs(20)).await
}

async fn store_with_deadline(server: &RedisServer, deadline: Duration) -> RedisSplitKeyStore {
    RedisSplitKeyStore::new(Redis::connect(server.url()).await.unwrap().with_deadline(deadline))
}

fn new_record() -> SplitKeyRecord {
    let key = format!("sk-{}", "0123456789abcdef".repeat(3));
    Splitter::new().split("project", "openai", &key).unwrap().record().clone()
}

#[tokio::test]
async fn what_one_replica_changes_all_see() {
    let server = RedisServer::start();
    let (one, two) = (store(&server).await, store(&server).await);
    let record = new_record();
    one.put(vec![record.clone()]).await.unwrap();
    let found = two.get("project", record.split()).await.unwrap().unwrap();
    assert_eq!((found.revision(), found.state()), (0, SplitKeyState::Active));
    assert_eq!(serde_json::to_string(&found).unwrap(), serde_json::to_string(&record).unwrap());
    assert!(two.get("another", record.split()).await.unwrap().is_none());

    revoke(&two, "project", record.split()).await.unwrap();
    let found = one.get("project", record.split()).await.unwrap().unwrap();
    assert_eq!((found.revision(), found.state()), (1, SplitKeyState::Revoked));
    assert_eq!(one.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn all_records_or_none() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let (one, two) = (new_record(), new_record());
    store.put(vec![one.clone()]).await.unwrap();
    let revoked = |record: &SplitKeyRecord| record.changed_to(SplitKeyState::Revoked);
    let conflicts = [
        ("not new", vec![two.clone(), one.clone()]),
        ("nothing to change", vec![revoked(&one), revoked(&two)]),
        ("changed twice", vec![revoked(&revoked(&one))]),
    ];
    for (name, records) in conflicts {
        assert!(store.put(records).await.failure().is_conflict(), "{name}");
        let records = store.list().await.unwrap();
        assert_eq!((records.len(), records[0].revision()), (1, 0), "{name}");
    }
    // Of many who change the same revision, one does.
    let changes = join_all((0..20).map(|_| store.put(vec![revoked(&one)]))).await;
    assert_eq!(changes.iter().filter(|change| change.is_ok()).count(), 1);
    store.put(vec![revoked(&revoked(&one)), two]).await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn rubbish_and_outages_are_errors() {
    let mut server = RedisServer::start();
    let store = store_with_deadline(&server, Duration::from_millis(500)).await;
    let (record, other) = (new_record(), new_record());
    store.put(vec![record.clone(), other.clone()]).await.unwrap();
    let mut client =
        redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let name = |record: &SplitKeyRecord| format!("{} {}", record.split(), record.project());
    let hash = "tower-devicecheck:keys1";
    let good: Vec<u8> = client.hget(hash, name(&other)).await.unwrap();
    for value in [&good[..], b"", b"0\n", b"0\n{}", b"1", &[b"1", &good[1..]].concat()] {
        let field = if value.starts_with(b"1\n") { name(&other) } else { name(&record) };
        let () = client.hset(hash, &field, value).await.unwrap();
        let split = if value.starts_with(b"1\n") { other.split() } else { record.split() };
        assert!(store.get("project", split).await.is_err(), "{value:?}");
        assert!(store.list().await.is_err());
    }
    server.kill();
    assert!(!store.get("project", record.split()).await.failure().is_conflict());
}

#[tokio::test]
async fn counts_of_all_replicas() {
    let server = RedisServer::start();
    let apple = Apple::new();
    let keys = store(&server).await;
    let key = format!("sk-{}", "0123456789abcdef".repeat(3));
    let split = Splitter::new().issue(&keys, "project", "openai", &key, Limits::none()).await.unwrap();
    let part = split.client_part().expose().to_owned();
    for replica in 1..=2_u64 {
        let log = UsageLog::in_redis(Redis::connect(server.url()).await.unwrap());
        let layer = SplitKeyLayer::new(keys.clone()).with_observer(log.clone());
        let answer = async |_: Request<()>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()));
        let service = apple.layer().layer(layer.layer(service_fn(answer)));
        for (project, status) in [("project", 200), ("made-up", 401)] {
            let request = Request::builder()
                .header(TOKEN_HEADER, apple.genuine())
                .header("x-ai-key", &part)
                .header("x-project-id", project)
                .body(())
                .unwrap();
            let response = service.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{project}");
        }
        // A report has all that this replica counted before.
        let report = log.report().await.unwrap();
        assert_eq!((report.entries.len(), report.unattributed), (1, replica));
        let entry = &report.entries[0];
        assert_eq!(
            (&*entry.project, entry.split, &*entry.provider),
            ("project", split.record().split(), "openai")
        );
        assert_eq!((entry.opened, entry.refused, entry.version), (replica, 0, 2));
        assert!(entry.last_used > 0);
    }
    assert_eq!(apple.calls(), 4);
}

#[tokio::test]
async fn counts_wait_for_redis_and_count_once() {
    let mut server = RedisServer::start();
    let apple = Apple::new();
    let keys = store(&server).await;
    let key = format!("sk-{}", "0123456789abcdef".repeat(3));
    let split = Splitter::new().issue(&keys, "project", "openai", &key, Limits::none()).await.unwrap();
    let key = Splitter::new().open(split.record(), split.client_part()).unwrap();
    let redis = Redis::connect(server.url()).await.unwrap().with_deadline(Duration::from_millis(100));
    let log = UsageLog::in_redis(redis);
    let count = || log.count_answers(&key).count(&Default::default());
    count();
    log.flush().await.unwrap();
    // The server has the commands, and their answers are late: they are sent again.
    server.freeze();
    count();
    assert!(log.flush().await.is_err());
    count();
    assert!(log.flush().await.is_err());
    server.thaw();
    let deadline = Instant::now() + Duration::from_secs(20);
    let requests = async || loop {
        if let Ok(report) = log.report().await {
            return report.entries[0].models[0].requests;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(requests().await, 3);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(requests().await, 3);
    // A server that has lost all that it had has the counts since then.
    server.kill();
    count();
    assert!(log.flush().await.is_err());
    server.restart();
    assert_eq!(requests().await, 1);
    assert_eq!(apple.calls(), 0);
}
