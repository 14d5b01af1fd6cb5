//! Stores of attested keys: the duties of every store, and races.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::future::join_all;
use tower_devicecheck::{
    Environment,
    app_attest::{
        AppId, AttestKeyStore, AttestKeyStoreError, AttestedKey, Category, CounterRule, Insertion, KeyId,
        MemoryAttestKeyStore, PublicKey,
    },
};

#[cfg(feature = "redis")]
use tower_devicecheck::{Redis, app_attest::RedisAttestKeyStore};

#[cfg(feature = "redis")]
use crate::redis_server::RedisServer;

const APP_ID: &str = "TEAM123456.com.example.app";

/// Whole milliseconds, which every store can keep.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123) + Duration::from_secs(seconds)
}

fn key(tenant: &str, byte: u8) -> AttestedKey {
    let mut point = [byte; 65];
    point[0] = 4;
    let app_id: AppId = APP_ID.parse().unwrap();
    AttestedKey::new(tenant, PublicKey::from_bytes(&point).unwrap(), app_id, Environment::Production, at(0))
}

/// The duties of every store. The store must be empty.
pub(crate) async fn contract(store: &impl AttestKeyStore) {
    use CounterRule::{Strict, Window};

    // Insertion, and what is kept.
    let mut whole = key("a", 1);
    whole.app_id = APP_ID.parse::<AppId>().unwrap().on_mac();
    whole.environment = Environment::Development;
    whole.account = Some("=ann\n".to_owned());
    whole.category = Some(Category::AppStore);
    whole.bundle_version = Some("1.2.3".parse().unwrap());
    whole.platform = Some("macosx".to_owned());
    whole.system_version = Some("27.0".to_owned());
    let plain = key("", 2);
    let id = whole.key_id;
    assert_eq!(store.find("a", &id).await.unwrap(), None);
    assert_eq!(store.insert(whole.clone()).await.unwrap(), Insertion::New);
    assert_eq!(store.insert(plain.clone()).await.unwrap(), Insertion::New);
    assert_eq!(store.find("a", &id).await.unwrap().as_ref(), Some(&whole));
    assert_eq!(store.find("", &plain.key_id).await.unwrap(), Some(plain.clone()));
    assert_eq!(store.find("b", &id).await.unwrap(), None, "another tenant's");
    assert_eq!(store.find("", &id).await.unwrap(), None, "no tenant's");

    // The same key again.
    assert!(store.advance("a", &id, 5, Strict, at(10)).await.unwrap());
    assert_eq!(store.insert(whole.clone()).await.unwrap(), Insertion::Known);
    let stored = store.find("a", &id).await.unwrap().unwrap();
    assert_eq!((stored.counter.highest, stored.last_seen_at), (5, at(10)), "the counter is not reset");
    for account in [None, Some("bob".to_owned()), Some(String::new())] {
        let mut other = whole.clone();
        other.account = account;
        assert_eq!(store.insert(other).await.unwrap(), Insertion::OtherAccount);
    }
    assert_eq!(store.find("a", &id).await.unwrap(), Some(stored), "nothing has changed");
    let mut of_other_tenant = key("b", 1);
    of_other_tenant.account = Some("=ann\n".to_owned());
    assert_eq!(store.insert(of_other_tenant).await.unwrap(), Insertion::New, "a key for each tenant");

    // Counters.
    for (counter, rule, admitted) in [
        (5, Strict, false),
        (4, Strict, false),
        (0, Strict, false),
        (7, Strict, true),
        (5, Window, false),
        (7, Window, false),
        (0, Window, false),
        (100, Window, true),
        (99, Window, true),
        (99, Window, false),
        (37, Window, true),
        (36, Window, false),
        (98, Strict, false),
        (u32::MAX, Window, true),
        (u32::MAX - 63, Window, true),
        (u32::MAX - 64, Window, false),
        (u32::MAX, Strict, false),
    ] {
        let answer = store.advance("a", &id, counter, rule, at(20)).await.unwrap();
        assert_eq!(answer, admitted, "{counter}, {rule:?}");
    }
    let stored = store.find("a", &id).await.unwrap().unwrap();
    assert_eq!((stored.counter.highest, stored.counter.seen), (u32::MAX, 1 | 1 << 63));
    assert!(store.advance("b", &id, 1, Strict, at(5)).await.unwrap(), "the counter of another tenant's key");
    assert!(!store.advance("c", &id, 1, Strict, at(5)).await.unwrap(), "no key");

    // Revocations.
    assert!(!store.revoke("c", &id, "test", at(30)).await.unwrap(), "no key");
    assert!(store.revoke("a", &id, "stolen", at(30)).await.unwrap());
    assert!(store.revoke("a", &id, "again", at(40)).await.unwrap());
    let stored = store.find("a", &id).await.unwrap().unwrap();
    let revocation = stored.revocation.unwrap();
    assert_eq!((revocation.at, &*revocation.reason), (at(30), "stolen"), "the first one stays");
    assert_eq!(store.insert(whole.clone()).await.unwrap(), Insertion::Revoked);
    assert!(store.advance("", &plain.key_id, 1, Strict, at(30)).await.unwrap());
    assert!(store.revoke("", &plain.key_id, "", at(30)).await.unwrap());
    assert!(!store.advance("", &plain.key_id, 2, Strict, at(30)).await.unwrap(), "revoked");
    assert!(!store.advance("", &plain.key_id, 2, Window, at(30)).await.unwrap(), "revoked");

    // Accounts.
    let with_account = |tenant, byte, account: &str| {
        let mut key = key(tenant, byte);
        key.account = Some(account.to_owned());
        key
    };
    for key in [with_account("a", 11, "cat"), with_account("a", 12, "cat"), with_account("b", 13, "cat")] {
        assert_eq!(store.insert(key).await.unwrap(), Insertion::New);
    }
    assert_eq!(store.insert(with_account("a", 1, "cat")).await.unwrap(), Insertion::OtherAccount);
    let mut revoked = store.revoke_account("a", "cat", "spam", at(50)).await.unwrap();
    revoked.sort_unstable();
    let mut expected = [key("a", 11).key_id, key("a", 12).key_id];
    expected.sort_unstable();
    assert_eq!(revoked, expected);
    for id in expected {
        assert!(store.find("a", &id).await.unwrap().unwrap().revocation.is_some());
    }
    let of_other_tenant = store.find("b", &key("b", 13).key_id).await.unwrap().unwrap();
    assert_eq!(of_other_tenant.revocation, None);
    assert_eq!(store.revoke_account("a", "dog", "spam", at(50)).await.unwrap(), []);
}

/// Of 100 requests with one counter at once, one wins; and of 64 counters in any order, each wins once by the window.
async fn races(store: impl AttestKeyStore) {
    let store = Arc::new(store);
    for (byte, rule) in [(1, CounterRule::Strict), (2, CounterRule::Window)] {
        let key = key("race", byte);
        let id = key.key_id;
        store.insert(key).await.unwrap();
        let advance = |counter| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.advance("race", &id, counter, rule, at(1)).await.unwrap() })
        };
        for counter in [70, 71] {
            let answers = join_all((0..100).map(|_| advance(counter))).await;
            let won = answers.into_iter().filter(|answer| *answer.as_ref().unwrap()).count();
            assert_eq!(won, 1, "{rule:?}");
        }
    }

    let key = key("race", 3);
    let id = key.key_id;
    store.insert(key).await.unwrap();
    let advance = |counter| {
        let store = Arc::clone(&store);
        tokio::spawn(
            async move { store.advance("race", &id, counter, CounterRule::Window, at(1)).await.unwrap() },
        )
    };
    // 101 to 164, each twice, in an order that is no order: 27 and 64 have no common divisor. The greatest is first or
    // not: all of them are within the window all the same.
    let counters: Vec<u32> = (0..128).map(|step| 101 + step * 27 % 64).collect();
    let answers = join_all(counters.iter().map(|counter| advance(*counter))).await;
    let mut won: Vec<u32> = counters
        .iter()
        .zip(answers)
        .filter(|(_, won)| *won.as_ref().unwrap())
        .map(|(counter, _)| *counter)
        .collect();
    won.sort_unstable();
    assert_eq!(won, (101..=164).collect::<Vec<_>>());
    assert!(!advance(100).await.unwrap(), "too old");
}

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    contract(&MemoryAttestKeyStore::new()).await;
    contract(&Arc::new(MemoryAttestKeyStore::with_capacity(10))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_counter_wins_once_in_memory() {
    races(MemoryAttestKeyStore::new()).await;
}

#[tokio::test]
async fn the_memory_store_is_bounded_and_purged_by_last_use() {
    let store = MemoryAttestKeyStore::with_capacity(2);
    assert!(store.is_empty());
    for byte in [1, 2] {
        assert_eq!(store.insert(key("", byte)).await.unwrap(), Insertion::New);
    }
    let error: AttestKeyStoreError = store.insert(key("", 3)).await.unwrap_err();
    assert_eq!(error.to_string(), "the store of attested keys failed");
    assert_eq!(store.insert(key("", 1)).await.unwrap(), Insertion::Known, "a full store knows its keys");
    let id: KeyId = key("", 2).key_id;
    assert!(store.advance("", &id, 1, CounterRule::Strict, at(100)).await.unwrap());
    assert_eq!((store.purge(at(0)), store.purge(at(50)), store.len()), (0, 1, 1));
    assert_eq!(store.list()[0].key_id, id);
}

#[cfg(feature = "redis")]
async fn redis_store(server: &RedisServer) -> RedisAttestKeyStore {
    RedisAttestKeyStore::new(Redis::connect(server.url()).await.unwrap())
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn the_redis_store_keeps_the_contract() {
    let server = RedisServer::start();
    contract(&redis_store(&server).await).await;
    // A handle that was given, and keys that end.
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let store = RedisAttestKeyStore::new(Redis::new(connection.clone()).with_prefix("other"));
    contract(&store.with_retention(Duration::from_secs(60))).await;
    let names: Vec<String> =
        redis::cmd("KEYS").arg("*attest1:*").query_async(&mut connection.clone()).await.unwrap();
    assert_eq!(names.iter().filter(|name| name.starts_with("other:")).count() * 2, names.len());
    for name in names.iter().filter(|name| !name.contains(":account:")) {
        let left: i64 = redis::cmd("TTL").arg(name).query_async(&mut connection.clone()).await.unwrap();
        assert_eq!(left > 0, name.starts_with("other:"), "{name}");
        assert!(!name.contains("cat") && !name.contains("ann"), "{name}");
    }
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_counter_wins_once_in_redis() {
    let server = RedisServer::start();
    races(redis_store(&server).await).await;
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn redis_that_is_down_or_holds_rubbish_is_an_error_and_no_unknown_key() {
    let mut server = RedisServer::start();
    let store = redis_store(&server).await;
    let key = key("", 1);
    store.insert(key.clone()).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let names: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
    let set = |field: &'static str, value: &'static str| {
        let (mut command, mut connection) = (redis::cmd("HSET"), connection.clone());
        command.arg(&names[0]).arg(field).arg(value);
        async move { command.query_async::<()>(&mut connection).await.unwrap() }
    };
    for (field, value) in
        [("category", "9"), ("category", "4"), ("environment", "sandbox"), ("environment", "production")]
    {
        set(field, value).await;
        let is_right = matches!(value, "4" | "production");
        assert_eq!(store.find("", &key.key_id).await.is_ok(), is_right, "{field} {value}");
    }
    // A key that nobody can read stops no revocation of the account's other keys.
    let mut ids = Vec::new();
    for byte in 2..6 {
        let mut key = self::key("", byte);
        key.account = Some("ann".to_owned());
        store.insert(key.clone()).await.unwrap();
        ids.push(key.key_id);
    }
    let names: Vec<String> = redis::cmd("KEYS").arg("*{*").query_async(&mut connection).await.unwrap();
    assert_eq!(names.len(), 5);
    for name in names {
        redis::cmd("HSET")
            .arg(name)
            .arg("highest")
            .arg("x")
            .query_async::<()>(&mut connection)
            .await
            .unwrap();
    }
    let mut revoked = store.revoke_account("", "ann", "spam", at(50)).await.unwrap();
    revoked.sort_unstable();
    ids.sort_unstable();
    assert_eq!(revoked, ids);
    server.kill();
    assert!(store.find("", &key.key_id).await.is_err());
    assert!(store.advance("", &key.key_id, 1, CounterRule::Strict, at(1)).await.is_err());
    assert!(store.insert(key.clone()).await.is_err());
    assert!(store.revoke("", &key.key_id, "", at(1)).await.is_err());
}
