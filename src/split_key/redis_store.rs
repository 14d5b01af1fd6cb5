//! The store that replicas share.

use redis::FromRedisValue;

use crate::redis::{Access, Commands, Redis, RedisFailure, RedisUser};
use crate::split_key::metadata::SplitId;
use crate::split_key::record::SplitKeyRecord;
use crate::split_key::store::{SplitKeyStore, SplitKeyStoreError};

/// A key store in Redis or Valkey, for all replicas that use the same server and prefix.
///
/// The store asks Redis for every request, and keeps no records in the process. Every replica therefore sees a rotation
/// or revocation with its next request. All records are in one hash, which a cluster keeps on one node. One script
/// writes all records of a change, or none.
///
/// While Redis does not answer within the [deadline](Redis::with_deadline), the layer answers requests with
/// [`Unavailable`](crate::split_key::SplitKeyRejection::Unavailable). It also does so for a split whose value in Redis
/// is not its record. [`Redis`] documents outages and their log lines. The deadline of operators' changes is 5 seconds.
///
/// # Danger
///
/// The hash holds the server parts. A server part together with its client part is an API key. A record that Redis
/// loses is gone. Turn on persistence (`appendonly yes`) and let Redis evict nothing.
#[derive(Clone, Debug)]
pub struct RedisSplitKeyStore {
    redis: Redis,
}

/// Checks all revisions, then writes. Arguments: field, revision and value of each record.
const PUT: &str = r"
local revisions = {}
for i = 1, #ARGV, 3 do
  local field, next = ARGV[i], 0
  local value = redis.call('HGET', KEYS[1], field)
  local present = revisions[field] or (value and tonumber(string.match(value, '^(%d+)\n')))
  if present then next = present + 1 elseif value then return 0 end
  if tonumber(ARGV[i + 1]) ~= next then return 0 end
  revisions[field] = next
end
for i = 1, #ARGV, 3 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. '\n' .. ARGV[i + 2]) end
return 1";

const STORE: RedisUser =
    RedisUser { name: "split key store", commands: &["HGET"], must_keep: true, access: Access::ReadKey };

impl RedisSplitKeyStore {
    /// Makes a store on this server.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        redis.add_user(&STORE);
        Self { redis }
    }

    fn hash(&self) -> String {
        format!("{}:keys1", self.redis.prefix())
    }
}

/// The field of a record. The project's name comes last, because it may hold any character.
fn field(project: &str, split: SplitId) -> String {
    format!("{split} {project}")
}

/// Parses the record of this field. Returns `None` if the value belongs to another field.
fn record(field_read: &str, value: &[u8]) -> Option<SplitKeyRecord> {
    let end = value.iter().position(|byte| *byte == b'\n')?;
    let record: SplitKeyRecord = serde_json::from_slice(&value[end + 1..]).ok()?;
    let revision: u64 = std::str::from_utf8(&value[..end]).ok()?.parse().ok()?;
    let is_it = field(record.project(), record.split()) == field_read && record.revision() == revision;
    is_it.then_some(record)
}

/// Reads every entry of a hash, for operators.
pub(super) async fn all<V: FromRedisValue, T>(
    redis: &Redis,
    hash: String,
    read: impl Fn(&str, V) -> Option<T>,
) -> Result<Vec<T>, SplitKeyStoreError> {
    let mut command = redis::cmd("HGETALL");
    command.arg(hash);
    let answer = redis.query_for_operator(command).await;
    let entries: Vec<(String, V)> = answer.map_err(SplitKeyStoreError::unavailable)?;
    let read = entries.into_iter().map(|(field, value)| read(&field, value)).collect::<Option<_>>();
    read.ok_or_else(|| SplitKeyStoreError::unavailable(RedisFailure::Rubbish))
}

impl SplitKeyStore for RedisSplitKeyStore {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        let field = field(project, split);
        let mut command = redis::cmd("HGET");
        command.arg(self.hash()).arg(&field);
        let answer = self.redis.query(Access::ReadKey, command).await;
        let value: Option<Vec<u8>> = answer.map_err(SplitKeyStoreError::unavailable)?;
        let Some(value) = value else { return Ok(None) };
        record(&field, &value).map(Some).ok_or_else(|| SplitKeyStoreError::unavailable(self.redis.rubbish()))
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(PUT).arg(1).arg(self.hash());
        for record in &records {
            command.arg(field(record.project(), record.split())).arg(record.revision());
            command.arg(serde_json::to_vec(record).map_err(SplitKeyStoreError::unavailable)?);
        }
        let answer = self.redis.query_for_operator(Commands::from(command).once()).await;
        let written: bool = answer.map_err(SplitKeyStoreError::unavailable)?;
        if written { Ok(()) } else { Err(SplitKeyStoreError::conflict()) }
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        all(&self.redis, self.hash(), |field, value: Vec<u8>| record(field, &value)).await
    }
}
