//! The receipt store that replicas share.

use std::time::Duration;

use web_time::UNIX_EPOCH;

use crate::app_attest::key_id::KeyId;
use crate::app_attest::refresh::store::{ReceiptStore, ReceiptStoreError};
use crate::app_attest::refresh::stored::{DAY, ReceiptKey, StoredReceipt};
use crate::redis::{Access, Redis, RedisFailure, RedisUser, expiry};
use crate::runtime::{SystemTime, millis, since_epoch, wall_clock};

/// A receipt store in Redis or Valkey, for all replicas that use the same server and prefix.
///
/// Each receipt is a hash of 4 KB, which Redis forgets a day after the receipt has expired. Those that will be refreshed
/// are in a sorted set by the time of the next attempt. A cluster keeps all of them on one node. Each method is one
/// command, with the deadline that [`Redis`] documents for a guard. What Redis loses costs a metric, and no request.
#[derive(Clone, Debug)]
pub struct RedisReceiptStore {
    redis: Redis,
}

const USER: RedisUser = RedisUser {
    name: "receipt store",
    commands: &["EVAL", "HMGET", "HGET", "DEL", "ZADD", "ZREM", "ZRANGEBYSCORE"],
    must_keep: false,
    access: Access::Receipts,
};

// The keys are the hash of the receipt, and the sorted set of all keys that were seen since their last receipt. Times are
// in milliseconds since the Unix epoch.

/// Arguments: member, time to live, seen, fetched, next attempt or nothing, then the fields and values of the rest.
const PUT: &str = r"
local seen = math.max(tonumber(redis.call('HGET', KEYS[1], 'seen') or '0'), tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], 'seen', string.format('%.0f', seen), 'fetched', ARGV[4], 'next', ARGV[5], unpack(ARGV, 6))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[5] ~= '' and seen >= tonumber(ARGV[4]) then
  redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return 1";

/// Arguments: member, the current time. A member that is there keeps its time, which may be that of a process that works
/// on it.
const TOUCH: &str = r"
local known = redis.call('HMGET', KEYS[1], 'seen', 'fetched', 'next')
if not known[1] or tonumber(ARGV[2]) <= tonumber(known[1]) then return 0 end
redis.call('HSET', KEYS[1], 'seen', ARGV[2])
if known[3] ~= '' and tonumber(ARGV[2]) >= tonumber(known[2]) then
  redis.call('ZADD', KEYS[2], 'NX', known[3], ARGV[1])
end
return 1";

/// Key: the sorted set. Arguments: the current time, the time to which members are put off, their greatest number.
const DUE: &str = r"
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, member in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], member) end
return due";

/// Argument: member.
const REMOVE: &str = r"
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])";

impl RedisReceiptStore {
    /// Makes a store on this server.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        redis.add_user(&USER);
        Self { redis }
    }

    // A cluster chooses the node by the text in braces.
    fn hash(&self, key: &ReceiptKey) -> String {
        format!("{}:{{receipts1}}:of:{key}", self.redis.prefix())
    }

    fn due_set(&self) -> String {
        format!("{}:{{receipts1}}:due", self.redis.prefix())
    }

    /// A script about one key, with its member as the first argument.
    fn script(&self, script: &str, key: &ReceiptKey) -> redis::Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(2).arg(self.hash(key)).arg(self.due_set()).arg(key.to_string());
        command
    }

    async fn change(&self, command: redis::Cmd) -> Result<(), ReceiptStoreError> {
        let answer = self.redis.query_to_end::<i64>(Access::Receipts, command).await;
        answer.map(drop).map_err(ReceiptStoreError::new)
    }

    fn rubbish(&self) -> ReceiptStoreError {
        ReceiptStoreError::new(self.redis.rubbish())
    }
}

/// A time as Redis holds it. Nothing stands for no time.
fn text_of(time: Option<SystemTime>) -> String {
    time.map(|time| millis(since_epoch(time)).to_string()).unwrap_or_default()
}

fn time_of(text: &str) -> Option<SystemTime> {
    Some(UNIX_EPOCH + Duration::from_millis(text.parse().ok()?))
}

/// The outer option is `None` for a text that is no time.
fn optional<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text.is_empty() { Some(None) } else { read(text).map(Some) }
}

/// The values of the hash, in the order of the command `HMGET`.
type Fields = (Option<Vec<u8>>, [String; 9]);

fn read((receipt, texts): Fields) -> Option<StoredReceipt> {
    let [app_id, environment, not_before, expiry, metric, fetched, seen, failures, next] = &texts;
    Some(StoredReceipt {
        receipt: receipt?,
        app_id: app_id.parse().ok()?,
        environment: environment.parse().ok()?,
        not_before: optional(not_before, time_of)?,
        expiry: time_of(expiry)?,
        risk_metric: optional(metric, |text| text.parse().ok())?,
        fetched_at: time_of(fetched)?,
        seen_at: time_of(seen)?,
        failures: failures.parse().ok()?,
        next_attempt: optional(next, time_of)?,
    })
}

fn member(text: &str) -> Option<ReceiptKey> {
    let (tenant, key_id) = text.split_once(':')?;
    let tenant = optional(tenant, |name| name.parse().ok())?;
    Some(ReceiptKey { tenant, key_id: key_id.parse::<KeyId>().ok()? })
}

impl ReceiptStore for RedisReceiptStore {
    async fn put(&self, key: &ReceiptKey, receipt: StoredReceipt) -> Result<(), ReceiptStoreError> {
        let lives = (receipt.expiry + DAY).duration_since(wall_clock()).unwrap_or_default();
        let mut command = self.script(PUT, key);
        command
            .arg(expiry(lives))
            .arg(text_of(Some(receipt.seen_at)))
            .arg(text_of(Some(receipt.fetched_at)))
            .arg(text_of(receipt.next_attempt))
            .arg(&["receipt"])
            .arg(receipt.receipt)
            .arg(&["app_id", receipt.app_id.as_str()])
            .arg(&["environment", receipt.environment.as_str()])
            .arg(&["not_before", &text_of(receipt.not_before)])
            .arg(&["expiry", &text_of(Some(receipt.expiry))])
            .arg(&["metric", &receipt.risk_metric.map(|metric| metric.to_string()).unwrap_or_default()])
            .arg(&["failures", &receipt.failures.to_string()]);
        self.change(command).await
    }

    async fn get(&self, key: &ReceiptKey) -> Result<Option<StoredReceipt>, ReceiptStoreError> {
        let mut command = redis::cmd("HMGET");
        command.arg(self.hash(key)).arg(&[
            "receipt",
            "app_id",
            "environment",
            "not_before",
            "expiry",
            "metric",
            "fetched",
            "seen",
            "failures",
            "next",
        ]);
        let answer = self.redis.query::<Vec<Option<Vec<u8>>>>(Access::Receipts, command).await;
        let mut fields = answer.map_err(ReceiptStoreError::new)?.into_iter();
        let Some(receipt) = fields.next().flatten() else { return Ok(None) };
        let texts: Option<Vec<String>> = fields.map(|field| String::from_utf8(field?).ok()).collect();
        let texts = texts.and_then(|texts| texts.try_into().ok()).ok_or_else(|| self.rubbish())?;
        read((Some(receipt), texts)).map(Some).ok_or_else(|| self.rubbish())
    }

    async fn touch(&self, key: &ReceiptKey, now: SystemTime) -> Result<(), ReceiptStoreError> {
        let mut command = self.script(TOUCH, key);
        command.arg(text_of(Some(now)));
        self.change(command).await
    }

    async fn due(
        &self,
        now: SystemTime,
        until: SystemTime,
        limit: usize,
    ) -> Result<Vec<ReceiptKey>, ReceiptStoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(DUE).arg(1).arg(self.due_set());
        command.arg(text_of(Some(now))).arg(text_of(Some(until))).arg(limit);
        let due: Result<Vec<String>, RedisFailure> = self.redis.query(Access::Receipts, command).await;
        let due = due.map_err(ReceiptStoreError::new)?;
        due.iter().map(|text| member(text)).collect::<Option<_>>().ok_or_else(|| self.rubbish())
    }

    async fn remove(&self, key: &ReceiptKey) -> Result<(), ReceiptStoreError> {
        self.change(self.script(REMOVE, key)).await
    }
}
