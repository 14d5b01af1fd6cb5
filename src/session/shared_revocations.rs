//! Revocations that all servers share, through Redis.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use redis::{FromRedisValue, Value};

use crate::gate::{decision::Rejected, error::VerifyError};
use crate::redis::{Access, Redis, RedisFailure, RedisUser};
use crate::replay::owner::Owner;
use crate::runtime::{Instant, lock, pause, spawn, wall_clock};
use crate::session::claims::{from_hex, to_hex};
use crate::session::revoked::{Change, Revoked, unix_seconds};

/// The treatment of sessions while this server cannot learn of revocations, because Redis has not answered for 10
/// seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WithoutRedis {
    /// Sessions are rejected as [`Unavailable`](crate::Rejection::Unavailable) until Redis answers again. The default.
    #[default]
    Refuse,
    /// Sessions count. What this server had learned before stays revoked.
    ///
    /// # Danger
    ///
    /// A session that is revoked meanwhile counts on all servers but the one that was told, until Redis answers again
    /// or the session is over. An attacker who can make Redis fail can keep a stolen session alive to its end.
    Accept,
}

/// The time between two looks at Redis.
const INTERVAL: Duration = Duration::from_secs(2);
/// The age of the last look at which this process counts as uninformed.
const OUT_OF_DATE: Duration = Duration::from_secs(10);

const USER: RedisUser = RedisUser {
    name: "session revocations",
    commands: &["EVAL", "GET", "SET", "ZADD", "ZRANGE", "ZREMRANGEBYSCORE", "ZSCORE"],
    must_keep: true,
    access: Access::Revocations,
};

/// Keys: denied, version, time. Argument: the version that the caller knows. Returns the version, and if it is another
/// one, the time and all entries with their ends.
const LOOK: &str = r"
local version = redis.call('GET', KEYS[2]) or ''
if version == ARGV[1] and version ~= '' then return {version} end
return {version, redis.call('GET', KEYS[3]) or '0', redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')}";

/// Keys: the same. Arguments: the current time, the new version, the time before which nothing counts, then each entry
/// after its end. Forgets what is over. Of two times for one entry, the later one counts.
const CHANGE: &str = r"
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if tonumber(ARGV[3]) > tonumber(redis.call('GET', KEYS[3]) or '0') then redis.call('SET', KEYS[3], ARGV[3]) end
for i = 4, #ARGV, 2 do
  local known = redis.call('ZSCORE', KEYS[1], ARGV[i + 1])
  if not known or tonumber(known) < tonumber(ARGV[i]) then redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('SET', KEYS[2], ARGV[2])
return 1";

/// The most entries of one change, which is one command.
const ENTRIES_AT_ONCE: usize = 1_000;

/// The way to what other servers have revoked.
pub(super) struct Link {
    redis: Redis,
    /// The names of the keys in Redis.
    keys: [String; 3],
    without_redis: WithoutRedis,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The version that this process knows.
    version: Vec<u8>,
    /// The time of the last look at Redis.
    looked_at: Option<Instant>,
}

impl Link {
    /// Looks at Redis for the first time, and every 2 seconds from then on for as long as the link is used.
    pub(super) async fn start(
        redis: Redis,
        scope: &str,
        without_redis: WithoutRedis,
        revoked: &Arc<Revoked>,
    ) -> Arc<Self> {
        redis.add_user(&USER);
        // A cluster chooses the node by the text in braces.
        let key = |name: &str| format!("{}:revoked1:{{{scope}}}:{name}", redis.prefix());
        let keys = ["denied", "version", "time"].map(key);
        let link = Arc::new(Self { redis, keys, without_redis, progress: Mutex::default() });
        link.look(revoked).await;
        spawn(watch(Arc::downgrade(&link), Arc::downgrade(revoked)));
        link
    }

    /// Whether this process knows enough to accept a session.
    pub(super) fn check_freshness(&self, now: Instant) -> Result<(), Rejected> {
        let is_informed = self.without_redis == WithoutRedis::Accept
            || lock(&self.progress)
                .looked_at
                .is_some_and(|looked_at| now.saturating_duration_since(looked_at) <= OUT_OF_DATE);
        if is_informed {
            return Ok(());
        }
        Err(VerifyError::unavailable("Redis has not told for 10 seconds which sessions are revoked").into())
    }

    /// Tells the others.
    pub(super) async fn publish(&self, change: &Change) -> Result<(), RedisFailure> {
        let mut entries = change.denied.chunks(ENTRIES_AT_ONCE);
        loop {
            let part = entries.next().unwrap_or_default();
            let mut command = self.command(CHANGE);
            command.arg(unix_seconds(wall_clock())).arg(Owner::random().as_bytes()).arg(change.issued_before);
            for (id, until) in part {
                command.arg(*until).arg(&to_hex(id));
            }
            let answer = self.redis.query_to_end::<Value>(Access::Revocations, command).await;
            if let Err(failure) = answer {
                // The next look finds out what Redis lacks.
                lock(&self.progress).version.clear();
                return Err(failure);
            }
            if entries.len() == 0 {
                return Ok(());
            }
        }
    }

    /// Learns what is new, and tells what Redis does not know: because it has lost it, or was away when it was revoked.
    async fn look(&self, revoked: &Revoked) {
        let asked = Instant::now();
        let mut command = self.command(LOOK);
        command.arg(lock(&self.progress).version.clone());
        let Ok(answer) = self.redis.query::<Vec<Value>>(Access::Revocations, command).await else { return };
        let now = unix_seconds(wall_clock());
        let is_rubbish = match answer.as_slice() {
            [_] => false,
            [version, issued_before, denied] => match (read_version(version), read(issued_before, denied)) {
                (Some(version), Some(known)) => {
                    // Redis holds no more than fits, unless its bound was another version's.
                    let _ = revoked.merge(&known, now);
                    lock(&self.progress).version = version;
                    if let Some(news) = revoked.beyond(&known, now) {
                        let _ = self.publish(&news).await;
                    }
                    false
                }
                _ => true,
            },
            _ => true,
        };
        if is_rubbish {
            self.redis.rubbish();
        } else {
            revoked.clean(now);
            lock(&self.progress).looked_at = Some(asked);
        }
    }

    fn command(&self, script: &str) -> redis::Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(self.keys.len()).arg(&self.keys);
        command
    }
}

async fn watch(link: Weak<Link>, revoked: Weak<Revoked>) {
    loop {
        pause(INTERVAL).await;
        let (Some(link), Some(revoked)) = (link.upgrade(), revoked.upgrade()) else { return };
        link.look(&revoked).await;
    }
}

fn read_version(version: &Value) -> Option<Vec<u8>> {
    Vec::from_redis_value_ref(version).ok()
}

fn read(issued_before: &Value, denied: &Value) -> Option<Change> {
    let entries: Vec<(String, f64)> = FromRedisValue::from_redis_value_ref(denied).ok()?;
    let entry = |(id, until): (String, f64)| Some((from_hex(&id)?, until as u32));
    Some(Change {
        issued_before: u32::from_redis_value_ref(issued_before).ok()?,
        denied: entries.into_iter().map(entry).collect::<Option<_>>()?,
    })
}
