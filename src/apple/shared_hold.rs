//! The time for which Apple wants to be left alone, shared by all processes of a fleet.

use std::{sync::Mutex, time::Duration};

use redis::cmd;

use crate::apple::{breaker::Breaker, per_environment::PerEnvironment};
use crate::gate::routing::Environment;
use crate::redis::{Access, Redis, RedisUser};
use crate::runtime::{Instant, lock, millis, spawn};

/// Apple's `Retry-After` in Redis: a key for each team and environment that expires with it.
pub(super) struct SharedHold {
    redis: Redis,
    team_id: Box<str>,
    /// The last time at which this process looked.
    looked: PerEnvironment<Mutex<Option<Instant>>>,
}

const USER: RedisUser =
    RedisUser { name: "shared hold", commands: &["PTTL", "SET"], must_keep: false, access: Access::Hold };

impl SharedHold {
    /// The time between two looks. A look costs one command, and one request waits for it.
    const INTERVAL: Duration = Duration::from_secs(1);

    pub(super) fn new(redis: Redis, team_id: &str) -> Self {
        redis.add_user(&USER);
        Self { redis, team_id: team_id.into(), looked: PerEnvironment::default() }
    }

    /// Lets the breaker know what another process was told, if this process has not looked for a second. Without an
    /// answer from Redis, this process goes by what it was told itself.
    pub(super) async fn learn(&self, environment: Environment, breaker: &Breaker, now: Instant) {
        if !self.is_due(environment, now) {
            return;
        }
        let mut command = cmd("PTTL");
        command.arg(self.key(environment));
        // Negative: there is none.
        // Boxed, so that a call that waits for a slot is small.
        let left = Box::pin(self.redis.query::<i64>(Access::Hold, command)).await.unwrap_or(-1);
        if let Ok(left) = u64::try_from(left) {
            breaker.hold(environment, Duration::from_millis(left), Instant::now());
        }
    }

    fn is_due(&self, environment: Environment, now: Instant) -> bool {
        let mut looked = lock(self.looked.of(environment));
        let is_due = looked.is_none_or(|at| now.saturating_duration_since(at) >= Self::INTERVAL);
        if is_due {
            *looked = Some(now);
        }
        is_due
    }

    /// Tells the other processes, without waiting for Redis. A longer time that another process was told stays.
    pub(super) fn tell(&self, environment: Environment, hold: Duration) {
        let left = millis(hold.clamp(Self::INTERVAL, Breaker::LONGEST_HOLD));
        let key = self.key(environment);
        let (mut look, mut set) = (cmd("PTTL"), cmd("SET"));
        look.arg(&key);
        set.arg(&key).arg(1).arg("PX").arg(left);
        let redis = self.redis.clone();
        spawn(async move {
            // The health of Redis has its failures in the log.
            let known = redis.query::<i64>(Access::Hold, look).await.unwrap_or(-1);
            if u64::try_from(known).is_ok_and(|known| known >= left) {
                return;
            }
            let _ = redis.query::<()>(Access::Hold, set).await;
        });
    }

    fn key(&self, environment: Environment) -> String {
        let environment = char::from(environment.letter());
        format!("{}:hold1:{}:{environment}", self.redis.prefix(), self.team_id)
    }
}
