//! Receipts of App Attest in a Redis that replicas share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use redis::AsyncCommands;
use tower_devicecheck::{
    Environment, Redis,
    app_attest::{KeyId, ReceiptKey, ReceiptStore, RedisReceiptStore, StoredReceipt},
};

use crate::redis_server::{PATIENT, RedisServer, client};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MINUTE: Duration = Duration::from_secs(60);

async fn store(server: &RedisServer) -> RedisReceiptStore {
    RedisReceiptStore::new(Redis::connect(server.url()).await.unwrap().with_deadline(PATIENT))
}

fn key(number: u8, tenant: Option<&str>) -> ReceiptKey {
    ReceiptKey { tenant: tenant.map(|name| name.parse().unwrap()), key_id: KeyId::from([number; 32]) }
}

/// Whole milliseconds, as Redis keeps them.
fn now() -> SystemTime {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UNIX_EPOCH + Duration::from_millis(since_epoch.as_millis().try_into().unwrap())
}

/// A receipt that came a day ago, whose key was seen since, and which is due.
fn receipt(now: SystemTime) -> StoredReceipt {
    StoredReceipt {
        receipt: vec![0, 0xff, b'\r', b'\n', 0x30, 0x80],
        app_id: "TEAM123456.com.example.app".parse().unwrap(),
        environment: Environment::Development,
        not_before: None,
        expiry: now + 89 * DAY,
        risk_metric: None,
        fetched_at: now - DAY,
        seen_at: now - DAY,
        failures: 0,
        next_attempt: Some(now - MINUTE),
    }
}

#[tokio::test]
async fn what_one_replica_stores_all_read_and_redis_forgets() {
    let server = RedisServer::start();
    let (one, two, now) = (store(&server).await, store(&server).await, now());
    let (shop, bank, none) = (key(1, Some("shop")), key(1, Some("bank")), key(1, None));
    assert_eq!(one.get(&shop).await.unwrap(), None);
    one.put(&shop, receipt(now)).await.unwrap();
    assert_eq!(two.get(&shop).await.unwrap(), Some(receipt(now)));
    assert_eq!(two.get(&bank).await.unwrap(), None, "another tenant");
    assert_eq!(two.get(&none).await.unwrap(), None, "no tenant");

    let newer = StoredReceipt {
        not_before: Some(now + DAY),
        risk_metric: Some(7),
        fetched_at: now,
        failures: 3,
        next_attempt: None,
        ..receipt(now)
    };
    two.put(&shop, newer.clone()).await.unwrap();
    assert_eq!(one.get(&shop).await.unwrap(), Some(newer));

    let mut connection = client(&server).await;
    let keys: Vec<String> = connection.keys("*:of:*").await.unwrap();
    assert_eq!(keys.len(), 1);
    let lives: i64 = connection.ttl(&keys[0]).await.unwrap();
    assert!((89 * 86_400..=90 * 86_400).contains(&lives), "{lives}");
    one.remove(&shop).await.unwrap();
    assert_eq!(two.get(&shop).await.unwrap(), None);
    let left: Vec<String> = connection.keys("*").await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn each_key_is_due_for_one_replica_and_only_if_it_was_seen() {
    let server = RedisServer::start();
    let (one, two, now) = (store(&server).await, store(&server).await, now());
    for number in 0..20 {
        one.put(&key(number, Some("shop")), receipt(now)).await.unwrap();
    }
    let until = now + 10 * MINUTE;
    let both = join_all([one.due(now, until, 15), two.due(now, until, 15)]).await;
    let mut due: Vec<_> = both.into_iter().flat_map(Result::unwrap).collect();
    due.sort();
    due.dedup();
    assert_eq!(due.len(), 20, "each once");
    assert_eq!(one.due(now, until, 15).await.unwrap(), []);
    assert_eq!(one.due(until, until + MINUTE, 50).await.unwrap().len(), 20, "a replica has died");

    // A key that was not seen since its receipt is not due, and a later sighting is not lost.
    let (key, later) = (key(0, Some("shop")), until + MINUTE);
    let renewed = StoredReceipt { fetched_at: now, next_attempt: Some(now), ..receipt(now) };
    one.put(&key, renewed.clone()).await.unwrap();
    let due = one.due(later, later + MINUTE, 50).await.unwrap();
    assert!(due.len() == 19 && !due.contains(&key));
    two.touch(&key, now - MINUTE).await.unwrap();
    assert_eq!(one.due(later, later + MINUTE, 50).await.unwrap(), []);
    two.touch(&key, later).await.unwrap();
    assert_eq!(one.get(&key).await.unwrap().unwrap().seen_at, later);
    assert_eq!(one.due(later, later + MINUTE, 1).await.unwrap(), std::slice::from_ref(&key));
    // A sighting leaves the key to the replica that works on it.
    two.touch(&key, later + Duration::from_secs(1)).await.unwrap();
    assert_eq!(two.due(later, later + MINUTE, 1).await.unwrap(), []);
    one.put(&key, renewed).await.unwrap();
    assert_eq!(one.get(&key).await.unwrap().unwrap().seen_at, later + Duration::from_secs(1));

    // A key that is never refreshed again, and one that is unknown.
    one.put(&key, StoredReceipt { next_attempt: None, ..receipt(now) }).await.unwrap();
    two.touch(&key, later + MINUTE).await.unwrap();
    two.touch(&self::key(99, None), later).await.unwrap();
    assert_eq!(two.due(later + MINUTE, later + 2 * MINUTE, 50).await.unwrap().len(), 19);
    assert_eq!(two.get(&self::key(99, None)).await.unwrap(), None);
}

#[tokio::test]
async fn without_redis_each_method_fails() {
    let mut server = RedisServer::start();
    let redis = Redis::connect(server.url()).await.unwrap().with_deadline(Duration::from_millis(200));
    let (store, now) = (RedisReceiptStore::new(redis), now());
    server.kill();
    assert!(store.put(&key(1, None), receipt(now)).await.is_err());
    assert!(store.get(&key(1, None)).await.is_err());
    assert!(store.touch(&key(1, None), now).await.is_err());
    assert!(store.due(now, now + MINUTE, 1).await.is_err());
    let error = store.remove(&key(1, None)).await.unwrap_err();
    assert_eq!(error.to_string(), "the receipt store failed");
}
