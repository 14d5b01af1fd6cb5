//! A check of the Redis permissions of each user of the handle, once per user.

use std::time::Duration;

use redis::{Cmd, ErrorKind, ServerErrorKind, cmd};
use tracing::warn;

use crate::gate::observer::TARGET;
use crate::redis::{failure::RedisFailure, handle::Redis, health::Access};
use crate::runtime::{Instant, spawn};

/// A type of this crate that stores data in Redis.
pub(crate) struct RedisUser {
    /// The name for the log.
    pub(crate) name: &'static str,
    /// The commands that it sends while requests wait, including those in scripts.
    pub(crate) commands: &'static [&'static str],
    /// Whether evicted data would be lost for good.
    pub(crate) must_keep: bool,
    pub(crate) access: Access,
}

/// The time limit of one command of the check.
const LIMIT: Duration = Duration::from_secs(5);

impl Redis {
    /// Adds a user to the names in the log of incidents, and checks its permissions.
    pub(crate) fn add_user(&self, user: &'static RedisUser) {
        self.health.add_user(user.name);
        if self.is_checked {
            spawn(check(self.clone(), user));
        }
    }
}

/// Tries each command on a key that does not exist. Logs forbidden commands, and whether Redis may evict keys.
async fn check(redis: Redis, user: &'static RedisUser) {
    let key = format!("{}:probe", redis.prefix());
    let mut forbidden = Vec::new();
    for name in user.commands {
        let answer = redis.query_within::<redis::Value>(LIMIT, probe(name, &key)).await;
        if let Err(RedisFailure::Redis(error)) = answer
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        {
            forbidden.push(*name);
        }
    }
    if !forbidden.is_empty() {
        let failure = RedisFailure::Forbidden { user: user.name, commands: forbidden.join(", ") };
        redis.failed(user.access, &failure, Instant::now());
    }
    if user.must_keep {
        let mut info = cmd("INFO");
        info.arg("memory");
        // A server that does not report its policy causes no warning.
        let text: String = redis.query_within(LIMIT, info).await.unwrap_or_default();
        let policy = text.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
        if let Some(policy) = policy.map(str::trim).filter(|policy| *policy != "noeviction") {
            let used_by = user.name;
            warn!(target: TARGET, policy, used_by, "Redis may evict what must be kept; set maxmemory-policy to noeviction");
        }
    }
}

/// Makes a command that changes nothing, whether or not Redis permits it.
fn probe(name: &str, key: &str) -> Cmd {
    let mut command = cmd(name);
    match name {
        "EVAL" => command.arg("return 1").arg(1).arg(key),
        "TIME" => &mut command,
        "GETRANGE" => command.arg(key).arg(0).arg(0),
        "SET" => command.arg(key).arg("").arg("XX"),
        "HGET" | "HMGET" => command.arg(key).arg("x"),
        // A field without a value.
        "HSET" => command.arg(key).arg("x").arg("x").arg("x"),
        "PEXPIRE" => command.arg(key).arg(1),
        "HINCRBY" => command.arg(key).arg("x").arg("no number"),
        "ZADD" => command.arg(key).arg("XX").arg(0).arg("x"),
        "ZRANGE" => command.arg(key).arg(0).arg(0),
        "ZRANGEBYSCORE" => command.arg(key).arg(1).arg(0),
        "ZREM" | "ZSCORE" => command.arg(key).arg("x"),
        "EXPIRE" => command.arg(key).arg(1),
        _ => command.arg(key),
    };
    command
}
