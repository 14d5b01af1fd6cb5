//! Revocations that all servers share, through Redis.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use redis::{FromRedisValue, Value};

use crate::gate::{decision::Rejected, error::VerifyError};
use crate::redis::{Access, Redis, RedisFailure, RedisUser};
use crate::replay::owner::Owner;
use crate::runtime::{Instant, lock, pause, since_epoch, spawn, wall_clock};
use crate::session::claims::{from_hex, to_hex};
use crate::session::revoked::{CLOCK_SKEW, Change, Revoked, unix_seconds};

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
    commands: &["EVAL", "GET", "SET", "ZADD", "ZRANGE", "ZRANGEBYSCORE", "ZREM", "ZSCORE"],
    must_keep: true,
    access: Access::Revocations,
};

// The keys are, in this order:
// - `denied`: a sorted set of ids and subjects, by the end of their revocation.
// - `version`: the name of these data, which is another one after Redis has lost them, a colon, and the number of the
//   last change. Numbers are a clock's microseconds, so that one that Redis lost in a failover is not given again.
// - `time`: no session counts that was issued earlier.
// - `changes`: the same ids and subjects, by the number of their last change.

/// Argument: the version that the caller knows. Returns the version; if it is another one, also the time and the entries
/// that changed since, with their ends; and if they are all entries, one value more. They are all if Redis does not know
/// the caller's last change, because it has lost it, or all of its entries are over.
const LOOK: &str = r"
local version = redis.call('GET', KEYS[2]) or ''
if version == ARGV[1] and version ~= '' then return {version} end
local time = redis.call('GET', KEYS[3]) or '0'
local known, number = string.match(ARGV[1], '^(%x+):(%d+)$')
local has = known and redis.call('ZRANGEBYSCORE', KEYS[4], number, number, 'LIMIT', 0, 1)
if known and known == string.match(version, '^(%x+):') and #has > 0 then
  local changed = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. number, '+inf')) do
    changed[#changed + 1] = id
    changed[#changed + 1] = redis.call('ZSCORE', KEYS[1], id) or '0'
  end
  return {version, time, changed}
end
return {version, time, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), 'all'}";

/// Arguments: the current time, a name for data that have none, the time before which nothing counts, the current time in
/// microseconds, then each entry after its end. Forgets what is over. Of two times for one entry, the later one counts.
const CHANGE: &str = r"
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZREM', KEYS[4], id)
end
if tonumber(ARGV[3]) > tonumber(redis.call('GET', KEYS[3]) or '0') then redis.call('SET', KEYS[3], ARGV[3]) end
local name, number = string.match(redis.call('GET', KEYS[2]) or '', '^(%x+):(%d+)$')
number = string.format('%d', math.max((number or 0) + 1, tonumber(ARGV[4])))
for i = 5, #ARGV, 2 do
  local known = redis.call('ZSCORE', KEYS[1], ARGV[i + 1])
  if not known or tonumber(known) < tonumber(ARGV[i]) then
    redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1])
    redis.call('ZADD', KEYS[4], number, ARGV[i + 1])
  end
end
redis.call('SET', KEYS[2], (name or ARGV[2]) .. ':' .. number)
return 1";

/// The most entries of one change, which is one command.
const ENTRIES_AT_ONCE: usize = 1_000;

/// The way to what other servers have revoked.
pub(super) struct Link {
    redis: Redis,
    /// The names of the keys in Redis.
    keys: [String; 4],
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
        let keys = ["denied", "version", "time", "changes"].map(key);
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
            let (now, mut command) = (wall_clock(), self.command(CHANGE));
            command
                .arg(unix_seconds(now))
                .arg(Owner::random().to_string())
                .arg(change.issued_before)
                .arg(u64::try_from(since_epoch(now).as_micros()).unwrap_or_default());
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

    /// Learns what is new. After a look at all entries, tells what Redis does not know: because it has lost it, or was
    /// away when it was revoked.
    async fn look(&self, revoked: &Revoked) {
        let asked = Instant::now();
        let mut command = self.command(LOOK);
        command.arg(lock(&self.progress).version.clone());
        let Ok(answer) = self.redis.query::<Vec<Value>>(Access::Revocations, command).await else { return };
        let now = unix_seconds(wall_clock());
        let missing = match answer.as_slice() {
            [_] => None,
            [version, issued_before, denied, all @ ..] => {
                let Some((version, mut news)) = read(version, issued_before, denied) else {
                    self.redis.rubbish();
                    return;
                };
                // A server whose clock was far ahead has ended what was sold, and not what will be.
                news.issued_before = news.issued_before.min(now.saturating_add(CLOCK_SKEW));
                // Redis holds no more than fits, unless its bound was another version's.
                let _ = revoked.merge(&news, now);
                lock(&self.progress).version = version;
                if all.is_empty() { None } else { revoked.beyond(&news, now) }
            }
            _ => {
                self.redis.rubbish();
                return;
            }
        };
        revoked.clean(now);
        lock(&self.progress).looked_at = Some(asked);
        if let Some(missing) = missing {
            let _ = self.publish(&missing).await;
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

fn read(version: &Value, issued_before: &Value, denied: &Value) -> Option<(Vec<u8>, Change)> {
    let entries: Vec<(String, f64)> = FromRedisValue::from_redis_value_ref(denied).ok()?;
    let entry = |(id, until): (String, f64)| Some((from_hex(&id)?, until as u32));
    let change = Change {
        issued_before: u32::from_redis_value_ref(issued_before).ok()?,
        denied: entries.into_iter().map(entry).collect::<Option<_>>()?,
    };
    Some((Vec::from_redis_value_ref(version).ok()?, change))
}
