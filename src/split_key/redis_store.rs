//! Records and counters that replicas share.

use std::{fmt, sync::Arc, time::Duration};

use redis::{
    IntoConnectionInfo, RedisResult,
    aio::{ConnectionLike, ConnectionManager},
};

use crate::{
    redis::{self as redis_link, Kind, Link, LinkError},
    runtime::{SystemTime, since_epoch},
    split_key::{
        SplitId, SplitKeyEvent, SplitKeyObserver, SplitKeyRecord, SplitKeyStore, SplitKeyStoreError,
    },
};

/// How long operators wait; requests wait for [`Link`]'s deadline.
const PATIENCE: Duration = Duration::from_secs(5);

/// Records in Redis or Valkey, for all replicas that use the same server and prefix.
///
/// Every request asks Redis and nothing is kept in the process: a rotation or revocation is seen by every
/// replica with the next request that it looks up. All records are in one hash, which a cluster keeps on one
/// node, and are changed by one script: all of a change or none of it.
///
/// While Redis does not answer within the [deadline](Self::with_deadline), requests are answered with
/// [`Unavailable`](crate::split_key::SplitKeyRejection::Unavailable); each incident is logged once. A value that is
/// no record of the split that was asked for is such a failure, too.
///
/// The hash holds the server parts: with a client part, one is an API key. Turn on persistence
/// (`appendonly yes`) and let Redis evict nothing; what it forgets is gone. Needs Redis 6 or any Valkey.
#[derive(Clone)]
pub struct RedisSplitKeyStore<C = ConnectionManager> {
    link: Link<C>,
    prefix: Arc<str>,
}

impl RedisSplitKeyStore {
    /// A store on a connection of its own to the server at this address.
    ///
    /// # Errors
    ///
    /// If the address cannot be understood, or outside of a tokio runtime.
    pub async fn connect(server: impl IntoConnectionInfo + Send) -> RedisResult<Self> {
        Ok(Self::new(redis_link::connect(server, STORE).await?))
    }
}

const STORE: &str = "key store";
const USAGE: &str = "usage log";

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

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisSplitKeyStore<C> {
    /// A store on a connection that you have already.
    #[must_use]
    pub fn new(connection: C) -> Self {
        Self { link: Link::new(connection, STORE), prefix: redis_link::DEFAULT_PREFIX.into() }
    }

    /// What the name of the hash begins with, followed by a colon. Default: `tower-devicecheck`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// For how long a request waits for Redis. Default: 50 ms. Operators' changes wait for 5 seconds.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.link.set_deadline(deadline);
        self
    }

    fn hash(&self) -> String {
        format!("{}:keys1", self.prefix)
    }
}

/// A split is eight digits, so the name of a project, which may hold anything, comes last.
fn field(project: &str, split: SplitId) -> String {
    format!("{split} {project}")
}

/// The record, if it is that of this field.
fn record(field_read: &str, value: &[u8]) -> Option<SplitKeyRecord> {
    let end = value.iter().position(|byte| *byte == b'\n')?;
    let record: SplitKeyRecord = serde_json::from_slice(&value[end + 1..]).ok()?;
    let revision: u64 = std::str::from_utf8(&value[..end]).ok()?.parse().ok()?;
    let is_it = field(record.project(), record.split()) == field_read && record.revision() == revision;
    is_it.then_some(record)
}

async fn patiently<T>(answer: impl Future<Output = RedisResult<T>>) -> Result<T, SplitKeyStoreError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(SplitKeyStoreError::unavailable),
        Err(_) => Err(SplitKeyStoreError::unavailable("no answer from Redis within 5 seconds")),
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> SplitKeyStore for RedisSplitKeyStore<C> {
    async fn get(&self, project: &str, split: SplitId) -> Result<Option<SplitKeyRecord>, SplitKeyStoreError> {
        let field = field(project, split);
        let mut command = redis::cmd("HGET");
        command.arg(self.hash()).arg(&field);
        let answer = self.link.run(Kind::Read, self.link.query(command)).await;
        let value: Option<Vec<u8>> = answer.map_err(SplitKeyStoreError::unavailable)?;
        let Some(value) = value else { return Ok(None) };
        record(&field, &value).map(Some).ok_or_else(|| SplitKeyStoreError::unavailable(self.link.rubbish()))
    }

    async fn put(&self, records: Vec<SplitKeyRecord>) -> Result<(), SplitKeyStoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(PUT).arg(1).arg(self.hash());
        for record in &records {
            command.arg(field(record.project(), record.split())).arg(record.revision());
            command.arg(serde_json::to_vec(record).map_err(SplitKeyStoreError::unavailable)?);
        }
        let written: bool = patiently(self.link.query(command)).await?;
        if written { Ok(()) } else { Err(SplitKeyStoreError::conflict()) }
    }

    async fn list(&self) -> Result<Vec<SplitKeyRecord>, SplitKeyStoreError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(self.hash());
        let all: Vec<(String, Vec<u8>)> = patiently(self.link.query(command)).await?;
        all.iter()
            .map(|(field, value)| record(field, value))
            .collect::<Option<_>>()
            .ok_or_else(|| SplitKeyStoreError::unavailable(LinkError::Rubbish))
    }
}

impl<C> fmt::Debug for RedisSplitKeyStore<C> {
    // Without the connection, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSplitKeyStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// An observer that counts uses per project, split, outcome and day (UTC), for all replicas together.
///
/// Counting is best effort: it does not hold up requests, and what cannot be written while Redis is away is
/// not counted. Uses of splits that the store does not have are counted together: clients can make up any
/// number. Counts are kept for 90 days.
#[derive(Clone)]
pub struct RedisUsageLog<C = ConnectionManager> {
    link: Link<C>,
    prefix: Arc<str>,
}

/// One count of a [`RedisUsageLog`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UseCount {
    /// The split and its project; `None` for all splits that the store does not have.
    pub key: Option<(String, SplitId)>,
    /// [`SplitKeyOutcome::as_str`](crate::split_key::SplitKeyOutcome::as_str).
    pub outcome: String,
    /// How often.
    pub uses: u64,
}

impl RedisUsageLog {
    /// A log on a connection of its own to the server at this address.
    ///
    /// # Errors
    ///
    /// If the address cannot be understood, or outside of a tokio runtime.
    pub async fn connect(server: impl IntoConnectionInfo + Send) -> RedisResult<Self> {
        Ok(Self::new(redis_link::connect(server, USAGE).await?))
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisUsageLog<C> {
    /// A log on a connection that you have already.
    #[must_use]
    pub fn new(connection: C) -> Self {
        Self { link: Link::new(connection, USAGE), prefix: redis_link::DEFAULT_PREFIX.into() }
    }

    /// What every key begins with, followed by a colon. Default: `tower-devicecheck`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The counts of the day (UTC) of this time, in any order.
    ///
    /// # Errors
    ///
    /// If Redis does not answer within 5 seconds, or with something else than counts.
    pub async fn day(&self, day: SystemTime) -> Result<Vec<UseCount>, SplitKeyStoreError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(self.hash(day));
        let all: Vec<(String, u64)> = patiently(self.link.query(command)).await?;
        all.into_iter()
            .map(|(field, uses)| {
                let (outcome, key) = field.split_once(' ')?;
                let key = match key {
                    "-" => None,
                    key => {
                        let (split, project) = key.split_once(' ')?;
                        Some((project.to_owned(), split.parse().ok()?))
                    }
                };
                Some(UseCount { key, outcome: outcome.to_owned(), uses })
            })
            .collect::<Option<_>>()
            .ok_or_else(|| SplitKeyStoreError::unavailable(LinkError::Rubbish))
    }

    fn hash(&self, time: SystemTime) -> String {
        format!("{}:usage1:{}", self.prefix, since_epoch(time).as_secs() / (24 * 60 * 60))
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> SplitKeyObserver for RedisUsageLog<C> {
    fn used(&self, event: &SplitKeyEvent) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let key = match (&event.project, event.metadata) {
            // As in `UsageLog`: only what the store knows has a provider.
            (Some(project), Some(metadata)) if event.provider.is_some() => field(project, metadata.split()),
            _ => "-".to_owned(),
        };
        let hash = self.hash(event.at());
        let mut commands = redis::pipe();
        commands.cmd("HINCRBY").arg(&hash).arg(format!("{} {key}", event.outcome().as_str())).arg(1).ignore();
        commands.cmd("EXPIRE").arg(&hash).arg(90 * 24 * 60 * 60).ignore();
        let link = self.link.clone();
        let mut connection = self.link.connection();
        runtime.spawn(async move {
            let count = async move { commands.query_async::<()>(&mut connection).await };
            let _ = link.run(Kind::Write, count).await;
        });
    }
}

impl<C> fmt::Debug for RedisUsageLog<C> {
    // Without the connection, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisUsageLog").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
