//! One handle to Redis for everything that is made from it.

use std::{
    future::pending,
    time::{Duration, SystemTime},
};

use redis::{Cmd, Pipeline, RedisFuture, Value, aio::ConnectionLike};
use tokio::time::{Instant, advance};
use tower_devicecheck::{
    Environment, Owner, Redis, TokenDigest, Verdict,
    cache::{CachedVerdict, RedisCache, VerdictCache, VerdictKey},
    replay::{Claim, RedisReplayGuard, ReplayGuard, ReplayKey},
    split_key::{RedisSplitKeyStore, RedisUsageLog, SplitId, SplitKeyStore},
    testing::FakeApple,
};

use crate::support::{Counter, Log};

const DEADLINE: Duration = Duration::from_millis(50);

/// A connection to a server that answers nothing until a test says so.
#[derive(Clone, Default)]
struct Silent {
    sent: Counter,
    well_again: Counter,
}

impl Silent {
    fn send(&self) -> RedisFuture<'static, Value> {
        self.sent.add();
        if self.well_again.get() > 0 { Box::pin(async { Ok(Value::Nil) }) } else { Box::pin(pending()) }
    }
}

impl ConnectionLike for Silent {
    fn req_packed_command<'a>(&'a mut self, _: &'a Cmd) -> RedisFuture<'a, Value> {
        self.send()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let answer = self.send();
        Box::pin(async { Ok(vec![answer.await?]) })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_made_from_one_handle_shares_one_incident_log_and_fails_fast_together() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let connection = Silent::default();
    let redis = Redis::new(connection.clone());
    let cache = RedisCache::new(redis.clone());
    let guard = RedisReplayGuard::new(redis.clone().with_prefix("another").with_deadline(2 * DEADLINE));
    let keys = RedisSplitKeyStore::new(redis.clone());
    let _usage = RedisUsageLog::new(redis);
    let token = FakeApple::new().forged_token().parse().unwrap();
    let key = VerdictKey::new("TEAM123456", Environment::Production, &token);
    let reserve = async || {
        let key = ReplayKey::new("TEAM123456", TokenDigest::from([1; 32]));
        guard.reserve(&key, &Claim::new(Owner::random())).await
    };
    let split: SplitId = "00000001".parse().unwrap();

    let started = Instant::now();
    assert!(cache.get(&key).await.is_err());
    assert_eq!((started.elapsed(), connection.sent.get()), (DEADLINE, 1), "the cache sees the outage");
    assert!(reserve().await.is_err());
    assert!(keys.get("project", split).await.is_err());
    let verdict = CachedVerdict::new(Verdict::Genuine, key.digest(), SystemTime::now(), DEADLINE);
    assert!(cache.put(&key, verdict).await.is_err());
    assert_eq!((started.elapsed(), connection.sent.get()), (DEADLINE, 1), "all others do not ask");

    advance(2 * DEADLINE).await;
    let started = Instant::now();
    assert!(reserve().await.is_err());
    assert_eq!((started.elapsed(), connection.sent.get()), (2 * DEADLINE, 2), "one asks after a while");
    assert!(cache.get(&key).await.is_err());
    assert_eq!((started.elapsed(), connection.sent.get()), (2 * DEADLINE, 2));
    let text = log.take();
    assert_eq!(text.lines().count(), 1, "one warning: {text}");
    for part in ["WARN", "Redis fails", "replay guard, split key store, usage log, verdict cache"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    connection.well_again.add();
    advance(Duration::from_secs(1)).await;
    assert_eq!(cache.get(&key).await.unwrap(), None);
    assert!(keys.get("project", split).await.unwrap().is_none());
    let text = log.take();
    assert_eq!(text.lines().count(), 1, "one line at the end: {text}");
    for part in ["INFO", "Redis serves again", "failures=2"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_handle_shows_no_password() {
    let redis = Redis::new(Silent::default()).with_prefix("mine");
    let shown = format!("{redis:?}");
    assert_eq!(shown, r#"Redis { prefix: "mine", deadline: 50ms, .. }"#);
    assert!(format!("{:?}", RedisCache::new(redis.clone()).with_secret(b"hidden")).contains(&shown));
    assert!(!format!("{:?}", RedisCache::new(redis).with_secret(b"hidden")).contains("hidden"));
}
