//! One handle to Redis for everything that is made from it.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use http::StatusCode;
use redis::{Arg, Cmd, Pipeline, RedisFuture, Value, aio::ConnectionLike};
use tokio::time::{Instant, advance};
use tower_devicecheck::{
    Environment, Owner, Redis, TokenDigest, Verdict,
    cache::{CachedVerdict, RedisCache, VerdictCache, VerdictKey},
    replay::{Claim, RedisReplayGuard, ReplayGuard, ReplayKey},
    split_key::{RedisSplitKeyStore, SplitId, SplitKeyStore, UsageLog},
    testing::FakeApple,
};

use crate::support::{App, Apple, Counter, Log};

const DEADLINE: Duration = Duration::from_millis(50);

/// A connection to a server that has nothing and agrees to every script, after a delay, or does not answer.
#[derive(Clone, Default)]
struct Stub {
    delay: Arc<Mutex<Option<Duration>>>,
    sent: Counter,
    answered: Counter,
}

impl Stub {
    fn answer_after(&self, delay: Duration) {
        *self.delay.lock().unwrap() = Some(delay);
    }

    fn send(&self, answer: Value) -> RedisFuture<'static, Value> {
        self.sent.add();
        let (delay, answered) = (*self.delay.lock().unwrap(), self.answered.clone());
        Box::pin(async move {
            match delay {
                Some(delay) => tokio::time::sleep(delay).await,
                None => pending().await,
            }
            answered.add();
            Ok(answer)
        })
    }
}

impl ConnectionLike for Stub {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let is_script = matches!(command.args_iter().next(), Some(Arg::Simple(b"EVAL")));
        self.send(if is_script { Value::Int(1) } else { Value::Nil })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let answer = self.send(Value::Nil);
        // The time that a value has left: there is none.
        Box::pin(async { Ok(vec![answer.await?, Value::Int(-2)]) })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_made_from_one_handle_shares_one_incident_log_and_fails_fast_together() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let connection = Stub::default();
    let redis = Redis::new(connection.clone());
    let cache = RedisCache::new(redis.clone());
    let guard = RedisReplayGuard::new(redis.clone().with_prefix("another").with_deadline(2 * DEADLINE));
    let keys = RedisSplitKeyStore::new(redis.clone());
    let _usage = UsageLog::in_redis(redis);
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

    connection.answer_after(Duration::ZERO);
    advance(Duration::from_secs(1)).await;
    assert_eq!(cache.get(&key).await.unwrap(), None);
    assert!(keys.get("project", split).await.unwrap().is_none());
    let text = log.take();
    assert_eq!(text.lines().count(), 1, "one line at the end: {text}");
    for part in ["INFO", "Redis serves again", "failures=2"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_in_vain_spares_the_next_one_the_wait() {
    let apple = Apple::new();
    let connection = Stub::default();
    let app = App::new(&apple.layer().with_cache(RedisCache::new(Redis::new(connection.clone()))));
    let started = Instant::now();
    for calls in 1..=3 {
        assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
        assert_eq!((started.elapsed(), connection.sent.get(), apple.calls()), (DEADLINE, 1, calls));
    }
}

#[tokio::test(start_paused = true)]
async fn a_verdict_is_written_even_if_the_request_has_no_time_left() {
    let log = Log::default();
    let _listening = log.listen(tracing::Level::INFO);
    let apple = Apple::new();
    let connection = Stub::default();
    connection.answer_after(DEADLINE * 4 / 5);
    let app = App::new(&apple.layer().with_cache(RedisCache::new(Redis::new(connection.clone()))));
    let started = Instant::now();
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!((started.elapsed(), apple.calls()), (DEADLINE, 1), "one deadline in all");
    assert_eq!((connection.sent.get(), connection.answered.get()), (2, 1), "the write is under way");
    tokio::time::sleep(DEADLINE).await;
    assert_eq!(connection.answered.get(), 2, "the write has a deadline of its own");
    assert_eq!(log.take(), "", "slow is not down");
}

#[tokio::test(start_paused = true)]
async fn each_step_of_a_guard_has_a_deadline_of_its_own() {
    let apple = Apple::new();
    let connection = Stub::default();
    let delay = DEADLINE * 4 / 5;
    connection.answer_after(delay);
    let guard = RedisReplayGuard::new(Redis::new(connection.clone()));
    let app = App::new(&apple.layer().with_single_use(guard));
    let started = Instant::now();
    assert_eq!(app.status(&apple.genuine()).await, StatusCode::OK);
    assert_eq!((started.elapsed(), connection.answered.get(), apple.calls()), (2 * delay, 2, 1));
}

#[test]
fn a_handle_shows_no_password() {
    let redis = Redis::new(Stub::default()).with_prefix("mine");
    let shown = format!("{redis:?}");
    assert_eq!(shown, r#"Redis { prefix: "mine", deadline: 50ms, .. }"#);
    assert!(format!("{:?}", RedisCache::new(redis.clone()).with_secret(b"hidden")).contains(&shown));
    assert!(!format!("{:?}", RedisCache::new(redis).with_secret(b"hidden")).contains("hidden"));
}
