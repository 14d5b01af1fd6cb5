//! The check of what Redis lets its users do, once for each of them.

use std::time::Duration;

use redis::{Cmd, ErrorKind, ServerErrorKind, cmd};
use tracing::warn;

use crate::gate::observer::TARGET;
use crate::redis::{failure::RedisFailure, handle::Redis, health::Access};
use crate::runtime::{Instant, spawn};

/// A type that keeps something in Redis.
pub(crate) struct RedisUser {
    /// The name for the log.
    pub(crate) name: &'static str,
    /// The commands that it sends while requests wait, scripts' included.
    pub(crate) commands: &'static [&'static str],
    /// Whether something is lost for good if Redis evicts it.
    pub(crate) must_keep: bool,
    pub(crate) access: Access,
}

/// One command of the check.
const LIMIT: Duration = Duration::from_secs(5);

impl Redis {
    /// Adds a name to those that the log of incidents calls affected, and checks whether Redis lets it work.
    pub(crate) fn add_user(&self, user: &'static RedisUser) {
        self.health.add_user(user.name);
        if self.is_checked {
            spawn(check(self.clone(), user));
        }
    }
}

/// Tries each command on a key that is not there, and logs what is forbidden and whether Redis may evict.
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
        // A server that does not tell is not suspected.
        let text: String = redis.query_within(LIMIT, info).await.unwrap_or_default();
        let policy = text.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
        if let Some(policy) = policy.map(str::trim).filter(|policy| *policy != "noeviction") {
            let used_by = user.name;
            warn!(target: TARGET, policy, used_by, "Redis may evict what must be kept; set maxmemory-policy to noeviction");
        }
    }
}

/// A command that changes nothing, where it is permitted and where it is not.
fn probe(name: &str, key: &str) -> Cmd {
    let mut command = cmd(name);
    match name {
        "EVAL" => command.arg("return 1").arg(1).arg(key),
        "TIME" => &mut command,
        "GETRANGE" => command.arg(key).arg(0).arg(0),
        "SET" => command.arg(key).arg("").arg("XX"),
        "HGET" => command.arg(key).arg("x"),
        "HINCRBY" => command.arg(key).arg("x").arg("no number"),
        "EXPIRE" => command.arg(key).arg(1),
        _ => command.arg(key),
    };
    command
}
